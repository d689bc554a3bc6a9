"""The auction against brute force, and the click model against its parameters."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.marketplace.auction import run_auction
from experiments.marketplace.clicks import class_intercepts, hash_normal
from experiments.marketplace.parameters import CLARA2_CTR_BY_RANK, WorldParameters


def slot_of(column: int, shown_S: np.ndarray) -> int | None:
    where = np.flatnonzero(shown_S == column)
    return int(where[0]) if len(where) else None


@settings(max_examples=60, deadline=None)
@given(
    # Scores in 64ths are exact in floating point, so ties are true ties.
    score=st.lists(st.integers(1, 64), min_size=1, max_size=6),
    seed=st.integers(0, 10_000),
    slots=st.integers(1, 4),
    reserve=st.integers(0, 15),
    squashing=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
def test_the_price_is_the_lowest_bid_that_keeps_the_slot(score, seed, slots, reserve, squashing):
    score_K = np.array(score) / 64
    bid_K = np.random.default_rng(seed).integers(-1, 40, len(score_K))
    rules = {"slots": slots, "reserve_micros": reserve, "squashing": squashing}
    shown_RS, price_RS = run_auction(score_K[None], bid_K[None], **rules)
    for slot, column in enumerate(shown_RS[0]):
        if column < 0:
            assert price_RS[0, slot] == 0
            continue
        cheapest = None
        for bid in range(reserve, bid_K[column] + 1):
            lower_K = bid_K.copy()
            lower_K[column] = bid
            again_RS, _ = run_auction(score_K[None], lower_K[None], **rules)
            if slot_of(column, again_RS[0]) == slot:
                cheapest = bid
                break
        assert cheapest is not None
        assert price_RS[0, slot] == cheapest


def test_ranking_and_prices_by_hand():
    # Rank scores 20, 30, 15; the bid of 4 is under the reserve of 5. At 200 the second column would
    # tie with the first, which stands earlier, so it takes 201 to win.
    shown_RS, price_RS = run_auction(
        np.array([[0.2, 0.1, 0.5, 0.9]]),
        np.array([[100, 300, 30, 4]]),
        slots=3,
        reserve_micros=5,
    )
    assert shown_RS.tolist() == [[1, 0, 2]]
    assert price_RS.tolist() == [[201, 75, 5]]


def best_welfare(worth_K: np.ndarray, look_S: np.ndarray) -> float:
    """Largest sum of look times worth over all ways to fill the slots, by enumeration."""
    shown = min(len(look_S), len(worth_K))
    return max(
        float(np.dot(look_S[:shown], worth_K[list(order)]))
        for order in permutations(range(len(worth_K)), shown)
    )


@settings(max_examples=60, deadline=None)
@given(
    score=st.lists(st.integers(1, 64), min_size=1, max_size=5),
    seed=st.integers(0, 10_000),
    slots=st.integers(1, 3),
)
def test_vcg_charges_the_harm_to_the_others(score, seed, slots):
    """The definition: what the others would get without me, less what they get with me."""
    look_S = np.array([1.0, 0.5, 0.25])[:slots]
    score_K = np.array(score) / 64
    bid_K = np.random.default_rng(seed).integers(1_000, 40_000, len(score_K))
    worth_K = score_K * bid_K
    shown_RS, price_RS = run_auction(
        score_K[None],
        bid_K[None],
        slots=slots,
        reserve_micros=0,
        pricing="vcg",
        examination=look_S,
    )
    for slot, column in enumerate(shown_RS[0]):
        if column < 0:
            continue
        others_K = np.delete(worth_K, column)
        without = best_welfare(others_K, look_S) if len(others_K) else 0.0
        with_me = best_welfare(worth_K, look_S) - look_S[slot] * worth_K[column]
        harm = (without - with_me) / (look_S[slot] * score_K[column])
        assert price_RS[0, slot] == pytest.approx(max(harm, 0), abs=1.01)
        assert price_RS[0, slot] >= harm - 1e-6


def test_vcg_costs_at_most_the_second_price_and_first_price_the_bid():
    rng = np.random.default_rng(1)
    score_RK, bid_RK = rng.random((300, 9)), rng.integers(1, 10**6, (300, 9))
    rules = {"slots": 4, "reserve_micros": 1000}
    shown_RS, second_RS = run_auction(score_RK, bid_RK, **rules)
    vcg = run_auction(score_RK, bid_RK, **rules, pricing="vcg", examination=(1, 0.5, 0.3, 0.1))
    first = run_auction(score_RK, bid_RK, **rules, pricing="first_price")
    for other_RS, _ in (vcg, first):
        assert np.array_equal(other_RS, shown_RS)
    assert (vcg[1] <= second_RS).all() and (vcg[1] < second_RS).any()
    paid = np.take_along_axis(bid_RK, np.maximum(shown_RS, 0), axis=1)
    assert np.array_equal(first[1], np.where(shown_RS >= 0, paid, 0))
    # In one slot the harm to the others is the second price.
    one = {"slots": 1, "reserve_micros": 0}
    assert np.array_equal(
        run_auction(score_RK, bid_RK, **one, pricing="vcg", examination=(1.0,))[1],
        run_auction(score_RK, bid_RK, **one)[1],
    )


def test_squashed_to_nothing_the_highest_bid_wins():
    score_RK, bid_RK = np.array([[0.9, 0.1, 0.5]]), np.array([[10, 30, 20]])
    rules = {"slots": 2, "reserve_micros": 0}
    assert run_auction(score_RK, bid_RK, **rules)[0].tolist() == [[2, 0]]
    shown_RS, price_RS = run_auction(score_RK, bid_RK, **rules, squashing=0.0)
    assert (shown_RS.tolist(), price_RS.tolist()) == ([[1, 2]], [[20, 11]])


def test_rules_that_make_no_auction_are_refused():
    score_RK, bid_RK = np.array([[0.5, 0.5]]), np.array([[10, 20]])
    rules = {"slots": 2, "reserve_micros": 0}
    with pytest.raises(ValueError, match="pricing is 'gps'; gsp, first_price and vcg are known"):
        run_auction(score_RK, bid_RK, **rules, pricing="gps")
    with pytest.raises(ValueError, match="squashing is 3"):
        run_auction(score_RK, bid_RK, **rules, squashing=3)
    for look in (None, (1.0,), (0.5, 1.0)):
        with pytest.raises(ValueError, match="VCG prices the looks lost by those below"):
            run_auction(score_RK, bid_RK, **rules, pricing="vcg", examination=look)
    with pytest.raises(ValueError, match="no slot may be looked at more than the one above"):
        WorldParameters(pricing="vcg", slots=2, examination=(0.5, 1.0))
    with pytest.raises(ValueError, match="take gsp or first_price"):
        WorldParameters(pricing="vcg", examination_model="cascade")


def test_more_slots_than_candidates_stay_empty():
    shown_RS, price_RS = run_auction(
        np.array([[0.5, 0.5]]), np.array([[10, -1]]), slots=3, reserve_micros=0
    )
    assert shown_RS.tolist() == [[0, -1, -1]]
    assert price_RS.tolist() == [[0, 0, 0]]


def test_no_winner_pays_more_than_it_bid():
    rng = np.random.default_rng(0)
    score_RK, bid_RK = rng.random((500, 20)), rng.integers(1, 10**6, (500, 20))
    shown_RS, price_RS = run_auction(score_RK, bid_RK, slots=8, reserve_micros=1000)
    paid = np.take_along_axis(bid_RK, np.maximum(shown_RS, 0), axis=1)
    assert (price_RS <= paid)[shown_RS >= 0].all()
    assert (price_RS >= 1000)[shown_RS >= 0].all()


@pytest.mark.parametrize(
    ("score", "bid", "slots", "message"),
    [
        ([[-0.1]], [[1]], 1, "were logits passed"),
        ([[np.nan]], [[1]], 1, "must be finite"),
        ([[0.1, 0.2]], [[1]], 1, "must be"),
        ([[0.1]], [[1]], 0, "slots=0"),
    ],
)
def test_scores_that_cannot_be_ranked_are_refused(score, bid, slots, message):
    with pytest.raises(ValueError, match=message):
        run_auction(np.array(score), np.array(bid), slots=slots, reserve_micros=0)


def test_the_default_position_curve_is_clara2s():
    look_S = np.array(WorldParameters().examination)
    assert look_S == pytest.approx(np.array(CLARA2_CTR_BY_RANK) / 0.151)


def test_class_intercepts_give_the_click_rates_of_the_source():
    parameters = WorldParameters()
    p = parameters
    spread = np.sqrt(p.quality_sd**2 + p.fit_sd**2 + p.taste_sd**2 + p.price_sd**2 + p.whim_sd**2)
    normal_N = np.random.default_rng(0).normal(size=400_000)
    for intercept, rate in zip(class_intercepts(p), p.click_rate_by_class, strict=True):
        drawn = 1 / (1 + np.exp(-(intercept + spread * normal_N)))
        assert drawn.mean() == pytest.approx(rate, rel=0.01)


def test_without_relevance_effect_all_classes_are_alike():
    intercept_3 = class_intercepts(WorldParameters(relevance_effect=0.0))
    assert np.ptp(intercept_3) == 0


def test_hashed_numbers_are_standard_normal_and_independent():
    first, second = np.arange(600)[:, None], np.arange(700)[None, :]
    a, b = hash_normal(first, second, 3, 11), hash_normal(first, second, 3, 12)
    assert a.mean() == pytest.approx(0, abs=0.01)
    assert a.std() == pytest.approx(1, abs=0.01)
    for other in (b, hash_normal(first, second, 4, 11), np.roll(a, 1, 0), np.roll(a, 1, 1)):
        assert abs(np.corrcoef(a.ravel(), other.ravel())[0, 1]) < 0.01
    assert np.array_equal(a, hash_normal(first, second, 3, 11))
