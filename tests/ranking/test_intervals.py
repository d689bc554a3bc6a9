"""Intervals are checked by hand, against the bootstrap, and by how often they hold the truth."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from ranking.intervals import (
    Estimate,
    auc_components,
    auc_difference,
    auc_estimate,
    clustered_variance,
    delong_interval,
)


def draw_clicks(rng, users=150, rows_a_user=8, taste=1.0, noise=1.0):
    """Impressions whose users differ in taste, and two correlated scores for them."""
    user_N = np.repeat(np.arange(users), rows_a_user)
    shared_N = taste * rng.normal(size=users)[user_N]
    logit_N = rng.normal(size=len(user_N)) + shared_N - 1
    label_N = (rng.random(len(user_N)) < 1 / (1 + np.exp(-logit_N))).astype(float)
    score_a_N = logit_N + noise * rng.normal(size=len(user_N))
    score_b_N = logit_N + noise * rng.normal(size=len(user_N))
    return label_N, user_N, score_a_N, score_b_N


def all_pairs(label_N, score_N):
    """Structural components straight from their definition, one pair at a time."""
    win = np.sign(score_N[label_N == 1][:, None] - score_N[label_N == 0][None, :]) / 2 + 0.5
    component_N = np.empty(len(label_N))
    component_N[label_N == 1], component_N[label_N == 0] = win.mean(1), win.mean(0)
    return component_N


def test_delong_by_hand():
    # Clicks score 3 and 1, non-clicks 2 and 0. Shares of pairs won: clicks 1 and 1/2,
    # non-clicks 1/2 and 1. AUC 3/4; both sample variances are 1/8; 1/8/2 + 1/8/2 = 1/8.
    label_N, score_N = np.array([1.0, 1, 0, 0]), np.array([3.0, 1, 2, 0])
    components = auc_components(label_N, [score_N])
    assert components.component_N.tolist() == [1.0, 0.5, 0.5, 1.0]
    estimate = auc_estimate(label_N, components)
    assert estimate.value == 0.75
    assert estimate.standard_error**2 == pytest.approx(1 / 8)


def test_components_equal_the_comparison_of_all_pairs():
    rng = np.random.default_rng(0)
    label_N = (rng.random(300) < 0.3).astype(float)
    score_N = rng.integers(0, 15, 300).astype(float)
    components = auc_components(label_N, [score_N])
    np.testing.assert_allclose(components.component_N, all_pairs(label_N, score_N), atol=1e-12)
    assert components.auc == pytest.approx(roc_auc_score(label_N, score_N), abs=1e-12)


def test_clustered_variance_equals_obuchowskis_sums():
    label_N, user_N, a_N, _ = draw_clicks(np.random.default_rng(1), users=12, rows_a_user=4)
    component_N = all_pairs(label_N, a_N)
    auc = component_N[label_N == 1].mean()
    m, n = int(label_N.sum()), int((1 - label_N).sum())
    s10 = s01 = s11 = 0.0
    for user in range(12):
        own = user_N == user
        v10 = (component_N[own & (label_N == 1)] - auc).sum()
        v01 = (component_N[own & (label_N == 0)] - auc).sum()
        s10, s01, s11 = s10 + v10**2, s01 + v01**2, s11 + v10 * v01
    k10 = len(set(user_N[label_N == 1]))
    k01 = len(set(user_N[label_N == 0]))
    expected = (
        k10 / ((k10 - 1) * m) * s10 / m
        + k01 / ((k01 - 1) * n) * s01 / n
        + 2 / (m * n) * 12 / 11 * s11
    )
    assert clustered_variance(label_N, component_N, user_N)[0] == pytest.approx(expected)


def test_every_row_its_own_user_is_delong():
    label_N, _, a_N, _ = draw_clicks(np.random.default_rng(2))
    component_N = all_pairs(label_N, a_N)
    expected = sum(
        component_N[label_N == side].var(ddof=1) / (label_N == side).sum() for side in (0, 1)
    )
    names_N = np.array([f"u{row}" for row in range(len(label_N))])
    for cluster_N in (None, np.arange(len(label_N)), names_N):
        assert clustered_variance(label_N, component_N, cluster_N)[0] == pytest.approx(expected)


def test_writing_every_row_twice_does_not_shrink_the_clustered_interval():
    label_N, user_N, a_N, b_N = draw_clicks(np.random.default_rng(3))

    def error(times, clustered):
        label, user, a, b = (np.tile(x, times) for x in (label_N, user_N, a_N, b_N))
        cluster = user if clustered else None
        components = auc_components(label, [a]), auc_components(label, [b])
        return auc_difference(label, *components, cluster).standard_error

    assert error(2, clustered=True) == pytest.approx(error(1, clustered=True))
    assert error(2, clustered=False) < 0.75 * error(1, clustered=False)


def test_users_who_are_alike_widen_the_interval():
    label_N, user_N, a_N, _ = draw_clicks(np.random.default_rng(4), taste=2.0, noise=0.5)
    components = auc_components(label_N, [a_N])
    clustered = auc_estimate(label_N, components, user_N).standard_error
    assert clustered > 1.15 * auc_estimate(label_N, components).standard_error


def test_standard_errors_agree_with_the_bootstrap_over_users():
    rng = np.random.default_rng(5)
    label_N, user_N, a_N, b_N = draw_clicks(rng, users=200, rows_a_user=5)
    a, b = auc_components(label_N, [a_N]), auc_components(label_N, [b_N])
    rows_U = user_N.reshape(200, 5) * 5 + np.arange(5)
    samples = []
    for _ in range(600):
        row = rows_U[rng.integers(0, 200, 200)].ravel()
        pair = [auc_components(label_N[row], [score[row]]).auc for score in (a_N, b_N)]
        samples.append((pair[0], pair[0] - pair[1]))
    alone, difference = np.std(samples, axis=0, ddof=1)
    assert auc_estimate(label_N, a, user_N).standard_error == pytest.approx(alone, rel=0.12)
    assert auc_difference(label_N, a, b, user_N).standard_error == pytest.approx(
        difference, rel=0.12
    )


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    # Two equally good scores: the true difference is zero.
    rng = np.random.default_rng(6)
    held = []
    for _ in range(400):
        label_N, user_N, a_N, b_N = draw_clicks(rng, users=80, rows_a_user=5)
        a, b = auc_components(label_N, [a_N]), auc_components(label_N, [b_N])
        low, high = auc_difference(label_N, a, b, user_N).interval(0.9)
        held.append(low < 0 < high)
    # 90% give or take three standard errors of 400 trials.
    assert 0.855 < np.mean(held) < 0.945


def test_the_auc_interval_holds_the_truth_when_users_are_alike():
    rng = np.random.default_rng(7)
    label_N, _, a_N, _ = draw_clicks(rng, users=60_000, rows_a_user=5, taste=1.5)
    truth = auc_components(label_N, [a_N]).auc
    held = []
    for _ in range(300):
        label_N, user_N, a_N, _ = draw_clicks(rng, users=100, rows_a_user=5, taste=1.5)
        _, low, high = delong_interval(label_N, a_N, confidence=0.9, cluster_N=user_N)
        held.append(low < truth < high)
    assert 0.84 < np.mean(held) < 0.95


def test_several_seeds_add_their_variance():
    rng = np.random.default_rng(8)
    label_N, user_N, a_N, b_N = draw_clicks(rng)
    seeds_a = [a_N + 0.5 * rng.normal(size=len(a_N)) for _ in range(3)]
    seeds_b = [b_N + 0.5 * rng.normal(size=len(b_N)) for _ in range(2)]
    a, b = auc_components(label_N, seeds_a), auc_components(label_N, seeds_b)
    estimate = auc_difference(label_N, a, b, user_N)
    assert estimate.value == pytest.approx(
        np.mean([roc_auc_score(label_N, s) for s in seeds_a])
        - np.mean([roc_auc_score(label_N, s) for s in seeds_b])
    )
    sampling, _ = clustered_variance(label_N, a.component_N - b.component_N, user_N)
    noise = a.auc_S.var(ddof=1) / 3 + b.auc_S.var(ddof=1) / 2
    assert estimate.standard_error**2 == pytest.approx(sampling + noise)
    # Two equal seeds know no seed noise; the interval is the single seed's.
    once, twice = auc_components(label_N, [a_N]), auc_components(label_N, [a_N, a_N])
    assert auc_estimate(label_N, twice, user_N) == auc_estimate(label_N, once, user_N)


def test_two_seeds_that_disagree_give_few_degrees_of_freedom():
    # All the variance from one pair of seeds: Student's t with about one degree.
    label_N = np.tile([1.0, 0.0], 5_000)
    rng = np.random.default_rng(9)
    good_N, bad_N = label_N + rng.normal(size=10_000), rng.normal(size=10_000)
    a, b = auc_components(label_N, [good_N, bad_N]), auc_components(label_N, [bad_N])
    estimate = auc_difference(label_N, a, b)
    assert 1.0 <= estimate.degrees_of_freedom < 1.2
    assert estimate.p_value > 0.2


def test_interval_and_p_value_agree():
    estimate = Estimate(value=0.02, standard_error=0.01, degrees_of_freedom=40.0)
    assert estimate.p_value == pytest.approx(2 * stats.t.sf(2, 40))
    low, high = estimate.interval(1 - estimate.p_value)
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(0.04)


def test_the_difference_turns_its_sign_with_the_sides():
    label_N, user_N, a_N, b_N = draw_clicks(np.random.default_rng(10))
    a, b = auc_components(label_N, [a_N, b_N]), auc_components(label_N, [b_N])
    forth, back = auc_difference(label_N, a, b, user_N), auc_difference(label_N, b, a, user_N)
    assert forth.value == -back.value
    assert forth.standard_error == pytest.approx(back.standard_error, rel=1e-12)


def test_a_model_compared_with_itself_differs_by_nothing():
    label_N, user_N, a_N, _ = draw_clicks(np.random.default_rng(11))
    a = auc_components(label_N, [a_N])
    estimate = auc_difference(label_N, a, a, user_N)
    assert (estimate.value, estimate.standard_error, estimate.p_value) == (0.0, 0.0, 1.0)
    assert estimate.interval(0.95) == (0.0, 0.0)


def test_logit_intervals_stay_within_zero_and_one():
    for value, error in itertools.product((0.001, 0.5, 0.999), (1e-4, 0.3)):
        estimate = Estimate(value=value, standard_error=error, degrees_of_freedom=1.0)
        low, high = estimate.logit_interval(0.999)
        assert 0 <= low < value < high <= 1
    perfect = auc_estimate(np.tile([1.0, 0.0], 10), auc_components([1, 0] * 10, [[2, 1] * 10]))
    assert perfect.logit_interval() == (1.0, 1.0)


def test_what_cannot_work_is_refused():
    label_N, user_N, a_N, _ = draw_clicks(np.random.default_rng(12))
    components = auc_components(label_N, [a_N])
    with pytest.raises(ValueError, match="1 user has a click"):
        auc_estimate(label_N, components, np.zeros_like(user_N))
    with pytest.raises(ValueError, match=r"groups have shape \(3,\)"):
        auc_estimate(label_N, components, user_N[:3])
    with pytest.raises(ValueError, match="one array of predictions a seed"):
        auc_components(label_N, [])
    with pytest.raises(ValueError, match="confidence is 95"):
        delong_interval(label_N, a_N, confidence=95)
    with pytest.raises(ValueError, match="are for AUCs alone"):
        Estimate(value=-0.1, standard_error=0.1, degrees_of_freedom=9.0).logit_interval()
