"""Ratio lifts, CUPED, sample ratio and power against tea-tasting, to nine digits."""

import math

import numpy as np
import polars as pl
import pytest
import tea_tasting as tt

from experiments.assignment import srm_check
from experiments.cuped import fit_adjustment, ratio_terms
from experiments.lift import log_ratio, ratio_lift
from experiments.power import minimum_detectable, plan_power, power_of, users_needed

CLOSE = {"rel": 1e-9, "abs": 1e-12}
NORMAL = {"use_t": False, "equal_var": False}


@pytest.fixture(scope="module")
def users() -> pl.DataFrame:
    """600 users who differ in activity and in how readily they click, before and during."""
    rng = np.random.default_rng(0)
    eager_U = rng.beta(2, 12, 600)
    columns = {"variant": (rng.random(600) < 0.5).astype(int)}
    for when in ("earlier", "now"):
        shown_U = 1 + rng.poisson(rng.gamma(1.5, 12, 600))
        columns[f"shown_{when}"] = shown_U
        columns[f"clicks_{when}"] = rng.binomial(shown_U, eager_U)
    return pl.DataFrame(columns).with_columns(
        clicks_now=pl.col("clicks_now") + pl.col("variant") * (pl.col("clicks_now") > 2)
    )


def column(users: pl.DataFrame, name: str) -> np.ndarray:
    return users[name].to_numpy().astype(np.float64)


def trusted(users, *columns, **more):
    metric = tt.RatioOfMeans(*columns, **NORMAL, **more)
    return tt.Experiment(ctr=metric).analyze(users)["ctr"]


def test_the_lift_of_a_ratio_agrees_with_tea_tasting(users):
    theirs = trusted(users, "clicks_now", "shown_now")
    treated_U = column(users, "variant") == 1
    ours = ratio_lift("ctr", column(users, "clicks_now"), column(users, "shown_now"), treated_U)
    assert (ours.control, ours.treatment) == pytest.approx(
        (theirs.control, theirs.treatment), **CLOSE
    )
    assert (ours.lift, ours.low, ours.high) == pytest.approx(
        (
            theirs.rel_effect_size,
            theirs.rel_effect_size_ci_lower,
            theirs.rel_effect_size_ci_upper,
        ),
        **CLOSE,
    )


def test_the_delta_methods_variance_agrees_with_tea_tasting(users):
    theirs = trusted(users, "clicks_now", "shown_now")
    treated_U = column(users, "variant") == 1
    variance = 0.0
    for arm_U in (treated_U, ~treated_U):
        sums = column(users, "clicks_now")[arm_U], column(users, "shown_now")[arm_U]
        variance += ratio_terms(*sums).var(ddof=1) / arm_U.sum()
    assert theirs.effect_size / theirs.statistic == pytest.approx(math.sqrt(variance), **CLOSE)


def test_cuped_of_a_ratio_agrees_with_tea_tasting(users):
    names = ("clicks_now", "shown_now", "clicks_earlier", "shown_earlier")
    theirs = trusted(users, *names)
    clicks, shown, earlier_clicks, earlier_shown = (column(users, name) for name in names)
    treated_U = column(users, "variant") == 1
    ours = ratio_lift("ctr", clicks, shown, treated_U, earlier=(earlier_clicks, earlier_shown))
    assert (ours.control, ours.treatment) == pytest.approx(
        (theirs.control, theirs.treatment), **CLOSE
    )
    assert (ours.low, ours.high) == pytest.approx(
        (theirs.rel_effect_size_ci_lower, theirs.rel_effect_size_ci_upper), **CLOSE
    )
    plain = ratio_lift("ctr", clicks, shown, treated_U)
    assert ours.error < 0.95 * plain.error


def test_the_sample_ratio_check_agrees_with_tea_tasting(users):
    theirs = tt.Experiment(ratio=tt.SampleRatio(1, method="norm", correction=False)).analyze(users)
    treated = int(users["variant"].sum())
    assert srm_check(len(users) - treated, treated) == pytest.approx(
        theirs["ratio"].pvalue, **CLOSE
    )


def test_power_and_detectable_effect_agree_with_tea_tasting(users):
    clicks, shown = column(users, "clicks_now"), column(users, "shown_now")
    metric = tt.RatioOfMeans("clicks_now", "shown_now", **NORMAL, power=0.8, rel_effect_size=0.08)
    table = users.drop("variant")
    log_mean, variance = log_ratio(clicks, shown, "ctr")
    absolute = math.exp(log_mean) * math.sqrt(4 * variance)
    theirs = metric.solve_power(table, "rel_effect_size")[0].effect_size
    assert minimum_detectable(absolute) == pytest.approx(theirs, rel=1e-9)
    power = metric.solve_power(table, "power")[0].power
    assert power_of(0.08 * math.exp(log_mean), absolute) == pytest.approx(power, **CLOSE)
    needed = metric.solve_power(table, "n_obs")[0].n_obs
    per_user = variance * math.exp(2 * log_mean) * len(users)
    assert users_needed(per_user, 0.08 * math.exp(log_mean)) == needed


def test_a_plan_finds_its_own_effect_at_its_own_power(users):
    plan = plan_power("ctr", column(users, "clicks_now"), column(users, "shown_now"))
    assert plan.power_at(plan.minimum_detectable) == pytest.approx(0.8, abs=1e-12)
    assert plan.power_at(0.0) == pytest.approx(0.05)
    assert power_of(0.3, 0.1) == power_of(-0.3, 0.1)
    uneven = plan_power(
        "ctr", column(users, "clicks_now"), column(users, "shown_now"), treatment_share=0.1
    )
    assert uneven.error == pytest.approx(plan.error * math.sqrt((1 / 0.9 + 1 / 0.1) / 4))


def test_swapping_the_arms_turns_the_sign_exactly_with_and_without_cuped(users):
    names = ("clicks_now", "shown_now", "clicks_earlier", "shown_earlier")
    clicks, shown, *earlier = (column(users, name) for name in names)
    treated_U = column(users, "variant") == 1
    for past in (None, tuple(earlier)):
        one = ratio_lift("ctr", clicks, shown, treated_U, earlier=past)
        other = ratio_lift("ctr", clicks, shown, ~treated_U, earlier=past)
        assert (one.control, one.treatment) == (other.treatment, other.control)
        assert (one.error, one.p_value) == (other.error, other.p_value)
        assert math.log1p(one.lift) == pytest.approx(-math.log1p(other.lift), rel=1e-13)
        assert math.log1p(one.low) == pytest.approx(-math.log1p(other.high), rel=1e-13)


def test_a_past_that_foretells_nothing_costs_nothing():
    rng = np.random.default_rng(3)
    clicks_U, shown_U = rng.poisson(4, 2_000) + 0.0, np.full(2_000, 20.0)
    earlier = (rng.poisson(4, 2_000) + 0.0, np.full(2_000, 20.0))
    assert abs(fit_adjustment((clicks_U, shown_U), earlier).coefficient) < 0.05
    treated_U = rng.random(2_000) < 0.5
    plain = ratio_lift("ctr", clicks_U, shown_U, treated_U)
    adjusted = ratio_lift("ctr", clicks_U, shown_U, treated_U, earlier=earlier)
    assert adjusted.error == pytest.approx(plain.error, rel=0.01)


def test_what_cannot_be_planned_or_adjusted_is_refused():
    ones = np.ones(10)
    with pytest.raises(ValueError, match="the users have no past to adjust by"):
        fit_adjustment((ones, ones), (np.zeros(10), np.zeros(10)))
    with pytest.raises(ValueError, match=r"error=0 must be positive"):
        power_of(0.1, 0)
    with pytest.raises(ValueError, match=r"power is 0.01; it must lie between alpha"):
        minimum_detectable(0.1, power=0.01)
    with pytest.raises(ValueError, match="effect=0 must differ from 0"):
        users_needed(1.0, 0)
    with pytest.raises(ValueError, match="treatment_share is 1"):
        plan_power("ctr", ones, ones, treatment_share=1)
    with pytest.raises(ValueError, match="ctr in the pre-period: the numerator sums to 0"):
        plan_power("ctr", 0 * ones, ones)
