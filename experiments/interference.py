"""Two ways to split an experiment when advertisers' budgets bind, and what each gets wrong.

With users split, both arms draw on the same budgets: an arm that spends faster takes money, and so
impressions, from the other, and the lift shows what it took as if it had made it. With budgets
split, each arm has its share of every budget, as if it were the whole market on a smaller scale.

Shape letters: R requests, K candidates, U users, P products.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.ab_counts import Counts, Draws, by_user, expected_counts, observed_counts
from experiments.lift import Lift, ratio_lift
from experiments.marketplace.budgets import (
    Pacing,
    check_budgets,
    serve_with_budgets,
    unlimited_spend,
)
from experiments.marketplace.requests import Requests
from experiments.marketplace.world import World

BUDGET_METRICS = {
    "ctr": ("clicks", "impressions", 1.0),
    "rpm": ("revenue", "impressions", 1000.0),
    "welfare": ("value", "impressions", 1000.0),
    "revenue_per_request": ("revenue", "requests", 1.0),
    "clicks_per_request": ("clicks", "requests", 1.0),
}
"""With budgets slots run empty, so what a request brings matters too."""


@dataclass(frozen=True, kw_only=True)
class BudgetReport:
    """The same two arms under binding budgets, split by users and by budgets."""

    pacing: Pacing
    budget_share: float | None
    """Each budget over what its advertiser would spend without one; None where budgets were given.
    """
    stopped_share: float
    """Share of the budgets that ran out when the control served everybody."""
    user_split: dict[str, Lift]
    """Users split, budgets shared. ``true`` is the lift of the whole market changing over."""
    budget_split: dict[str, Lift]
    """Users split, and every budget with them."""
    user_split_expected: dict[str, float]
    """What the user split would show without chance: its distance from the truth is bias."""
    budget_split_expected: dict[str, float]

    def to_metrics(self) -> dict[str, float]:
        """Return the figures under ``ab.budgets.SPLIT.METRIC.FIGURE``, flat."""
        out = {"ab.budgets.stopped_share": self.stopped_share}
        splits = {
            "user_split": (self.user_split, self.user_split_expected),
            "budget_split": (self.budget_split, self.budget_split_expected),
        }
        for split, (lifts, expected) in splits.items():
            for name, lift in lifts.items():
                figures = {k: v for k, v in asdict(lift).items() if k != "name" and v is not None}
                prefix = f"ab.budgets.{split}.{name}"
                out |= {f"{prefix}.{key}": float(value) for key, value in figures.items()}
                out[f"{prefix}.expected"] = expected[name]
        return out


def compare_splits(
    world: World,
    requests: Requests,
    control_RK: NDArray[np.float64],
    treatment_RK: NDArray[np.float64],
    *,
    user_R: NDArray[np.integer],
    treated_U: NDArray[np.bool_],
    draws: Draws,
    pacing: Pacing = "throttle",
    budget_share: float | None = None,
    budget_micros_P: NDArray[np.float64] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> BudgetReport:
    """Serve the same requests four times: all control, all treatment, users split, budgets split.

    Args:
        world: Holds auctions and knows the truth.
        requests: Of the experiment, in order of time.
        control_RK: Scores of the control.
        treatment_RK: Scores of the treatment.
        user_R: User row of each request.
        treated_U: True where the user is in the treatment.
        draws: Clicks and purchases; the same for all four.
        pacing: As in ``serve_with_budgets``.
        budget_share: Budgets as a share of what each advertiser spends without any, in the mean of
            both arms; below 1 they bind. Give this or ``budget_micros_P``.
        budget_micros_P: The budgets themselves.
        confidence: Of the intervals.
        seed: Of the throttling.

    Raises:
        ValueError: If neither or both kinds of budgets are given, or they mean nothing.
    """
    if (budget_share is None) == (budget_micros_P is None):
        raise ValueError(
            f"budget_share={budget_share} and budget_micros_P "
            f"{'given' if budget_micros_P is not None else 'None'}: give exactly one of them"
        )
    if budget_micros_P is None:
        assert budget_share is not None
        if not (budget_share > 0 and np.isfinite(budget_share)):
            raise ValueError(
                f"budget_share is {budget_share}; it must be positive and finite: 0.5 is half of "
                "what advertisers would spend"
            )
        # Of both arms, so that none is short of money for products that only it would show.
        spends = [unlimited_spend(world, requests, p_RK) for p_RK in (control_RK, treatment_RK)]
        budget_micros_P = budget_share * (spends[0] + spends[1]) / 2
    budget_1P = budget_micros_P[None]
    check_budgets(budget_1P, products=len(world.state.product_id_P))
    treated_R = treated_U[user_R]
    mixed_RK = np.where(treated_R[:, None], treatment_RK, control_RK)
    share = float(treated_R.mean())
    split_2P = np.stack([(1 - share) * budget_micros_P, share * budget_micros_P])

    def serve(score_RK: NDArray, budget_AP: NDArray, account_R: NDArray | None = None):
        return serve_with_budgets(
            world, requests, score_RK, budget_AP, account_R=account_R, pacing=pacing, seed=seed
        )

    everybody = [serve(score_RK, budget_1P) for score_RK in (control_RK, treatment_RK)]
    truth_c, truth_t = (
        _per_request(expected_counts(served.outcome, score_RK))
        for served, score_RK in zip(everybody, (control_RK, treatment_RK), strict=True)
    )
    true = {name: _lift_of(name, truth_c, truth_t) for name in BUDGET_METRICS}
    reports = []
    for account_R, budget_AP in ((None, budget_1P), (treated_R.astype(np.int64), split_2P)):
        outcome = serve(mixed_RK, budget_AP, account_R).outcome
        seen = _per_request(observed_counts(outcome, mixed_RK, draws))
        seen_U = by_user(seen, user_R, len(treated_U))
        mean = _per_request(expected_counts(outcome, mixed_RK))
        arms = [{k: v[mask] for k, v in mean.items()} for mask in (~treated_R, treated_R)]
        lifts = {
            name: ratio_lift(
                name,
                factor * seen_U[numerator],
                seen_U[denominator],
                treated_U,
                confidence=confidence,
                true=true[name],
            )
            for name, (numerator, denominator, factor) in BUDGET_METRICS.items()
        }
        reports.append((lifts, {name: _lift_of(name, *arms) for name in BUDGET_METRICS}))
    (user_split, user_expected), (budget_split, budget_expected) = reports
    return BudgetReport(
        pacing=pacing,
        budget_share=budget_share,
        stopped_share=everybody[0].stopped_share,
        user_split=user_split,
        budget_split=budget_split,
        user_split_expected=user_expected,
        budget_split_expected=budget_expected,
    )


def _per_request(counts: Counts) -> Counts:
    return {**counts, "requests": np.ones(len(counts["clicks"]))}


def _lift_of(name: str, control: Counts, treatment: Counts) -> float:
    numerator, denominator, _ = BUDGET_METRICS[name]
    ratio_c = control[numerator].sum() / control[denominator].sum()
    return float(treatment[numerator].sum() / treatment[denominator].sum() / ratio_c - 1)
