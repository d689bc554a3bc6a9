"""The interval of a lift is checked by hand, by the bootstrap, and by its false alarms."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.lift import log_ratio, ratio_lift


def user_sums(rng, users=400, effect=0.0):
    """Clicks and impressions of users whose rates differ widely."""
    rate_U = rng.beta(0.5, 4.5, users)
    impressions_U = rng.poisson(12, users) + 1
    treated_U = np.arange(users) % 2 == 0
    clicks_U = rng.binomial(impressions_U, np.clip(rate_U * (1 + effect * treated_U), 0, 1))
    return clicks_U.astype(float), impressions_U.astype(float), treated_U


def test_delta_method_by_hand():
    # Two users a side. Control clicks/impressions 1/2 and 3/2: CTR 1; treatment 2/2 and 6/2:
    # CTR 2, lift 100%. Y/mean(Y) - X/mean(X) is -1/2 and +1/2 on both sides: variance 1/2,
    # over 2 users 1/4, together 1/2.
    lift = ratio_lift(
        "ctr", [1, 3, 2, 6], [2, 2, 2, 2], [False, False, True, True], confidence=0.95
    )
    assert lift.control == pytest.approx(1)
    assert lift.treatment == pytest.approx(2)
    assert lift.lift == pytest.approx(1)
    margin = stats.norm.isf(0.025) * math.sqrt(0.5)
    assert lift.low == pytest.approx(2 * math.exp(-margin) - 1)
    assert lift.high == pytest.approx(2 * math.exp(margin) - 1)
    assert lift.p_value == pytest.approx(2 * stats.norm.sf(math.log(2) / math.sqrt(0.5)))


def test_the_variance_equals_the_published_formula():
    y, x, _ = user_sums(np.random.default_rng(0))
    cov = np.cov(y, x, ddof=1)
    my, mx = y.mean(), x.mean()
    expected = (cov[0, 0] / my**2 - 2 * cov[0, 1] / (my * mx) + cov[1, 1] / mx**2) / len(y)
    log_r, variance = log_ratio(y, x, "ctr")
    assert variance == pytest.approx(expected, rel=1e-12)
    assert log_r == pytest.approx(math.log(y.sum() / x.sum()))


def test_the_delta_method_agrees_with_the_bootstrap_over_users():
    rng = np.random.default_rng(1)
    y, x, _ = user_sums(rng, users=600)
    rows = rng.integers(0, 600, (1_500, 600))
    bootstrap = np.log(y[rows].sum(1) / x[rows].sum(1)).std(ddof=1)
    assert math.sqrt(log_ratio(y, x, "ctr")[1]) == pytest.approx(bootstrap, rel=0.07)


def test_swapping_the_arms_turns_the_sign_exactly():
    y, x, treated = user_sums(np.random.default_rng(2), effect=0.3)
    forth, back = ratio_lift("ctr", y, x, treated), ratio_lift("ctr", y, x, ~treated)
    assert math.log1p(forth.lift) == pytest.approx(-math.log1p(back.lift), rel=1e-12)
    assert math.log1p(forth.low) == pytest.approx(-math.log1p(back.high), rel=1e-12)
    assert (1 + forth.lift) * (1 + back.lift) == pytest.approx(1, rel=1e-14)
    assert forth.p_value == back.p_value


def test_false_alarms_are_one_in_twenty_where_impressions_alone_would_give_many():
    rng = np.random.default_rng(3)
    ours, naive = [], []
    for _ in range(1_000):
        y, x, treated = user_sums(rng)
        ours.append(ratio_lift("ctr", y, x, treated).p_value < 0.05)
        rate, n = y.sum() / x.sum(), [x[treated].sum(), x[~treated].sum()]
        difference = y[treated].sum() / n[0] - y[~treated].sum() / n[1]
        error = math.sqrt(rate * (1 - rate) * (1 / n[0] + 1 / n[1]))
        naive.append(abs(difference) / error > stats.norm.isf(0.025))
    # 5% give or take three standard errors of 1,000 trials.
    assert 0.03 < np.mean(ours) < 0.071
    assert np.mean(naive) > 0.15


def test_ratios_without_a_logarithm_are_refused():
    with pytest.raises(ValueError, match="numerator sums to 0 over 2 users"):
        ratio_lift("ctr", [0, 0, 1, 1], [1, 1, 1, 1], [False, False, True, True])
    with pytest.raises(ValueError, match="1 users; at least two"):
        ratio_lift("ctr", [1, 1, 1], [1, 1, 1], [False, True, True])
