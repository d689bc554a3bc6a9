"""A simulated A/B test of two click models in a world whose truth is known.

Both models rank the same requests. Users are hashed to arms, and what is observed of a user is
what his arm's model showed him. Beside each estimated lift stands the true one: the ratio of exact
expectations over all requests under both models. ``ab_counts`` defines the metrics.

In order: calibration traffic that no arm chose (the gate), a pre-period in which the control serves
everybody (power, and every user's past), the registration of the decision, the experiment.

Shape letters: R requests, K candidates a request, S ad slots, U users.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.ab_counts import (
    Counts,
    Draws,
    by_look,
    by_user,
    defined_metrics,
    expected_counts,
    merge_arms,
    observed_counts,
    true_lift,
)
from experiments.ab_measures import (
    assign_users,
    look_often,
    measure,
    plan_metrics,
    variance_reduction,
)
from experiments.ab_result import AbResult
from experiments.always_valid import LOOKS
from experiments.assignment import srm_check
from experiments.calibration_gate import CalibrationTraffic, behind_gate
from experiments.interference import BudgetReport
from experiments.lift import Lift
from experiments.power import PowerPlan
from experiments.preregistration import Preregistration
from experiments.recalibration import Recalibration
from experiments.scored_requests import (
    Marketplace,
    Requests,
    Scorer,
    score_candidates,
    user_rows,
)

CLICK_STREAM = 71
"""Sets the draws of clicks apart from every other use of the run's seed."""
PRE_PERIOD_SEED = 1_000_003
"""Added to the seed: requests that the experiment does not see again."""

Register = Callable[[Mapping[str, PowerPlan]], Preregistration]
"""Is told the power of each metric and writes the decision rule down."""
BudgetTest = Callable[..., BudgetReport]
"""``interference.compare_splits`` with its world and budgets filled in."""


def simulate_ab(
    world: Marketplace,
    control: Scorer,
    treatment: Scorer,
    *,
    requests: int = 20_000,
    seed: int,
    salt: str = "adtower",
    confidence: float = 0.95,
    calibration_requests: int = 6_000,
    pre_period: bool = True,
    looks: int = LOOKS,
    distort: bool = True,
    swap: bool = False,
    register: Register | None = None,
    budget_test: BudgetTest | None = None,
) -> AbResult:
    """Let two models rank the same new requests and compare what they bring.

    Clicks and purchases are drawn from the world's true probabilities with common random numbers
    (one draw a slot of a request, whichever model fills it), so the same seed gives the same
    result to the bit. No model's own predictions enter the outcome but through the ranking and
    the prices, and behind the calibration gate not even their size does.

    Args:
        world: Draws requests, holds auctions and knows the truth.
        control: Scores candidates as today.
        treatment: Scores candidates as proposed.
        requests: How many requests to draw, at least 1.
        seed: Of the requests and of the clicks.
        salt: Names the experiment; another one assigns the users anew.
        confidence: Of each lift's interval.
        calibration_requests: Requests shown in random order, to whose clicks each model's scores
            are fitted by order alone (``recalibration``); 0 ranks and prices by the scores as they
            are.
        pre_period: Serve as many requests again before the experiment, all by the control: for
            power, CUPED and always-valid intervals.
        looks: At how many times to look at the running experiment, with always-valid intervals.
        distort: Show what same-order distortions of each model's scores would do.
        swap: Give the treatment the control's users and the other way round.
        register: Writes the decision down once power is known, before the first impression.
        budget_test: Serves the requests under budgets too.

    Returns:
        Lifts with intervals and the truth, and the sample-ratio check.

    Raises:
        ValueError: If a request has no user, an arm has fewer than two users or no click at all,
            a model returns another number of scores than rows or one outside [0, 1].
    """
    if requests < 1:
        raise ValueError(f"requests is {requests}; at least one is needed")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95")
    arms = {"control": control, "treatment": treatment}
    traffic = None
    gates: dict[str, Recalibration] = {}
    if calibration_requests:
        traffic = CalibrationTraffic.draw(world, arms, calibration_requests, seed)
        gates = {arm: traffic.fit(traffic.score_RK[arm]) for arm in arms}
    drawn = world.draw_requests(requests, seed)
    user_ids, user_R = user_rows(drawn.user_R)
    treated_U = assign_users(user_ids, salt, swap=swap)
    earlier_U: Counts | None = None
    power: dict[str, PowerPlan] = {}
    if pre_period:
        earlier_U = _pre_period(world, control, gates.get("control"), user_ids, requests, seed)
        power = plan_metrics(earlier_U, alpha=1 - confidence)
    registration = register(power) if register is not None else None

    table = world.candidate_table(drawn)
    score = {
        arm: score_candidates(arm, model, table, drawn.candidate_RK) for arm, model in arms.items()
    }
    gated = {arm: behind_gate(gates.get(arm), score[arm], drawn.candidate_RK) for arm in arms}
    periods = [_Period.serve(world, drawn, scores, user_R, treated_U, seed)
               for scores in ((gated, score) if gates else (score,))]  # fmt: skip
    period = periods[0]
    seen_U = by_user(period.seen_R, user_R, len(user_ids))
    _check_clicks(seen_U["clicks"], seen_U["impressions"], treated_U)
    lifts, undefined = measure(seen_U, treated_U, true=period.true, confidence=confidence)
    cuped: dict[str, Lift] = {}
    if earlier_U is not None:
        cuped, why = measure(
            seen_U, treated_U, true=period.true, confidence=confidence, earlier_U=earlier_U
        )
        undefined |= {f"{name} (CUPED)": reason for name, reason in why.items() if name in lifts}
    raw: dict[str, Lift] = {}
    if gates:
        raw_U = by_user(periods[1].seen_R, user_R, len(user_ids))
        raw, _ = measure(raw_U, treated_U, true=periods[1].true, confidence=confidence)
    seen_LU = by_look(period.seen_R, user_R, len(user_ids), looks) if looks and power else {}
    budgets = None
    if budget_test is not None:
        budgets = budget_test(
            drawn,
            gated["control"],
            gated["treatment"],
            user_R=user_R,
            treated_U=treated_U,
            draws=period.draws,
            confidence=confidence,
        )
    users_treatment = int(treated_U.sum())
    return AbResult(
        lifts=lifts,
        undefined=undefined,
        n_requests=len(user_R),
        n_users=len(user_ids),
        users_control=len(user_ids) - users_treatment,
        users_treatment=users_treatment,
        srm_p_value=srm_check(len(user_ids) - users_treatment, users_treatment),
        confidence=confidence,
        salt=salt,
        currency=getattr(world, "currency", ""),
        cuped=cuped,
        variance_reduction={name: variance_reduction(lifts[name], cuped[name]) for name in cuped},
        raw=raw,
        looks=look_often(seen_LU, treated_U, power, alpha=1 - confidence),
        power=power,
        distortions=traffic.distort(world) if traffic is not None and distort else (),
        budgets=budgets,
        registration=registration,
        registration_sha256=None if registration is None else registration.sha256,
    )


@dataclass(frozen=True, kw_only=True)
class _Period:
    """The experiment with one set of scores: what is seen, and what was to be expected."""

    seen_R: Counts
    """Each request served by its user's arm."""
    true: dict[str, float]
    """The lift of each metric in expectation."""
    draws: Draws

    @classmethod
    def serve(
        cls,
        world: Marketplace,
        drawn: Requests,
        score: Mapping[str, NDArray[np.float64]],
        user_R: NDArray[np.int64],
        treated_U: NDArray[np.bool_],
        seed: int,
    ) -> _Period:
        outcome = {arm: world.run(drawn, score[arm]) for arm in score}
        control, treatment = (expected_counts(outcome[arm], score[arm]) for arm in score)
        shape_RS = np.shape(outcome["control"].shown_RS)
        draws = Draws.draw(shape_RS, np.random.default_rng([seed, CLICK_STREAM]))
        names = defined_metrics(control, treatment)
        seen = [observed_counts(outcome[arm], score[arm], draws) for arm in score]
        return cls(
            seen_R=merge_arms(seen[0], seen[1], treated_U[user_R]),
            true={name: true_lift(name, control, treatment) for name in names},
            draws=draws,
        )


def _pre_period(
    world: Marketplace,
    control: Scorer,
    gate: Recalibration | None,
    user_ids: list[str],
    requests: int,
    seed: int,
) -> Counts:
    """Counts of the experiment's users in a period that the control serves alone, shape (U,)."""
    drawn = world.draw_requests(requests, seed + PRE_PERIOD_SEED)
    table = world.candidate_table(drawn)
    score_RK = score_candidates("control", control, table, drawn.candidate_RK)
    score_RK = behind_gate(gate, score_RK, drawn.candidate_RK)
    outcome = world.run(drawn, score_RK)
    rng = np.random.default_rng([seed + PRE_PERIOD_SEED, CLICK_STREAM])
    draws = Draws.draw(np.shape(outcome.shown_RS), rng)
    ids, row_R = user_rows(drawn.user_R)
    place_of = {user: row for row, user in enumerate(user_ids)}
    # Users who do not come back are nobody's past; a spare last row takes them up.
    place_I = np.array([place_of.get(user, len(user_ids)) for user in ids])
    counts = by_user(observed_counts(outcome, score_RK, draws), place_I[row_R], len(user_ids) + 1)
    return {key: value_U[:-1] for key, value_U in counts.items()}


def _check_clicks(clicks_U: NDArray, impressions_U: NDArray, treated_U: NDArray) -> None:
    for arm, mask_U in (("control", ~treated_U), ("treatment", treated_U)):
        if mask_U.sum() < 2:
            raise ValueError(
                f"the {arm} arm has {mask_U.sum()} of {len(mask_U)} users; at least two are needed "
                "in each: draw more requests"
            )
        if not clicks_U[mask_U].any():
            raise ValueError(
                f"zero clicks in the {arm} arm, over {int(impressions_U[mask_U].sum())} "
                "impressions: nothing can be compared. Draw more requests, or see whether the "
                "reserve price keeps every slot empty"
            )
