"""Odds follow the clicks of earlier moments, and no others."""

import numpy as np
import pytest

from ranking.drift import follow_drift
from ranking.metrics import calibration_ratio


def test_the_factor_by_hand():
    # Moment 1 saw one click where 0.5 was expected: odds of 1/3 times (1 + 1) / (0.5 + 1).
    found_N = follow_drift([1, 0, 0], [0.25, 0.25, 0.25], [0, 0, 1], window=5, prior_clicks=1.0)
    odds = 1 / 3 * 2 / 1.5
    assert found_N == pytest.approx([0.25, 0.25, odds / (1 + odds)])


def test_a_rate_that_doubles_is_followed():
    rng = np.random.default_rng(0)
    moment_N = np.repeat(np.arange(2000), 10)
    rate_N = np.where(moment_N < 500, 0.05, 0.10)
    label_N = (rng.random(len(rate_N)) < rate_N).astype(float)
    p_N = np.full(len(rate_N), 0.05)
    late_N = moment_N >= 500
    assert calibration_ratio(label_N[late_N], p_N[late_N]) < 0.55
    followed_N = follow_drift(label_N, p_N, moment_N, window=100, prior_clicks=1.0)
    # Twice the odds of 5% is 9.5%, and the first hundred moments are behind.
    assert calibration_ratio(label_N[late_N], followed_N[late_N]) == pytest.approx(0.94, abs=0.02)


def test_labels_of_now_and_later_change_nothing_and_old_ones_are_forgotten():
    rng = np.random.default_rng(1)
    moment_N = np.repeat(np.arange(40), 5)
    label_N = rng.integers(0, 2, 200).astype(float)
    p_N = rng.uniform(0.1, 0.9, 200)
    before_N = follow_drift(label_N, p_N, moment_N, window=4)
    turned_N = follow_drift(np.where(moment_N >= 20, 1 - label_N, label_N), p_N, moment_N, window=4)
    np.testing.assert_array_equal(turned_N[moment_N <= 20], before_N[moment_N <= 20])
    assert not np.array_equal(turned_N[moment_N == 21], before_N[moment_N == 21])
    old_N = follow_drift(np.where(moment_N < 20, 1 - label_N, label_N), p_N, moment_N, window=4)
    np.testing.assert_allclose(old_N[moment_N >= 24], before_N[moment_N >= 24], rtol=1e-12)


@pytest.mark.parametrize(
    ("moment", "options", "message"),
    [
        ([0.0, 1.0], {"window": 2}, "whole numbers from 0"),
        ([-1, 0], {"window": 2}, "whole numbers from 0"),
        ([0, 1], {"window": 0}, "window is 0"),
        ([0, 1], {"window": 2, "prior_clicks": 0.0}, r"prior_clicks 0\.0"),
    ],
)
def test_what_cannot_be_followed_is_refused(moment, options, message):
    with pytest.raises(ValueError, match=message):
        follow_drift([0, 1], [0.2, 0.3], moment, **options)
