"""What ranks products for queries, and the cosine of stored vectors as one such thing.

Shape letters: N pairs, Q queries, P products, V vectors, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embeddings.store import VectorStore


class Scores(Protocol):
    """How well products match queries, by whatever means."""

    @property
    def product_ids(self) -> Sequence[str]:
        """The catalogue, in the order of ``catalogue``'s columns."""
        ...

    def pairs(self, query_ids: Sequence[str], product_ids: Sequence[str]) -> NDArray[np.float32]:
        """Score of each query with the product beside it, (N,)."""
        ...

    def catalogue(self, query_ids: Sequence[str]) -> NDArray[np.float32]:
        """Score of each query with every product, (Q, P)."""
        ...


class CosineScores:
    """Cosine of stored vectors; 0 where one of the two is a row of zeros."""

    def __init__(self, product_store: VectorStore, query_store: VectorStore) -> None:
        if product_store.dim != query_store.dim:
            raise ValueError(
                f"product vectors have {product_store.dim} dimensions and query vectors "
                f"{query_store.dim}; both must come from one encoder"
            )
        self.product_ids = product_store.ids
        self._products, self._queries = product_store, query_store
        self._product_PD = unit_rows(product_store.vectors_VD)
        self._query_QD = unit_rows(query_store.vectors_VD)

    def pairs(self, query_ids: Sequence[str], product_ids: Sequence[str]) -> NDArray[np.float32]:
        """Cosine of each query with the product beside it, (N,)."""
        query_ND = self._query_QD[known_rows(self._queries, query_ids, "query")]
        product_ND = self._product_PD[known_rows(self._products, product_ids, "product")]
        return np.einsum("nd,nd->n", query_ND, product_ND)

    def catalogue(self, query_ids: Sequence[str]) -> NDArray[np.float32]:
        """Cosine of each query with every product, (Q, P)."""
        return self._query_QD[known_rows(self._queries, query_ids, "query")] @ self._product_PD.T


def unit_rows(vector_VD: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows at length 1; rows of zeros stay zeros."""
    length_V1 = np.linalg.norm(vector_VD, axis=1, keepdims=True)
    return np.asarray(vector_VD / np.maximum(length_V1, 1e-12), np.float32)


def known_rows(store: VectorStore, ids: Sequence[str], what: str) -> NDArray[np.int64]:
    """Return each id's row in a store.

    Args:
        store: The vectors.
        ids: What to look up.
        what: "product" or "query", for the error.

    Raises:
        ValueError: If the store lacks one of them.
    """
    row_N = store.row_of(ids)
    if (row_N < 0).any():
        missing = ids[int(np.argmin(row_N))]
        raise ValueError(
            f"the store has no vector of {what} {missing!r}; was it made from another dataset?"
        )
    return row_N
