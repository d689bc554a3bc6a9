"""Vectors joined to impressions by row number.

``features`` must not import ``embeddings``; it knows only the protocol below.

Shape letters: N impressions, P products and Q queries of the catalogue, D embedding size,
L history length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from features.examples import Examples

DERIVED_NAMES = ("cosine_product_query", "cosine_product_history")


class VectorTable(Protocol):
    """What the join needs of a store of vectors; ``embeddings.store`` provides one."""

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names the encoder and the data that the vectors came from."""
        ...

    @property
    def vectors_VD(self) -> NDArray[np.float32]:
        """All vectors, one row an id, shape (V, D)."""
        ...

    def row_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return each id's row, or -1 where the id is unknown, shape (N,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Frozen product and query vectors in catalogue order, zeros where one is missing."""

    product_PD: NDArray[np.float32]
    product_present_P: NDArray[np.bool_]
    """False where the catalogue's product has no vector."""
    query_QD: NDArray[np.float32]
    query_present_Q: NDArray[np.bool_]
    """False where the catalogue's query has no vector."""
    fingerprint: str
    """Names the two stores the vectors came from."""

    @property
    def dim(self) -> int:
        """Length of a vector, D."""
        return self.product_PD.shape[1]


@dataclass(frozen=True, kw_only=True)
class VectorRows:
    """The vectors of N impressions. Absent vectors are zero and their mask is 0."""

    product_ND: NDArray[np.float32]
    query_ND: NDArray[np.float32]
    history_ND: NDArray[np.float32]
    """Mean of the vectors of the products in the history."""
    present_N3: NDArray[np.float32]
    """1 where the product, the query and at least one history product have a vector."""


def join_vectors(
    product_table: VectorTable,
    query_table: VectorTable,
    product_ids: Sequence[str],
    query_ids: Sequence[str],
) -> Vectors:
    """Bring the vectors of a catalogue into its row order.

    Args:
        product_table: Vectors by product id.
        query_table: Vectors by query id, made by the same encoder.
        product_ids: The catalogue in row order, length P.
        query_ids: The catalogue in row order, length Q.

    Raises:
        ValueError: If the two tables disagree on the dimension, none of the products or of the
            queries is known, or a vector is not finite.
    """
    if product_table.dim != query_table.dim:
        raise ValueError(
            f"product vectors have {product_table.dim} dimensions and query vectors "
            f"{query_table.dim}; both must come from one encoder"
        )
    product_PD, product_present_P = _in_order(product_table, product_ids, "product")
    query_QD, query_present_Q = _in_order(query_table, query_ids, "query")
    return Vectors(
        product_PD=product_PD,
        product_present_P=product_present_P,
        query_QD=query_QD,
        query_present_Q=query_present_Q,
        fingerprint=f"{product_table.fingerprint}+{query_table.fingerprint}",
    )


def gather_vectors(vectors: Vectors, examples: Examples) -> VectorRows:
    """Look up the vectors of every impression, and pool its history.

    Returns:
        One row of vectors an impression; see ``VectorRows``.
    """
    product_ND, product_mask_N = _rows(
        vectors.product_PD, vectors.product_present_P, examples.product_N
    )
    query_ND, query_mask_N = _rows(vectors.query_QD, vectors.query_present_Q, examples.query_N)
    history_ND = np.zeros_like(product_ND)
    count_N = np.zeros(len(examples), np.float32)
    for item_N in examples.history_NL.T:
        # Most histories are short: touch only the rows that have an item here.
        has_N = np.flatnonzero(item_N >= 0)
        history_ND[has_N] += vectors.product_PD[item_N[has_N]]
        count_N[has_N] += vectors.product_present_P[item_N[has_N]]
    history_ND /= np.maximum(count_N, 1.0)[:, None]
    present_N3 = np.stack([product_mask_N, query_mask_N, (count_N > 0).astype(np.float32)], axis=1)
    return VectorRows(
        product_ND=product_ND, query_ND=query_ND, history_ND=history_ND, present_N3=present_N3
    )


def derived_features(rows: VectorRows) -> NDArray[np.float32]:
    """Return cos(product, query) and cos(product, history), 0 where either is absent.

    Returns:
        Shape (N, 2), columns as in ``DERIVED_NAMES``.
    """
    return np.stack(
        [_cosine(rows.product_ND, rows.query_ND), _cosine(rows.product_ND, rows.history_ND)], axis=1
    )


def _in_order(
    table: VectorTable, ids: Sequence[str], what: str
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    row_V = table.row_of(ids)
    present_V = row_V >= 0
    if len(ids) and not present_V.any():
        raise ValueError(
            f"none of the catalogue's {len(ids)} {what} ids ({ids[0]!r}, ...) has a vector; "
            "was the store made from another catalogue?"
        )
    vector_VD = np.zeros((len(ids), table.dim), np.float32)
    vector_VD[present_V] = table.vectors_VD[row_V[present_V]]
    finite_V = np.isfinite(vector_VD).all(axis=1)
    if not finite_V.all():
        first = int(np.argmin(finite_V))
        raise ValueError(
            f"the vector of {what} {ids[first]!r} is not finite ({int((~finite_V).sum())} such "
            "vectors); did the training of the encoder diverge?"
        )
    return vector_VD, present_V


def _rows(
    vector_VD: NDArray[np.float32], present_V: NDArray[np.bool_], row_N: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    known_N = row_N >= 0
    out_ND = np.zeros((len(row_N), vector_VD.shape[1]), np.float32)
    out_ND[known_N] = vector_VD[row_N[known_N]]
    mask_N = np.zeros(len(row_N), np.float32)
    mask_N[known_N] = present_V[row_N[known_N]]
    return out_ND, mask_N


def _cosine(a_ND: NDArray[np.float32], b_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    norm_N = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1)
    return ((a_ND * b_ND).sum(1) / np.maximum(norm_N, 1e-12)).astype(np.float32)
