import numpy as np
import pytest

from embeddings.evaluate import relevance_aucs
from embeddings.relevance_intervals import interval, relevance_auc_draws


def pairs(seed, queries=60):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, 6 * queries)
    score = np.round(label + rng.normal(0, 1.5, len(label)), 1)
    return score, label, [f"q{i % queries}" for i in range(len(label))]


def test_a_draw_is_the_auc_of_the_drawn_rows():
    score, label, query = pairs(0)
    draws = relevance_auc_draws(score, label, query, draws=3, seed=4)
    rng = np.random.default_rng(4)
    names = sorted(set(query))
    for turn in range(3):
        drawn = rng.integers(len(names), size=len(names))
        rows = np.concatenate([np.flatnonzero(np.array(query) == names[q]) for q in drawn])
        expected = relevance_aucs(score[rows], label[rows])
        assert {name: auc[turn] for name, auc in draws.items()} == pytest.approx(expected)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    truth = relevance_aucs(*pairs(99, queries=20_000)[:2])["auc_2v0"]
    held = 0
    for seed in range(60):
        low, high = interval(relevance_auc_draws(*pairs(seed), draws=200)["auc_2v0"])
        held += low <= truth <= high
    assert 50 <= held <= 60


def test_scores_that_differ_by_nothing_differ_by_nothing_in_every_draw():
    score, label, query = pairs(1)
    one = relevance_auc_draws(score, label, query, draws=50)
    same_order = relevance_auc_draws(3 * score + 1, label, query, draws=50)
    assert all(np.array_equal(one[name], same_order[name]) for name in one)


def test_a_class_that_is_not_there_leaves_its_pairs_out():
    draws = relevance_auc_draws(np.arange(4.0), np.array([2, 2, 1, 1]), list("aabb"), draws=20)
    assert set(draws) == {"auc_2v1"}
    # Half of the draws hold one of the two queries alone, and so one class alone.
    assert np.isnan(draws["auc_2v1"]).any()
    assert interval(draws["auc_2v1"]) == (0.0, 0.0)
