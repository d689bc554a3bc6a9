"""A simulated A/B test of two click models in a world whose truth is known.

Both models rank the same requests. Users are hashed to arms, and what is observed of a user is
what his arm's model showed him. Beside each estimated lift stands the true one: the ratio of exact
expectations over all requests under both models.

Metrics, all with the impressions (filled ad slots) of an arm counted after the auction:

    ctr        clicks / impressions
    cvr        purchases / clicks
    rpm        revenue per mille: 1000 x (price paid on clicks) / impressions, in currency units
    cpc        revenue / clicks, in currency units
    welfare    1000 x (advertisers' value of the clicks) / impressions; if the world gives values
    relevance  mean relevance grade of the impressions; if the world gives grades

Shape letters: R requests, K candidates a request, S ad slots, U users.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.ab_result import AbResult
from experiments.assignment import assign_arm, srm_check
from experiments.lift import Lift, ratio_lift

Scorer = Callable[[pl.DataFrame], NDArray[np.float64]]
"""Takes raw impression rows and returns the predicted click probability of each."""

MICROS = 1_000_000
CLICK_STREAM = 71
"""Sets the draws of clicks apart from every other use of the run's seed."""


METRICS = {
    "ctr": ("clicks", "impressions", 1.0),
    "cvr": ("purchases", "clicks", 1.0),
    "rpm": ("revenue", "impressions", 1000.0),
    "cpc": ("revenue", "clicks", 1.0),
    "welfare": ("value", "impressions", 1000.0),
    "relevance": ("relevance", "impressions", 1.0),
}
"""Numerator, denominator and factor of each metric."""


class Requests(Protocol):
    """Requests drawn from a world."""

    @property
    def user_R(self) -> NDArray[Any]:
        """The user of each request: the unit of assignment."""
        ...

    @property
    def candidate_RK(self) -> NDArray[np.integer]:
        """Candidates of each request, -1 where there are fewer than K."""
        ...


class Outcome(Protocol):
    """What the auction shows under one policy, and what may be expected of it.

    Two more arrays are used where the outcome has them: ``value_micros_RS``, what a click is worth
    to its advertiser, and ``relevance_RS``, the true grade of what is shown.
    """

    @property
    def shown_RS(self) -> NDArray[np.integer]:
        """What each slot shows; -1 where it stays empty, and the other arrays do not count."""
        ...

    @property
    def price_micros_RS(self) -> NDArray[Any]:
        """Paid if clicked."""
        ...

    @property
    def p_click_RS(self) -> NDArray[np.floating]:
        """True probability of a click, examination included."""
        ...

    @property
    def p_purchase_RS(self) -> NDArray[np.floating]:
        """True probability of a purchase after a click."""
        ...


class Marketplace(Protocol):
    """What the simulated A/B test needs of a world; ``experiments.marketplace`` provides one."""

    def draw_requests(self, n: int, seed: int, /) -> Requests:
        """Draw ``n`` new requests, the same for the same seed."""
        ...

    def candidate_table(self, requests: Any) -> pl.DataFrame:
        """Return one raw row a candidate, request by request: all R x K, or without padding."""
        ...

    def run(self, requests: Any, pctr_RK: NDArray[np.float64]) -> Outcome:
        """Hold the auctions with these predictions."""
        ...


def simulate_ab(
    world: Marketplace,
    control: Scorer,
    treatment: Scorer,
    *,
    requests: int = 20_000,
    seed: int,
    salt: str = "adtower",
    confidence: float = 0.95,
) -> AbResult:
    """Let two models rank the same new requests and compare what they bring.

    Clicks and purchases are drawn from the world's true probabilities with common random numbers
    (one draw a slot of a request, whichever model fills it), so the same seed gives the same
    result to the bit. No model's own predictions enter the outcome but through the ranking and
    the prices.

    Args:
        world: Draws requests, holds auctions and knows the truth.
        control: Scores candidates as today.
        treatment: Scores candidates as proposed.
        requests: How many requests to draw, at least 1.
        seed: Of the requests and of the clicks.
        salt: Names the experiment; another one assigns the users anew.
        confidence: Of each lift's interval.

    Returns:
        Lifts with intervals and the truth, and the sample-ratio check.

    Raises:
        ValueError: If a request has no user, an arm has fewer than two users or no click at all,
            a model returns another number of scores than rows or one outside [0, 1].
    """
    if requests < 1:
        raise ValueError(f"requests is {requests}; at least one is needed")
    drawn = world.draw_requests(requests, seed)
    user_U, user_R = _users(drawn.user_R)
    treated_U = np.array([assign_arm(user, salt) == "treatment" for user in user_U])
    table = world.candidate_table(drawn)
    outcome_c = world.run(drawn, _scores("control", control, table, drawn.candidate_RK))
    outcome_t = world.run(drawn, _scores("treatment", treatment, table, drawn.candidate_RK))
    expected_c, expected_t = _expected(outcome_c), _expected(outcome_t)
    rng = np.random.default_rng([seed, CLICK_STREAM])
    shape_RS = np.shape(outcome_c.shown_RS)
    draws = (rng.random(shape_RS), rng.random(shape_RS))
    seen_c, seen_t = _observed(outcome_c, *draws), _observed(outcome_t, *draws)
    treated_R = treated_U[user_R]
    seen_U = {
        key: np.bincount(
            user_R, np.where(treated_R, seen_t[key], seen_c[key]), minlength=len(user_U)
        )
        for key in seen_c
    }
    _check_clicks(seen_U["clicks"], seen_U["impressions"], treated_U)
    lifts, undefined = _lifts(seen_U, treated_U, expected_c, expected_t, confidence)
    users_treatment = int(treated_U.sum())
    return AbResult(
        lifts=lifts,
        undefined=undefined,
        n_requests=len(user_R),
        n_users=len(user_U),
        users_control=len(user_U) - users_treatment,
        users_treatment=users_treatment,
        srm_p_value=srm_check(len(user_U) - users_treatment, users_treatment),
        confidence=confidence,
        salt=salt,
    )


def _lifts(
    seen_U: dict[str, NDArray],
    treated_U: NDArray[np.bool_],
    expected_c: dict[str, NDArray],
    expected_t: dict[str, NDArray],
    confidence: float,
) -> tuple[dict[str, Lift], dict[str, str]]:
    lifts: dict[str, Lift] = {}
    undefined: dict[str, str] = {}
    for name, (numerator, denominator, factor) in METRICS.items():
        if numerator not in seen_U:
            continue
        empty = _empty_arm(seen_U[numerator], treated_U, numerator)
        if empty is not None:
            undefined[name] = empty
            continue
        ratio_c = expected_c[numerator].sum() / expected_c[denominator].sum()
        ratio_t = expected_t[numerator].sum() / expected_t[denominator].sum()
        lifts[name] = ratio_lift(
            name,
            factor * seen_U[numerator],
            seen_U[denominator],
            treated_U,
            confidence=confidence,
            true=float(ratio_t / ratio_c - 1),
        )
    return lifts, undefined


def _empty_arm(total_U: NDArray, treated_U: NDArray[np.bool_], what: str) -> str | None:
    for arm, mask_U in (("control", ~treated_U), ("treatment", treated_U)):
        if not total_U[mask_U].sum() > 0:
            return f"no {what} in the {arm} arm"
    return None


def _expected(outcome: Outcome) -> dict[str, NDArray[np.float64]]:
    """Exact expectations of each request, shape (R,) each."""
    return _counts(outcome, outcome.p_click_RS, outcome.p_click_RS * outcome.p_purchase_RS)


def _observed(
    outcome: Outcome, click_draw_RS: NDArray, purchase_draw_RS: NDArray
) -> dict[str, NDArray[np.float64]]:
    """What each request would bring with these draws, shape (R,) each."""
    click_RS = click_draw_RS < outcome.p_click_RS
    purchase_RS = click_RS & (purchase_draw_RS < outcome.p_purchase_RS)
    return _counts(outcome, click_RS, purchase_RS)


def _counts(outcome: Outcome, click_RS: NDArray, purchase_RS: NDArray) -> dict[str, NDArray]:
    shown_RS = np.asarray(outcome.shown_RS) >= 0
    click_RS = np.where(shown_RS, click_RS, 0.0)
    counts = {
        "impressions": shown_RS.sum(axis=1).astype(np.float64),
        "clicks": click_RS.sum(axis=1),
        "purchases": _sum(shown_RS, purchase_RS),
        "revenue": _sum(shown_RS, click_RS * outcome.price_micros_RS) / MICROS,
    }
    value_micros_RS = getattr(outcome, "value_micros_RS", None)
    if value_micros_RS is not None:
        counts["value"] = _sum(shown_RS, click_RS * value_micros_RS) / MICROS
    relevance_RS = getattr(outcome, "relevance_RS", None)
    if relevance_RS is not None:
        counts["relevance"] = _sum(shown_RS, relevance_RS)
    return counts


def _sum(shown_RS: NDArray[np.bool_], value_RS: NDArray) -> NDArray[np.float64]:
    """Sum over the filled slots of each request."""
    return np.where(shown_RS, value_RS, 0.0).sum(axis=1)


def _users(user_R: Any) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct user ids, and each request's row among them."""
    ids = [None if user is None else str(user) for user in np.asarray(user_R).tolist()]
    for row, user in enumerate(ids):
        if user in (None, "", "nan"):
            raise ValueError(
                f"request {row} has no user ({user!r}); an A/B test assigns users, so every "
                "request needs one: a session or device id will do"
            )
    user_U, row_R = np.unique(np.array(ids, dtype=str), return_inverse=True)
    return user_U.tolist(), row_R


def _scores(
    arm: str, scorer: Scorer, table: pl.DataFrame, candidate_RK: NDArray
) -> NDArray[np.float64]:
    """Predictions in the shape of the candidates; 0 where there is none."""
    present_RK = np.asarray(candidate_RK) >= 0
    p_N = np.asarray(scorer(table), np.float64)
    if p_N.shape != (table.height,):
        raise ValueError(
            f"the {arm} model returned scores of shape {p_N.shape} for {table.height} candidate "
            "rows; one probability a row is needed"
        )
    if not ((p_N >= 0) & (p_N <= 1)).all():
        row = int(np.argmin((p_N >= 0) & (p_N <= 1)))
        raise ValueError(
            f"the {arm} model scored row {row} as {p_N[row]:g}, which is no probability; were "
            "logits returned?"
        )
    if table.height == present_RK.size:
        return np.where(present_RK, p_N.reshape(present_RK.shape), 0.0)
    if table.height != present_RK.sum():
        raise ValueError(
            f"the world's candidate table has {table.height} rows for {present_RK.size} places of "
            f"which {present_RK.sum()} are filled; it must have a row for each"
        )
    p_RK = np.zeros(present_RK.shape)
    p_RK[present_RK] = p_N
    return p_RK


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
