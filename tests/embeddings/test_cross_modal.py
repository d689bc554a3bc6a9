import numpy as np
import pytest

from embeddings.cross_modal import linear_probe_f1, recall_at, retrieval_ranks


def test_ranks_by_hand():
    candidates = np.array([[1.0, 0], [0, 1], [0.6, 0.8]])
    queries = np.array([[1.0, 0], [0.0, 1.0]])
    ranks = retrieval_ranks(queries, candidates, np.array([0, 2]), np.array([0, 1, 2]))
    assert ranks.tolist() == [1, 2]
    assert recall_at(ranks, (1, 5)) == {"r1": 0.5, "r5": 1.0}


def test_candidates_of_the_own_group_are_no_rivals():
    candidates = np.array([[1.0, 0], [0.9, 0], [0, 1]])
    ranks = retrieval_ranks(np.array([[1.0, 0]]), candidates, np.array([1]), np.array([1, 1, 0]))
    assert ranks.tolist() == [1]


def test_constant_vectors_rank_in_the_middle():
    same = np.ones((9, 3))
    assert retrieval_ranks(same, same, np.arange(9), np.arange(9)).tolist() == [5.0] * 9


def test_blocks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(50, 4)), rng.normal(size=(20, 4))
    groups = rng.integers(0, 20, 50), np.arange(20)
    whole = retrieval_ranks(queries, candidates, *groups)
    monkeypatch.setattr("embeddings.cross_modal.BLOCK", 7)
    assert np.array_equal(retrieval_ranks(queries, candidates, *groups), whole)


def test_a_query_without_candidate_is_refused():
    with pytest.raises(ValueError, match="group 5 has queries and no candidate"):
        retrieval_ranks(np.ones((2, 2)), np.ones((1, 2)), np.array([0, 5]), np.array([0]))


def test_the_probe_reads_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    category = np.array(["a", "b", "c"])[rng.integers(0, 3, 300)]
    held = np.arange(300) % 3 == 0
    told = np.eye(3)[np.searchsorted(["a", "b", "c"], category)] + rng.normal(0, 0.1, (300, 3))
    assert linear_probe_f1(told, category, held) == 1.0
    assert linear_probe_f1(rng.normal(size=(300, 3)), category, held) < 0.5
