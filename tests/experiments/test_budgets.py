"""Budgets: money ends, pacing makes it last, and splitting users misleads where arms share it."""

import numpy as np
import polars as pl
import pytest

from experiments.ab_counts import Draws
from experiments.interference import compare_splits
from experiments.marketplace.budgets import (
    read_budgets,
    serve_with_budgets,
    unlimited_spend,
)
from experiments.self_test_market import SmallMarket

MARKET = SmallMarket.draw(4)
WORLD = MARKET.world
REQUESTS = WORLD.draw_requests(3000, 1)
SCORE_RK = MARKET.score(REQUESTS, 0.3)
SPEND_P = unlimited_spend(WORLD, REQUESTS, SCORE_RK)


def serve(budget_P, **more):
    return serve_with_budgets(WORLD, REQUESTS, SCORE_RK, budget_P[None], **more)


def test_without_limits_budgets_change_nothing():
    free, plain = serve(np.full_like(SPEND_P, np.inf)), WORLD.run(REQUESTS, SCORE_RK)
    for name in ("shown_RS", "price_micros_RS", "p_click_RS", "value_micros_RS"):
        assert np.array_equal(getattr(free.outcome, name), getattr(plain, name))
    assert free.spent_micros_AP[0] == pytest.approx(SPEND_P)
    assert free.stopped_share == 0.0


@pytest.mark.parametrize("pacing", ["none", "throttle", "multiplicative"])
def test_nobody_spends_much_more_than_the_budget(pacing):
    served = serve(0.4 * SPEND_P, pacing=pacing)
    spent_P, spends_P = served.spent_micros_AP[0], SPEND_P > 0
    # What is over was spent within the block in which the money ended.
    assert spent_P[spends_P].sum() < 0.45 * SPEND_P.sum()
    assert served.outcome.shown_RS.shape == (len(REQUESTS), WORLD.parameters.slots)


def test_pacing_makes_money_last_to_the_end():
    budget_P = 0.4 * SPEND_P
    late = {}
    for pacing in ("none", "throttle", "multiplicative"):
        outcome = serve(budget_P, pacing=pacing).outcome
        cost_R = (outcome.price_micros_RS * outcome.p_click_RS).sum(axis=1)
        late[pacing] = cost_R[2400:].sum() / cost_R.sum()
    assert late["none"] < 0.08
    assert late["throttle"] > 2 * late["none"]
    assert late["multiplicative"] > 2 * late["none"]


def test_scaled_bids_leave_the_value_of_a_click_alone():
    served = serve(0.4 * SPEND_P, pacing="multiplicative")
    shown_RS = served.outcome.shown_RS
    bid_RS = np.take_along_axis(REQUESTS.bid_micros_RK, np.maximum(shown_RS, 0), axis=1)
    assert np.array_equal(served.outcome.value_micros_RS, np.where(shown_RS >= 0, bid_RS, 0))


def split(control_RK, treatment_RK, treated_U, **more):
    shape = (len(REQUESTS), WORLD.parameters.slots)
    return compare_splits(
        WORLD,
        REQUESTS,
        control_RK,
        treatment_RK,
        user_R=REQUESTS.user_R,
        treated_U=treated_U,
        draws=Draws.draw(shape, np.random.default_rng(5)),
        **{"budget_share": 0.4, "pacing": "none", **more},
    )


def test_where_budgets_bind_a_user_split_is_biased_and_a_budget_split_is_not():
    """Budgets are spent whichever model ranks, so revenue cannot change; users split say it does.

    The cheaper arm leaves money to the other, which looks as if the other had earned it.
    """
    treated_U = np.arange(len(WORLD.state.user_id_U)) % 2 == 0
    report = split(SCORE_RK, MARKET.score(REQUESTS, 1.5), treated_U)
    assert report.stopped_share > 0.9
    for name, least_bias in (("revenue_per_request", 0.15), ("clicks_per_request", 0.2)):
        true = report.user_split[name].true
        users, budgets = report.user_split_expected[name], report.budget_split_expected[name]
        assert abs(users - true) > least_bias
        assert abs(budgets - true) < 0.3 * abs(users - true)
    assert abs(report.user_split["revenue_per_request"].true) < 0.03
    figures = report.to_metrics()
    assert figures["ab.budgets.user_split.clicks_per_request.expected"] == users
    assert figures["ab.budgets.budget_split.clicks_per_request.true"] == true


def test_the_same_arm_twice_shows_nothing_in_either_split():
    treated_U = np.arange(len(WORLD.state.user_id_U)) % 2 == 0
    report = split(SCORE_RK, SCORE_RK, treated_U)
    for lift in report.user_split.values():
        assert lift.true == 0.0
        assert lift.low < 0 < lift.high


def test_budgets_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"product row 3 is -1 micros; it must be 0 or more"):
        serve(np.where(np.arange(len(SPEND_P)) == 3, -1.0, SPEND_P))
    with pytest.raises(ValueError, match="product row 0 is nan"):
        serve(np.full_like(SPEND_P, np.nan))
    with pytest.raises(ValueError, match="all budgets are zero"):
        serve(np.zeros_like(SPEND_P))
    with pytest.raises(ValueError, match="one a product is needed in each account, 200 products"):
        serve(SPEND_P[:5])
    treated_U = np.arange(len(WORLD.state.user_id_U)) % 2 == 0
    with pytest.raises(ValueError, match="give exactly one of them"):
        split(SCORE_RK, SCORE_RK, treated_U, budget_micros_P=SPEND_P)
    with pytest.raises(ValueError, match="budget_share is nan; it must be positive"):
        split(SCORE_RK, SCORE_RK, treated_U, budget_share=float("nan"))

    def file(**columns):
        pl.DataFrame(columns).write_csv(tmp_path / "budgets.csv")
        return tmp_path / "budgets.csv"

    good = read_budgets(file(product_id=["p3", "p1"], budget=[2.5, 1], currency="USD"), WORLD)
    assert good[[1, 3]].tolist() == [1e6, 2.5e6]
    assert np.isinf(good[0])
    with pytest.raises(ValueError, match=r"budgets in EUR, but bids and prices .* are in USD"):
        read_budgets(file(product_id=["p1"], budget=[1.0], currency=["EUR"]), WORLD)
    with pytest.raises(ValueError, match="unknown product 'nobody'"):
        read_budgets(file(product_id=["nobody"], budget=[1.0]), WORLD)
    with pytest.raises(ValueError, match="'p1' more than once"):
        read_budgets(file(product_id=["p1", "p1"], budget=[1.0, 2.0]), WORLD)
    with pytest.raises(ValueError, match="lacks budget"):
        read_budgets(file(product_id=["p1"]), WORLD)
