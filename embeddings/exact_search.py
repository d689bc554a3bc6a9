"""The closest vectors of a store to each query, exactly, in memory of a block.

Shape letters: V vectors of a store, N of a block, Q queries, D embedding size, K found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 8192
QUERY_ROWS = 256
"""Queries times rows that are scored at a time: 16 MB of keys."""

TIE = 1e-6
"""Scores that differ by less are the same: rounding reaches this far."""


class Searchable(Protocol):
    """What the search needs of a store, of whatever form."""

    @property
    def ids(self) -> Sequence[str]:
        """One an id, in the order of rows."""
        ...

    def scores(self, query_QD: NDArray[np.floating], start: int, stop: int) -> NDArray[np.float32]:
        """Score of queries with the rows ``start`` to ``stop - 1``, (Q, N); larger is closer."""
        ...


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """What was found for each query, the closest first."""

    row_QK: NDArray[np.int64]
    """Rows of the store."""
    score_QK: NDArray[np.float32]


def search_exactly(
    store: Searchable,
    query_QD: NDArray[np.floating],
    k: int,
    *,
    block_rows: int = BLOCK_ROWS,
) -> Neighbours:
    """Find the rows that score highest with each query; of equal scores the smaller id is first.

    The result does not depend on the size of blocks.

    Args:
        store: Any form of store.
        query_QD: Queries, finite.
        k: How many are wanted; all where the store has fewer.
        block_rows: Rows scored at a time.

    Raises:
        ValueError: If ``k`` or ``block_rows`` is below 1, or queries are not finite rows.
    """
    query_QD = np.asarray(query_QD)
    if k < 1 or block_rows < 1:
        raise ValueError(f"k={k} and block_rows={block_rows} must be at least 1")
    if query_QD.ndim != 2 or not np.isfinite(query_QD).all():
        raise ValueError(
            f"queries of shape {query_QD.shape} must be finite rows, one a query; a single query "
            "is a table of one row"
        )
    count = len(store.ids)
    by_id_V = np.argsort(np.asarray(store.ids, dtype=object), kind="stable")
    # Place of each row counted from the largest id: among equal scores the smallest id wins.
    place_V = np.empty(count, np.uint64)
    place_V[by_id_V] = np.arange(count - 1, -1, -1, dtype=np.uint64)
    kept = min(k, count)
    best_QK = np.zeros((len(query_QD), 0), np.uint64)
    for start in range(0, count, block_rows):
        stop = min(start + block_rows, count)
        parts = []
        for at in range(0, len(query_QD), QUERY_ROWS):
            score_QN = store.scores(query_QD[at : at + QUERY_ROWS], start, stop)
            key_QN = _sortable(score_QN) << np.uint64(32) | place_V[start:stop]
            key_QN = np.concatenate([best_QK[at : at + QUERY_ROWS], key_QN], axis=1)
            if key_QN.shape[1] > kept:
                key_QN = np.partition(key_QN, -kept, axis=1)[:, -kept:]
            parts.append(key_QN)
        best_QK = np.concatenate(parts) if parts else best_QK
    best_QK = np.sort(best_QK, axis=1)[:, ::-1]
    place_QK = (best_QK & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return Neighbours(
        row_QK=by_id_V[count - 1 - place_QK].astype(np.int64).reshape(best_QK.shape),
        score_QK=_unsortable((best_QK >> np.uint64(32)).astype(np.uint32)),
    )


def retention(
    store: Searchable,
    exact: Neighbours,
    query_QD: NDArray[np.floating],
    found_QK: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Share of each query's exact K that a search found, (Q,).

    A found row that scores as high as the K-th exact one counts, whether or not it is among them:
    which of two equal products comes first is no merit.

    Args:
        store: The exact vectors; all of ``exact`` was found in it.
        exact: Their K for each query.
        query_QD: The queries.
        found_QK: Rows that the other search found, -1 where it found none.
    """
    kept_Q = np.empty(len(query_QD))
    for at, row_K in enumerate(found_QK):
        one_1D = query_QD[at : at + 1]
        found = [row for row in row_K.tolist() if row >= 0]
        scores = np.array([store.scores(one_1D, row, row + 1)[0, 0] for row in found])
        kept_Q[at] = np.sum(scores >= exact.score_QK[at, -1] - TIE) / len(row_K)
    return kept_Q


def _sortable(score: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Floats to integers of the same order; both zeros become one."""
    bits = (score + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)


def _unsortable(order: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The floats of ``_sortable`` again."""
    return np.where(order >> 31, order & np.uint32((1 << 31) - 1), ~order).view(np.float32)
