"""Impressions as plain columns, for models that have no embedding tower.

Shape letters: N rows, F sparse features, C dense columns.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from features.embedding_join import DERIVED_NAMES, Vectors, derived_features, gather_vectors
from features.examples import Examples
from ranking.contract import InputSignature

VECTOR_COLUMNS = (*DERIVED_NAMES, "has_product_vector", "has_query_vector", "has_history_vector")
"""The dense columns that such models get from vectors."""

_GATHER_ROWS = 65_536


def dense_columns(examples: Examples, vectors: Vectors | None) -> NDArray[np.float32]:
    """Return the dense columns, with ``VECTOR_COLUMNS`` after them if there are vectors, (N, C)."""
    if vectors is None:
        return examples.dense_NC
    parts = []
    # In parts, because the vectors of all rows at once would be gigabytes.
    for start in range(0, max(len(examples), 1), _GATHER_ROWS):
        rows = gather_vectors(vectors, examples.take(slice(start, start + _GATHER_ROWS)))
        parts.append(np.concatenate([derived_features(rows), rows.present_N3], axis=1))
    return np.concatenate([examples.dense_NC, np.concatenate(parts)], axis=1)


def tree_columns(examples: Examples, vectors: Vectors | None) -> NDArray[np.float64]:
    """Return ids, then dense columns, as one matrix for LightGBM, shape (N, F + C)."""
    # float64, because float32 cannot tell ids above 2**24 apart.
    dense_NC = dense_columns(examples, vectors)
    return np.concatenate([examples.sparse_NF, dense_NC], axis=1, dtype=np.float64)


def tree_names(signature: InputSignature) -> list[str]:
    """Return the names of those columns, without the characters LightGBM forbids, all distinct."""
    vectors = () if signature.vectors_fingerprint is None else VECTOR_COLUMNS
    names = (*signature.sparse_names, *signature.dense_names, *vectors)
    return [f"{number}_{re.sub(r'[^0-9A-Za-z_.]', '_', name)}" for number, name in enumerate(names)]
