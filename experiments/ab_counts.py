"""What the auction brings to the metrics: expected, observed, and summed within users.

Metrics, all with the impressions (filled ad slots) of an arm counted after the auction:

    ctr         clicks / impressions
    cvr         purchases / clicks
    rpm         revenue per mille: 1000 x (price paid on clicks) / impressions, in currency units
    cpc         revenue / clicks, in currency units
    welfare     1000 x (advertisers' value of the clicks) / impressions; if the world gives values
    relevance   mean relevance grade of the impressions; if the world gives grades
    calibration clicks that the arm's scores predict / clicks; 1 is calibrated

Shape letters: R requests, K candidates a request, S ad slots, U users, L looks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MICROS = 1_000_000

METRICS = {
    "ctr": ("clicks", "impressions", 1.0),
    "cvr": ("purchases", "clicks", 1.0),
    "rpm": ("revenue", "impressions", 1000.0),
    "cpc": ("revenue", "clicks", 1.0),
    "welfare": ("value", "impressions", 1000.0),
    "relevance": ("relevance", "impressions", 1.0),
    "calibration": ("predicted", "clicks", 1.0),
}
"""Numerator, denominator and factor of each metric."""

Counts = dict[str, NDArray[np.float64]]
"""What METRICS are made of, one array each: by request (R,), by user (U,) or by look (L, U)."""


class Outcome(Protocol):
    """What the auction shows under one policy, and what may be expected of it.

    More is used where the outcome has it: ``value_micros_RS``, what a click is worth to its
    advertiser; ``relevance_RS``, the true grade of what is shown; and ``draw_clicks``, where clicks
    on a page depend on each other.
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


@dataclass(frozen=True)
class Draws:
    """The chance of a period: one number a slot and kind, whichever arm fills it."""

    click_RS: NDArray[np.float64]
    purchase_RS: NDArray[np.float64]
    look_RS: NDArray[np.float64]

    @classmethod
    def draw(cls, shape_RS: tuple[int, ...], rng: np.random.Generator) -> Draws:
        """Draw them; the same generator state gives the same chance."""
        return cls(rng.random(shape_RS), rng.random(shape_RS), rng.random(shape_RS))


def expected_counts(outcome: Outcome, score_RK: NDArray[np.float64]) -> Counts:
    """Return exact expectations of each request, shape (R,) each."""
    p_click_RS = outcome.p_click_RS
    return _counts(outcome, score_RK, p_click_RS, p_click_RS * outcome.p_purchase_RS)


def observed_counts(outcome: Outcome, score_RK: NDArray[np.float64], draws: Draws) -> Counts:
    """Return what each request brings with these draws, shape (R,) each."""
    click_RS = drawn_clicks(outcome, draws)
    return _counts(
        outcome, score_RK, click_RS, click_RS & (draws.purchase_RS < outcome.p_purchase_RS)
    )


def drawn_clicks(outcome: Outcome, draws: Draws) -> NDArray[np.bool_]:
    """Return which slots are clicked, shape (R, S)."""
    draw_clicks = getattr(outcome, "draw_clicks", None)
    if draw_clicks is not None:
        return draw_clicks(draws.click_RS, draws.look_RS)
    return draws.click_RS < outcome.p_click_RS


def by_user(counts: Counts, user_R: NDArray[np.integer], users: int) -> Counts:
    """Sum each count within users, shape (U,) each."""
    return {
        key: np.bincount(user_R, value_R, users).astype(np.float64)
        for key, value_R in counts.items()
    }


def by_look(counts: Counts, user_R: NDArray[np.integer], users: int, looks: int) -> Counts:
    """Sum each count within users up to each look, shape (L, U) each.

    Requests come in order of time; a look falls after each ``looks``-th part of them.
    """
    look_R = np.arange(len(user_R)) * looks // len(user_R)
    cell_R = look_R * users + user_R
    return {
        key: np.bincount(cell_R, value_R, looks * users).reshape(looks, users).cumsum(axis=0)
        for key, value_R in counts.items()
    }


def merge_arms(control: Counts, treatment: Counts, treated_R: NDArray[np.bool_]) -> Counts:
    """Return what is seen when each request is served by its user's arm."""
    return {key: np.where(treated_R, treatment[key], control[key]) for key in control}


def true_log_lift(name: str, control: Counts, treatment: Counts) -> float:
    """Return the log of the ratio of a metric's expectations under both arms.

    Swapping the arms turns its sign exactly.
    """
    numerator, denominator, _ = METRICS[name]

    def log_metric(counts: Counts) -> float:
        return float(np.log(counts[numerator].sum()) - np.log(counts[denominator].sum()))

    return log_metric(treatment) - log_metric(control)


def true_lift(name: str, control: Counts, treatment: Counts) -> float:
    """Return the lift in expectation; 0.03 is three percent more."""
    return math.expm1(true_log_lift(name, control, treatment))


def defined_metrics(control: Counts, treatment: Counts) -> list[str]:
    """Return the metrics whose numerators and denominators are positive in both arms."""
    return [
        name
        for name, (numerator, denominator, _) in METRICS.items()
        if all(
            numerator in arm and arm[numerator].sum() > 0 and arm[denominator].sum() > 0
            for arm in (control, treatment)
        )
    ]


def _counts(
    outcome: Outcome, score_RK: NDArray[np.float64], click_RS: NDArray, purchase_RS: NDArray
) -> Counts:
    column_RS = np.asarray(outcome.shown_RS)
    shown_RS = column_RS >= 0
    click_RS = np.where(shown_RS, click_RS, 0.0)
    score_RS = np.take_along_axis(score_RK, np.maximum(column_RS, 0), axis=1)
    counts = {
        "impressions": shown_RS.sum(axis=1).astype(np.float64),
        "clicks": click_RS.sum(axis=1),
        "purchases": _sum(shown_RS, purchase_RS),
        "revenue": _sum(shown_RS, click_RS * outcome.price_micros_RS) / MICROS,
        "predicted": _sum(shown_RS, score_RS),
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
