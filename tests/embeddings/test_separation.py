"""Distances of classes, and how far queries drawn anew move them."""

import numpy as np
import pytest
from scipy.stats import ks_2samp, norm

from embeddings.query_bootstrap import Estimate, QueryDraws
from embeddings.relevance_intervals import relevance_auc_draws
from embeddings.separation import separation


def drawn(label, **settings):
    ids = [f"q{i}" for i in range(len(label))]
    return QueryDraws(ids, **{"draws": 3, "seed": 0, **settings})


def test_ks_agrees_with_scipy_ties_included():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 300)
    score = np.round(label * 0.4 + rng.normal(size=300), 1)
    found = separation(score, label, drawn(label))
    for high, low in ((2, 0), (2, 1), (1, 0)):
        expected = ks_2samp(score[label == high], score[label == low]).statistic
        assert found[f"ks_{high}v{low}"].value == pytest.approx(expected)


def test_classes_that_do_not_touch_and_classes_that_are_one():
    label = np.repeat([0, 2], 50)
    apart = separation(np.r_[np.linspace(0, 0.4, 50), np.linspace(0.6, 1, 50)], label, drawn(label))
    assert apart["ks_2v0"].value == 1 and apart["overlap_2v0"].value == 0
    same = separation(np.tile(np.linspace(0, 1, 50), 2), label, drawn(label))
    assert same["ks_2v0"].value == 0 and same["overlap_2v0"].value == pytest.approx(1)
    assert set(same) == {"ks_2v0", "overlap_2v0"}
    flat = separation(np.zeros(100), label, drawn(label))
    assert flat["ks_2v0"].value == 0 and flat["overlap_2v0"].value == pytest.approx(1)


def test_overlap_by_hand_and_of_two_normals():
    # In 40 bins of width 1: shares 1/2 and 1/4 meet in the first, 0 and 1/2 in the last.
    score, label = np.array([0.0, 20, 0, 39, 40, 30]), np.array([2, 2, 1, 1, 1, 1])
    found = separation(score, label, drawn(label))
    assert found["overlap_2v1"].value == pytest.approx(0.25)
    rng = np.random.default_rng(1)
    label = np.repeat([0, 1], 20_000)
    score = rng.normal(size=40_000) + label
    # Of two normals one deviation apart: twice the tail beyond half of it.
    expected = 2 * norm.cdf(-0.5)
    assert separation(score, label, drawn(label))["overlap_1v0"].value == pytest.approx(
        expected, abs=0.015
    )


def test_neither_order_nor_scale_of_the_scores_matters():
    rng = np.random.default_rng(2)
    label, query = rng.integers(0, 3, 200), rng.integers(0, 30, 200)
    score = rng.normal(size=200) + label
    order = rng.permutation(200)
    once, again = (
        separation(score[rows] * scale, label[rows], QueryDraws(query[rows], draws=20, seed=3))
        for rows, scale in ((np.arange(200), 1.0), (order, 8.0))
    )
    for name in once:
        assert once[name].value == pytest.approx(again[name].value)
        np.testing.assert_allclose(once[name].draw_R, again[name].draw_R)


def test_draws_are_what_the_repeated_rows_would_give_moved_to_the_value():
    rng = np.random.default_rng(4)
    label, query = rng.integers(1, 3, 120), rng.integers(0, 12, 120)
    score = np.round(rng.normal(size=120) + label, 1)
    draws = QueryDraws(query, draws=5, seed=9)
    found = separation(score, label, draws)["ks_2v1"]
    repeated = []
    for count_Q in draws.count_RQ:
        rows = np.repeat(np.arange(120), count_Q[query])
        high, low = score[rows][label[rows] == 2], score[rows][label[rows] == 1]
        repeated.append(ks_2samp(high, low).statistic)
    np.testing.assert_allclose(found.draw_R, repeated - np.mean(repeated) + found.value)


def test_intervals_of_noise_hold_the_figure_they_are_of():
    # Plain percentiles would not: a sample drawn from a sample looks further apart than it is.
    rng = np.random.default_rng(5)
    label, query = rng.integers(0, 3, 3000), rng.integers(0, 300, 3000)
    found = separation(rng.normal(size=3000), label, QueryDraws(query, draws=100, seed=0))
    for name, estimate in found.items():
        low, high = estimate.interval(0.95) or (1, 0)
        assert low < estimate.value < high, name


def test_draws_are_those_of_the_auc_intervals():
    # Two labels a query, so that a drawn query's mean tells how often it was drawn.
    query = np.repeat(np.arange(6), 2)
    label, score = np.tile([2, 0], 6), np.array([1, 0] * 3 + [0, 1] * 3, float)
    auc_R = relevance_auc_draws(score, label, query, draws=50, seed=5)["auc_2v0"]
    high_R = QueryDraws(query, draws=50, seed=5).count_RQ[:, :3].sum(axis=1) / 6
    # Of a share h in the right order and 1 - h in the wrong one, the AUC is h.
    np.testing.assert_allclose(auc_R, high_R, atol=1e-12)


def test_means_by_hand_and_their_differences_are_paired():
    draws = QueryDraws(["a", "a", "b"], draws=40, seed=0)
    mean = draws.mean(np.array([1.0, 2.0, np.nan]))
    assert mean.value == 1.5
    counted = draws.count_RQ[:, 0] > 0
    assert (mean.draw_R[counted] == 1.5).all() and np.isnan(mean.draw_R[~counted]).all()
    noisy = np.random.default_rng(0).normal(size=3)
    difference = draws.mean(noisy + 0.25).minus(draws.mean(noisy))
    low, high = difference.interval(0.95) or (0, 0)
    assert low == pytest.approx(0.25) and high == pytest.approx(0.25)
    assert Estimate(value=1.0, draw_R=np.full(3, np.nan)).interval(0.95) is None
    with pytest.raises(ValueError, match="0 rows"):
        QueryDraws([], draws=5, seed=0)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    # 60 queries whose own levels differ more than their rows: rows alone would be far too sure.
    covered, rounds = 0, 200
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        query = np.repeat(np.arange(60), 5)
        value = rng.normal(size=60)[query] + 0.2 * rng.normal(size=300)
        low, high = QueryDraws(query, draws=200, seed=seed).mean(value).interval(0.9) or (1, 0)
        covered += low <= 0 <= high
    assert 0.83 <= covered / rounds <= 0.95
