"""Intervals that may be looked at any time: narrow enough to be useful, wide enough to be true."""

import math

import numpy as np
import pytest

from experiments.always_valid import always_valid_margin, always_valid_p_value, take_looks
from experiments.lift import ratio_lift


def test_the_margin_is_waudby_smiths_boundary():
    # Their (2): sigma sqrt(2 (t rho^2 + 1) / (t^2 rho^2) log(sqrt(t rho^2 + 1) / alpha)).
    t, sigma, alpha = 400, 2.0, 0.05
    error, planned = sigma / math.sqrt(t), sigma / math.sqrt(1000)
    twice = -2 * math.log(alpha)
    rho2 = (twice + math.log1p(twice)) / 1000
    boundary = sigma * math.sqrt(
        2 * (t * rho2 + 1) / (t**2 * rho2) * math.log(math.sqrt(t * rho2 + 1) / alpha)
    )
    assert always_valid_margin(error, planned) == pytest.approx(boundary, rel=1e-12)


def test_the_margin_at_the_planned_end_is_near_its_least_and_twice_the_usual_at_most():
    at_end = always_valid_margin(0.1, 0.1)
    assert 1.96 * 0.1 < at_end < 1.6 * 1.96 * 0.1
    assert at_end < always_valid_margin(0.1, 0.03)
    assert at_end < always_valid_margin(0.1, 0.3)


@pytest.mark.parametrize("error", [0.02, 0.1, 0.4])
def test_the_p_value_is_alpha_at_the_edge_of_the_interval(error):
    margin = always_valid_margin(error, 0.1)
    assert always_valid_p_value(margin, error, 0.1) == pytest.approx(0.05, rel=1e-9)
    assert always_valid_p_value(0.5 * margin, error, 0.1) > 0.05
    assert always_valid_p_value(0.0, error, 0.1) == 1.0


def test_nineteen_looks_at_nothing_raise_at_most_five_false_alarms_in_a_hundred():
    rng = np.random.default_rng(0)
    trials, looks = 4_000, 19
    step = rng.normal(size=(trials, looks)).cumsum(axis=1)
    count_L = np.arange(1, looks + 1)
    error_L = 1 / np.sqrt(count_L)
    mean = step / count_L
    margin_L = np.array([always_valid_margin(e, error_L[-1]) for e in error_L])
    assert (np.abs(mean) > margin_L).any(axis=1).mean() < 0.05
    assert (np.abs(mean) > 1.96 * error_L).any(axis=1).mean() > 0.2


def test_looks_end_with_the_lift_of_the_whole_experiment_and_flip_with_the_arms():
    rng = np.random.default_rng(1)
    shown_U = rng.integers(1, 30, 300).astype(float)
    clicks_U = rng.binomial(shown_U.astype(int), 0.2).astype(float)
    treated_U = rng.random(300) < 0.5
    part_L = np.array([0.0, 0.3, 1.0])[:, None]
    sums = (np.floor(part_L * clicks_U), np.floor(part_L * shown_U))
    looks = take_looks(*sums, treated_U, planned_error=0.05)
    # Nothing was seen at the first look, so it says nothing.
    assert [look.share for look in looks] == pytest.approx([2 / 3, 1.0])
    assert looks[-1].lift == pytest.approx(ratio_lift("ctr", clicks_U, shown_U, treated_U).lift)
    assert looks[-1].low < looks[-1].lift < looks[-1].high
    swapped = take_looks(*sums, ~treated_U, planned_error=0.05)
    assert [math.log1p(a.lift) for a in looks] == pytest.approx(
        [-math.log1p(b.lift) for b in swapped], rel=1e-12
    )
    assert [a.p_value for a in looks] == [b.p_value for b in swapped]


def test_evidence_once_found_stays_found():
    """The p-value of a look is the smallest so far, however the lift falls back afterwards."""
    shown_U, treated_U = np.full(400, 50.0), np.arange(400) % 2 == 0
    strong_U = np.where(treated_U, 12.0, 8.0) + np.tile([0, 0, 1, 1], 100)
    back_U = np.full(400, 20.0) + np.tile([0, 0, 1, 1], 100)
    looks = take_looks(
        np.stack([strong_U, back_U]), np.stack([shown_U, 2 * shown_U]), treated_U,
        planned_error=0.01,
    )  # fmt: skip
    assert looks[0].p_value < 1e-6
    assert looks[1].p_value == looks[0].p_value
    assert looks[1].low < 0 < looks[1].high


def test_errors_that_are_none_are_refused():
    with pytest.raises(ValueError, match="planned_error is 0"):
        always_valid_margin(0.1, 0.0)
    with pytest.raises(ValueError, match="error is nan"):
        always_valid_margin(float("nan"), 0.1)
    with pytest.raises(ValueError, match="alpha is 5"):
        always_valid_margin(0.1, 0.1, alpha=5)
