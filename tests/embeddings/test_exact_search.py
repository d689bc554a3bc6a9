import numpy as np
import pytest

from embeddings.exact_search import retention, search_exactly
from embeddings.store import VectorStore


def store_of(vector_VD, ids=None):
    ids = ids or [f"p{i:03d}" for i in range(len(vector_VD))]
    return VectorStore.from_arrays(ids, vector_VD, kind="k", encoder_fingerprint="e")


def by_hand(store, query_QD, k):
    """Sort everything by score, then by id."""
    score_QV = store.scores(query_QD, 0, len(store.ids))
    rows = [
        sorted(range(len(store.ids)), key=lambda row: (-float(score_V[row]), store.ids[row]))[:k]
        for score_V in score_QV
    ]
    return np.array(rows), np.take_along_axis(score_QV, np.array(rows), axis=1)


@pytest.mark.parametrize("block_rows", [1, 7, 64, 8192])
@pytest.mark.parametrize("k", [1, 5, 300])
def test_blocks_find_what_sorting_everything_finds(block_rows, k):
    rng = np.random.default_rng(0)
    # Few different values, so that many scores are equal, in all signs and both zeros.
    vector_VD = rng.integers(-1, 2, (100, 4)).astype(np.float32)
    ids = [f"p{i}" for i in rng.permutation(100)]
    store = store_of(vector_VD, ids)
    query_QD = rng.integers(-1, 2, (300, 4)).astype(np.float32)
    row_QK, score_QK = by_hand(store, query_QD, k)
    found = search_exactly(store, query_QD, k, block_rows=block_rows)
    np.testing.assert_array_equal(found.row_QK, row_QK)
    np.testing.assert_array_equal(found.score_QK, score_QK)


def test_equal_vectors_are_found_in_the_order_of_their_ids_wherever_blocks_begin():
    vector_D = np.random.default_rng(0).normal(size=96).astype(np.float32)
    store = store_of(np.tile(vector_D, (50, 1)), [f"p{49 - i:02d}" for i in range(50)])
    query_QD = np.random.default_rng(1).normal(size=(3, 96))
    for block_rows in (1, 7, 50):
        found = search_exactly(store, query_QD, 3, block_rows=block_rows)
        assert [store.ids[row] for row in found.row_QK[0]] == ["p00", "p01", "p02"]


def test_what_cannot_be_searched_is_refused():
    store = store_of(np.eye(3))
    assert search_exactly(store, np.zeros((0, 3)), 2).row_QK.shape[0] == 0
    with pytest.raises(ValueError, match="a single query is a table of one row"):
        search_exactly(store, np.ones(3), 2)
    with pytest.raises(ValueError, match="finite"):
        search_exactly(store, np.array([[np.nan, 0, 0]]), 2)
    with pytest.raises(ValueError, match="k=0"):
        search_exactly(store, np.eye(3), 0)


def test_retention_by_hand_counts_ties_with_the_last():
    store = store_of([[1.0, 0], [0.9, 0], [0.9, 0], [0.1, 0]])
    query_QD = np.array([[1.0, 0.0]])
    exact = search_exactly(store, query_QD, 2)
    assert exact.row_QK.tolist() == [[0, 1]]
    assert retention(store, exact, query_QD, np.array([[0, 2]])).tolist() == [1.0]
    assert retention(store, exact, query_QD, np.array([[3, 2]])).tolist() == [0.5]
