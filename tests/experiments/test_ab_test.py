"""The simulated A/B test: honest intervals, an exact truth, and no way to flatter oneself."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from experiments.ab_result import AbResult
from experiments.ab_test import simulate_ab
from experiments.distortions import DISTORTIONS
from experiments.preregistration import Preregistration

RULE = Preregistration(
    control="a",
    treatment="b",
    metric="ctr",
    test="delta",
    alpha=0.001,
    requests=901,
    looks=0,
    salt="adtower",
    seed=1,
    calibration_requests=902,
    minimum_detectable=None,
)


def plain_ab(world, control, treatment, **more):
    """The test without its gate and pre-period, which have tests of their own."""
    return simulate_ab(
        world, control, treatment, **{"calibration_requests": 0, "pre_period": False, **more}
    )


@dataclass
class ToyWorld:
    """Five candidates a request, two slots, and users who differ much in how they click."""

    users: int = 300
    base_rate: float = 0.1
    purchase_rate: float = 0.5
    grades: bool = True
    padding: bool = True

    def draw_requests(self, n, seed):
        rng = np.random.default_rng([seed, 1])
        appeal_RK = rng.random((n, 5))
        user_R = rng.integers(0, self.users, n)
        eager_U = np.random.default_rng([seed, 2]).gamma(0.5, 2.0, self.users)
        candidate_RK = np.tile(np.arange(5), (n, 1))
        candidate_RK[::7, 4] = -1
        return SimpleNamespace(
            user_R=np.array([f"u{code}" for code in user_R]),
            candidate_RK=candidate_RK,
            bid_micros_RK=rng.integers(200_000, 2_000_000, (n, 5)),
            appeal_RK=appeal_RK,
            eager_R=eager_U[user_R],
        )

    def candidate_table(self, requests):
        present_N = requests.candidate_RK.ravel() >= 0
        table = pl.DataFrame({"appeal": requests.appeal_RK.ravel()})
        return table if self.padding else table.filter(pl.Series(present_N))

    def run(self, requests, pctr_RK):
        score_RK = np.where(requests.candidate_RK >= 0, pctr_RK * requests.bid_micros_RK, -1.0)
        order_RK = np.argsort(-score_RK, axis=1, kind="stable")
        shown_RS = order_RK[:, :2]
        take = np.take_along_axis
        next_RS = np.maximum(take(score_RK, order_RK[:, 1:3], axis=1), 0)
        price_RS = next_RS / np.maximum(take(pctr_RK, shown_RS, axis=1), 1e-9)
        appeal_RS = take(requests.appeal_RK, shown_RS, axis=1)
        p_click_RS = self.base_rate * appeal_RS * requests.eager_R[:, None] * np.array([1.0, 0.5])
        p_click_RS = np.clip(p_click_RS, 0, 1)
        outcome = SimpleNamespace(
            shown_RS=shown_RS,
            price_micros_RS=price_RS,
            p_click_RS=p_click_RS,
            p_purchase_RS=self.purchase_rate * appeal_RS,
        )
        if self.grades:
            outcome.relevance_RS = np.floor(3 * appeal_RS)
            outcome.value_micros_RS = take(requests.bid_micros_RK, shown_RS, axis=1)
        return outcome


def knows(table):
    return table["appeal"].to_numpy()


def knows_nothing(table):
    return np.full(table.height, 0.5)


def test_a_policy_against_itself_has_no_true_lift_and_about_5_percent_false_alarms():
    alarms, trials = {"ctr": 0, "rpm": 0, "cvr": 0}, 200
    for seed in range(trials):
        result = plain_ab(ToyWorld(users=120, base_rate=0.2), knows, knows, requests=500, seed=seed)
        for name in alarms:
            assert result.lifts[name].true == 0.0
            alarms[name] += result.lifts[name].p_value < 0.05
    for name, count in alarms.items():
        # With 60 users a side and skewed rates the normal quantile is a little short.
        assert 0.01 < count / trials < 0.11, f"{name}: {count / trials}"


def test_intervals_hold_the_true_lift():
    held = {"ctr": [], "rpm": []}
    for seed in range(100):
        result = plain_ab(
            ToyWorld(users=200, base_rate=0.2), knows_nothing, knows, requests=800, seed=seed
        )
        for name, hits in held.items():
            lift = result.lifts[name]
            hits.append(lift.low < lift.true < lift.high)
    assert min(np.mean(hits) for hits in held.values()) > 0.89


def test_a_model_that_knows_wins_and_the_truth_is_the_ratio_of_expectations():
    world = ToyWorld(users=3_000, base_rate=0.3)
    result = plain_ab(world, knows_nothing, knows, requests=4_000, seed=5)
    ctr = result.lifts["ctr"]
    assert ctr.low > 0
    requests = world.draw_requests(4_000, 5)
    clicks = [
        world.run(requests, np.where(requests.candidate_RK >= 0, p_RK, 0)).p_click_RS.sum()
        for p_RK in (requests.appeal_RK, np.full((4_000, 5), 0.5))
    ]
    # Both fill both slots of every request, so the impressions cancel.
    assert ctr.true == pytest.approx(clicks[0] / clicks[1] - 1, rel=1e-12)
    bought = [
        world.run(requests, np.where(requests.candidate_RK >= 0, p_RK, 0))
        for p_RK in (requests.appeal_RK, np.full((4_000, 5), 0.5))
    ]
    rate = [(o.p_click_RS * o.p_purchase_RS).sum() / o.p_click_RS.sum() for o in bought]
    assert result.lifts["cvr"].true == pytest.approx(rate[0] / rate[1] - 1, rel=1e-12)
    assert set(result.lifts) == {"calibration", "ctr", "cvr", "rpm", "cpc", "welfare", "relevance"}
    assert result.lifts["relevance"].true > 0
    back = plain_ab(world, knows, knows_nothing, requests=4_000, seed=5)
    assert (1 + back.lifts["ctr"].true) * (1 + ctr.true) == pytest.approx(1, rel=1e-12)


def test_the_same_seed_gives_the_same_result_and_another_salt_other_arms():
    def run(seed=1, salt="a"):
        return plain_ab(ToyWorld(), knows_nothing, knows, requests=800, seed=seed, salt=salt)

    assert run() == run()
    assert run() != run(seed=2)
    assert run(salt="b").lifts["ctr"].control != run().lifts["ctr"].control
    assert run(salt="b").lifts["ctr"].true == run().lifts["ctr"].true


def test_scaling_a_models_scores_changes_no_ranking_and_no_ctr():
    # Equal factors cancel in score x bid; only a change of order can move clicks.
    world = ToyWorld()
    plain = plain_ab(world, knows_nothing, knows, requests=800, seed=1)
    scaled = plain_ab(world, knows_nothing, lambda t: knows(t) / 2, requests=800, seed=1)
    assert scaled.lifts["ctr"] == plain.lifts["ctr"]
    assert scaled.lifts["rpm"].lift == pytest.approx(plain.lifts["rpm"].lift, rel=1e-6)


def test_candidate_tables_with_and_without_padding_agree():
    arguments = {"requests": 500, "seed": 3}
    padded = plain_ab(ToyWorld(), knows_nothing, knows, **arguments)
    assert padded == plain_ab(ToyWorld(padding=False), knows_nothing, knows, **arguments)


def test_a_world_without_values_and_grades_leaves_those_metrics_out():
    result = plain_ab(ToyWorld(grades=False), knows_nothing, knows, requests=500, seed=1)
    assert set(result.lifts) == {"calibration", "ctr", "cvr", "rpm", "cpc"}


def test_every_metric_by_hand():
    """Two users an arm, one request each, one slot; what is certain to happen happens."""

    class Certain:
        def draw_requests(self, requests, seed):
            return SimpleNamespace(
                user_R=np.arange(requests),
                candidate_RK=np.array([[7, 9]] * requests),
            )

        def candidate_table(self, requests):
            return pl.DataFrame({"product": requests.candidate_RK.ravel()})

        def run(self, requests, pctr_RK):
            best_RS = pctr_RK.argmax(axis=1, keepdims=True)
            return SimpleNamespace(
                shown_RS=best_RS,
                price_micros_RS=np.where(best_RS == 0, 500_000, 2_000_000),
                p_click_RS=np.ones(best_RS.shape),
                p_purchase_RS=np.ones(best_RS.shape),
                value_micros_RS=np.where(best_RS == 0, 1_000_000, 3_000_000),
                relevance_RS=best_RS + 1,
            )

    result = plain_ab(
        Certain(),
        lambda table: (table["product"] == 7).cast(float).to_numpy(),
        lambda table: (table["product"] == 9).cast(float).to_numpy(),
        requests=40,
        seed=0,
    )
    expected = {
        "ctr": (1, 1),
        "cvr": (1, 1),
        "rpm": (500, 2_000),
        "cpc": (0.5, 2),
        "welfare": (1_000, 3_000),
        "relevance": (1, 2),
        "calibration": (1, 1),
    }
    for name, (control, treatment) in expected.items():
        lift = result.lifts[name]
        assert (lift.control, lift.treatment) == pytest.approx((control, treatment))
        assert lift.lift == pytest.approx(treatment / control - 1)
        assert lift.true == pytest.approx(lift.lift)


def test_empty_slots_count_for_nothing_whatever_they_hold():
    class HalfEmpty(ToyWorld):
        def run(self, requests, pctr_RK):
            outcome = super().run(requests, pctr_RK)
            for held in vars(outcome).values():
                held[:, 1] = 1
            outcome.shown_RS[:, 1] = -1
            return outcome

    class OneSlot(ToyWorld):
        def run(self, requests, pctr_RK):
            outcome = super().run(requests, pctr_RK)
            outcome.shown_RS[:, 1] = -1
            for key, held in vars(outcome).items():
                held[:, 1] = held[:, 1] if key == "shown_RS" else 0
            return outcome

    arguments = {"requests": 500, "seed": 4}
    assert plain_ab(HalfEmpty(), knows_nothing, knows, **arguments) == plain_ab(
        OneSlot(), knows_nothing, knows, **arguments
    )


def test_purchases_come_at_the_worlds_rate_after_clicks():
    world = ToyWorld(users=3_000, base_rate=0.3)
    result = plain_ab(world, knows, knows, requests=6_000, seed=2)
    requests = world.draw_requests(6_000, 2)
    outcome = world.run(requests, np.where(requests.candidate_RK >= 0, requests.appeal_RK, 0))
    purchases_RS = outcome.p_click_RS * outcome.p_purchase_RS
    expected = purchases_RS.sum() / outcome.p_click_RS.sum()
    assert result.lifts["cvr"].control == pytest.approx(expected, rel=0.1)


def test_no_purchases_leave_cvr_undefined_and_say_so():
    result = plain_ab(ToyWorld(purchase_rate=0.0), knows, knows, requests=500, seed=1)
    assert "cvr" not in result.lifts
    assert result.undefined["cvr"] == "no purchases in the control arm"
    assert "ab.cvr.lift" not in result.to_metrics()


def test_a_broken_split_is_flagged_and_overrides_the_verdict():
    result = plain_ab(ToyWorld(), knows_nothing, knows, requests=500, seed=1)
    assert not result.srm_failed
    broken = replace(result, srm_p_value=1e-6)
    assert broken.srm_failed
    assert broken.verdict().startswith("The split is broken")


def test_results_are_flat_survive_json_and_print():
    world = ToyWorld(users=3_000, base_rate=0.3)
    result = plain_ab(world, knows_nothing, knows, requests=4_000, seed=1)
    assert AbResult.from_json(result.to_json()) == result
    metrics = result.to_metrics()
    for name in ("ctr", "cvr", "rpm"):
        for key in ("lift", "low", "high", "true"):
            assert np.isfinite(metrics[f"ab.{name}.{key}"])
    assert all(type(value) is float for value in metrics.values())
    assert "raises ctr (+" in result.verdict()
    console = Console(width=120)
    with console.capture() as capture:
        console.print(result.table())
    assert f"[{result.lifts['ctr'].low:+.1%}," in capture.get()
    with pytest.raises(ValueError, match="not an A/B result of this version"):
        AbResult.from_json('{"lifts": {}}')


def gated_ab(treatment, **more):
    """The test as it is by default, small."""
    settings = {"requests": 1_500, "seed": 3, "calibration_requests": 1_500, **more}
    return simulate_ab(ToyWorld(users=400, base_rate=0.2), knows_nothing, treatment, **settings)


def half_knows(table):
    """Right about most candidates, and never above one half, so that it can be doubled."""
    appeal_N = table["appeal"].to_numpy()
    return 0.05 + 0.4 * np.sqrt(appeal_N) + 0.04 * np.sin(40 * appeal_N)


@pytest.mark.parametrize("name", list(DISTORTIONS))
def test_no_distortion_of_its_scores_changes_a_models_lift(name):
    """Every figure is the same to the bit: estimates, truth, CUPED, looks and power."""
    plain = gated_ab(half_knows, distort=False)
    bent = gated_ab(lambda table: DISTORTIONS[name](half_knows(table)), distort=False)
    assert bent.lifts == plain.lifts
    assert (bent.cuped, bent.looks, bent.power) == (plain.cuped, plain.looks, plain.power)
    # As scored the same model pays other prices and is called another thing by calibration.
    assert bent.raw["calibration"].lift != pytest.approx(plain.raw["calibration"].lift, rel=0.05)


def test_as_scored_a_bent_model_would_gain_and_the_panel_says_so():
    result = gated_ab(half_knows)
    rows = {(row.arm, row.distortion): row for row in result.distortions}
    assert set(rows) == {(arm, name) for arm in ("control", "treatment") for name in DISTORTIONS}
    assert all(set(row.gated.values()) == {0.0} for row in rows.values())
    gains = [abs(row.raw["rpm"]) for (arm, _), row in rows.items() if arm == "treatment"]
    assert max(gains) > 0.03
    # Twice the probability changes no order and no price, but twice as many clicks are predicted.
    doubled = rows[("treatment", "pCTR x 2")].raw
    assert doubled["ctr"] == 0.0
    assert doubled["calibration"] == pytest.approx(1.0)
    assert gated_ab(half_knows, calibration_requests=0).distortions == ()


def test_swapping_models_and_users_turns_every_sign_exactly():
    world, settings = ToyWorld(users=400, base_rate=0.2), {"requests": 1_500, "seed": 3}
    one = simulate_ab(world, knows_nothing, knows, **settings, pre_period=False)
    other = simulate_ab(world, knows, knows_nothing, **settings, pre_period=False, swap=True)
    assert (one.users_control, one.users_treatment) == (other.users_treatment, other.users_control)
    for group in ("lifts", "raw"):
        for name, lift in getattr(one, group).items():
            back = getattr(other, group)[name]
            assert (lift.control, lift.treatment) == (back.treatment, back.control)
            assert (lift.error, lift.p_value) == (back.error, back.p_value)
            for here, there in ((lift.lift, back.lift), (lift.low, back.high),
                                (lift.true, back.true)):  # fmt: skip
                assert np.log1p(here) == pytest.approx(-np.log1p(there), rel=1e-12)


def test_the_arms_are_given_the_same_calibration_traffic_whoever_is_called_treatment():
    same = gated_ab(knows_nothing)
    for lift in same.lifts.values():
        assert lift.true == 0.0
    for lift in same.raw.values():
        assert lift.true == 0.0


def test_users_with_a_past_make_narrower_intervals_of_the_same_truth():
    class Persistent(ToyWorld):
        """The same users come back, as eager as before."""

        def draw_requests(self, n, seed):
            requests = super().draw_requests(n, seed)
            eager_U = np.random.default_rng(9).gamma(0.5, 2.0, self.users)
            requests.eager_R = eager_U[[int(user[1:]) for user in requests.user_R]]
            return requests

    result = simulate_ab(
        Persistent(users=300, base_rate=0.2), knows, knows, requests=6_000, seed=1, distort=False
    )
    assert result.variance_reduction["ctr"] > 0.3
    assert result.cuped["ctr"].error < result.lifts["ctr"].error
    assert result.cuped["ctr"].true == result.lifts["ctr"].true == 0.0
    planned = result.power["ctr"]
    assert result.lifts["ctr"].error == pytest.approx(planned.error, rel=0.2)
    assert len(result.looks["ctr"]) == 19
    console = Console(width=140)
    with console.capture() as capture:
        console.print(result.other_estimates())
        console.print(result.table())
    assert f"{result.variance_reduction['ctr']:.1%}" in capture.get()
    assert f"{planned.minimum_detectable:.1%}" in capture.get()
    assert AbResult.from_json(result.to_json()) == result
    figures = result.to_metrics()
    for key in ("cuped.variance_reduction", "minimum_detectable", "always_valid_p_value"):
        assert np.isfinite(figures[f"ab.ctr.{key}"])


def test_the_decision_is_registered_after_planning_and_before_the_first_impression():
    events = []

    class Watched(ToyWorld):
        def run(self, requests, pctr_RK):
            events.append(len(requests.user_R))
            return super().run(requests, pctr_RK)

    def register(power):
        events.append("registered")
        assert power["ctr"].minimum_detectable > 0
        return RULE

    result = simulate_ab(
        Watched(users=400, base_rate=0.2),
        knows,
        knows,
        requests=901,
        seed=1,
        calibration_requests=902,
        distort=False,
        register=register,
    )
    # Calibration traffic, the pre-period, and only then both arms, behind the gate and as scored.
    assert events == [902, 901, "registered", 901, 901, 901, 901]
    assert (result.registration, result.registration_sha256) == (RULE, RULE.sha256)
    assert result.decision == "undecided"


def test_what_cannot_be_tested_is_refused():
    def run(world=None, control=knows, treatment=knows, **kw):
        return plain_ab(
            world or ToyWorld(), control, treatment, **{"requests": 300, "seed": 1, **kw}
        )

    class NoUsers(ToyWorld):
        def draw_requests(self, n, seed):
            requests = super().draw_requests(n, seed)
            requests.user_R = requests.user_R.astype(object)
            requests.user_R[3] = None
            return requests

    with pytest.raises(ValueError, match=r"request 3 has no user \(None\)"):
        run(NoUsers())
    with pytest.raises(ValueError, match="zero clicks in the control arm, over"):
        run(ToyWorld(base_rate=0.0))
    with pytest.raises(ValueError, match="arm has 0 of 1 users; at least two"):
        run(ToyWorld(users=1))
    with pytest.raises(ValueError, match=r"control model scored row 0 as .* were logits"):
        run(control=lambda table: 5 + knows(table))
    with pytest.raises(ValueError, match=r"treatment model returned scores of shape \(10,\)"):
        run(treatment=lambda table: knows(table)[:10])
    with pytest.raises(ValueError, match="requests is 0"):
        run(requests=0)
    with pytest.raises(ValueError, match="confidence is 95"):
        run(confidence=95)
    with pytest.raises(ValueError, match="the salt is empty"):
        run(salt="")
