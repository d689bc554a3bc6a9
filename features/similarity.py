"""How like the query and the history a product is, by cosines of frozen vectors.

Columns: ``cosine.query``, ``cosine.history`` (with the mean vector of the history),
``cosine.history_max``, ``cosine.history_last``, and ``cosine.history_bin1`` and so on: the share of
the history whose cosine with the product falls into each of some bins of equal width from -1 to 1.
NaN stands for "a vector is missing" and becomes a missing value.

Shape letters: N rows, D embedding size, L history length, B bins.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features.embedding_join import Vectors

PREFIX = "cosine."
VECTORS_FILE = "vectors.npz"
SINGLE_COLUMNS = ("query", "history", "history_max", "history_last")


def similarity_names(bins: int) -> tuple[str, ...]:
    """Return the names of the columns of ``similarities``, in order."""
    of_bins = (f"history_bin{place + 1}" for place in range(bins))
    return tuple(f"{PREFIX}{name}" for name in (*SINGLE_COLUMNS, *of_bins))


class Similarities:
    """Unit vectors of a catalogue, ready to compare products with queries and histories.

    Args:
        vectors: In catalogue order.
        bins: Of the histogram; 1 or more.
    """

    def __init__(self, vectors: Vectors, *, bins: int) -> None:
        if bins < 1:
            raise ValueError(f"bins is {bins}; the histogram needs 1 or more")
        self.vectors = vectors
        self.bins = bins
        self._product_PD = _unit(vectors.product_PD)
        self._query_QD = _unit(vectors.query_QD)
        self._has_product_P1 = _with_absent(vectors.product_present_P)
        self._has_query_Q1 = _with_absent(vectors.query_present_Q)

    def with_queries_of(self, vectors: Vectors) -> Similarities:
        """Return the same products beside other queries; nothing of the products is copied."""
        other = copy.copy(self)
        other.vectors = vectors
        other._query_QD = _unit(vectors.query_QD)
        other._has_query_Q1 = _with_absent(vectors.query_present_Q)
        return other

    def columns(
        self,
        product_N: NDArray[np.int32],
        query_N: NDArray[np.int32],
        history_NL: NDArray[np.int32],
    ) -> dict[str, NDArray[np.float64]]:
        """Return every column by name, shape (N,); NaN where a vector is missing.

        Args:
            product_N: Catalogue rows of the products, -1 where unknown.
            query_N: Catalogue rows of the queries, -1 where unknown.
            history_NL: Catalogue rows of the histories, newest first, padded with -1.
        """
        rows = len(product_N)
        has_product_N = self._has_product_P1[product_N]
        query_cosine_N = np.full(rows, np.nan)
        both_N = np.flatnonzero(has_product_N & self._has_query_Q1[query_N])
        query_cosine_N[both_N] = np.einsum(
            "nd,nd->n", self._product_PD[product_N[both_N]], self._query_QD[query_N[both_N]]
        )
        max_N, last_N = np.full(rows, -np.inf), np.full(rows, np.nan)
        items_N = np.zeros(rows, np.int64)
        bin_NB = np.zeros((rows, self.bins), np.int64)
        pooled_ND = np.zeros((rows, self.vectors.dim), np.float32)
        for item_N in history_NL.T:
            has_N = np.flatnonzero(has_product_N & self._has_product_P1[item_N])
            cosine_N = np.einsum(
                "nd,nd->n", self._product_PD[product_N[has_N]], self._product_PD[item_N[has_N]]
            ).astype(np.float64)
            first_N = items_N[has_N] == 0
            last_N[has_N[first_N]] = cosine_N[first_N]
            max_N[has_N] = np.maximum(max_N[has_N], cosine_N)
            bin_N = ((np.clip(cosine_N, -1, 1) + 1) / 2 * self.bins).astype(np.int64)
            bin_NB[has_N, np.minimum(bin_N, self.bins - 1)] += 1
            pooled_ND[has_N] += self.vectors.product_PD[item_N[has_N]]
            items_N[has_N] += 1
        some_N = np.flatnonzero(items_N)
        mean_N = np.full(rows, np.nan)
        mean_N[some_N] = np.einsum(
            "nd,nd->n", self._product_PD[product_N[some_N]], _unit(pooled_ND[some_N])
        )
        share_NB = np.full((rows, self.bins), np.nan)
        share_NB[some_N] = bin_NB[some_N] / items_N[some_N, None]
        max_N[items_N == 0] = np.nan
        values = [query_cosine_N, mean_N, max_N, last_N, *share_NB.T]
        return dict(zip(similarity_names(self.bins), values, strict=True))


def save_vectors_(vectors: Vectors, folder: Path) -> None:
    """Write the vectors of a catalogue beside the pipeline that reads them."""
    np.savez(
        folder / VECTORS_FILE,
        product_PD=vectors.product_PD,
        product_present_P=vectors.product_present_P,
        query_QD=vectors.query_QD,
        query_present_Q=vectors.query_present_Q,
        fingerprint=np.array(vectors.fingerprint),
    )


def load_vectors(folder: Path) -> Vectors:
    """Return the vectors that ``save_vectors_`` wrote.

    Raises:
        ValueError: If the file is missing.
    """
    path = folder / VECTORS_FILE
    if not path.is_file():
        raise ValueError(f"{path} is missing; the pipeline compares products by these vectors")
    with np.load(path, allow_pickle=False) as arrays:
        return Vectors(
            **{name: arrays[name] for name in arrays.files if name != "fingerprint"},
            fingerprint=str(arrays["fingerprint"]),
        )


def _unit(vector_VD: NDArray[np.float32]) -> NDArray[np.float32]:
    length_V1 = np.linalg.norm(vector_VD, axis=1, keepdims=True)
    return vector_VD / np.maximum(length_V1, np.float32(1e-12))


def _with_absent(present_V: NDArray[np.bool_]) -> NDArray[np.bool_]:
    # One place more than the catalogue: row -1 answers for what it lacks.
    return np.append(present_V, False)
