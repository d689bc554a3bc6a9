"""Do two measures put the same things in the same order, over several worlds?

A variant may be ranked by its offline AUC, by the click-through rate that a simulated test
measures, and by the click-through rate that it would truly earn. In each world these orders are
compared by Kendall's tau; the worlds are the units of chance, so intervals come from drawing whole
worlds again.

Shape letters: W worlds, V variants, B bootstrap draws, P pairs of variants, X any of
these before the variants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

BOOTSTRAPS = 2000


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean over worlds with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class RankAgreement:
    """How far two measures agree on the order of the same variants."""

    kendall: Spread
    """Tau-b within a world, averaged over worlds: 1 the same order, 0 none, -1 reversed."""
    spearman: Spread
    """Spearman's rho within a world, averaged over worlds."""
    pairs: Spread
    """Share of variant pairs that both measures order alike; one half is chance, ties are half."""
    kendall_of_means: Spread
    """Tau-b between the two measures' mean ranks over all worlds: does the summary agree?"""


def rank_agreement(
    first_WV: ArrayLike, second_WV: ArrayLike, *, confidence: float = 0.95, seed: int = 0
) -> RankAgreement:
    """Compare the orders that two measures give the variants of each world.

    Args:
        first_WV: One measure of each variant in each world, larger is better, shape (W, V).
        second_WV: The other, shape (W, V).
        confidence: Of the percentile intervals over worlds.
        seed: Of the bootstrap.

    Returns:
        Means over worlds. With one world the intervals are that world's own figures and say
        nothing about chance.

    Raises:
        ValueError: If the shapes differ, there are fewer than two variants, or a value is no
            finite number.
    """
    first_WV, second_WV = np.asarray(first_WV, np.float64), np.asarray(second_WV, np.float64)
    if first_WV.shape != second_WV.shape or first_WV.ndim != 2 or first_WV.shape[1] < 2:
        raise ValueError(
            f"measures of shape {first_WV.shape} and {second_WV.shape}: both must be (worlds, "
            "variants) with at least two variants to put in order"
        )
    if not (np.isfinite(first_WV).all() and np.isfinite(second_WV).all()):
        raise ValueError("a measure is NaN or infinite, and has no place in an order")
    worlds = len(first_WV)
    world_BW = np.random.default_rng(seed).integers(worlds, size=(BOOTSTRAPS, worlds))
    first_rank_WV, second_rank_WV = _ranks(first_WV), _ranks(second_WV)
    summary = float(_tau(first_rank_WV.mean(axis=0), second_rank_WV.mean(axis=0)))
    # Smaller ranks are better on both sides, which leaves their agreement as it is.
    summary_B = _tau(first_rank_WV[world_BW].mean(axis=1), second_rank_WV[world_BW].mean(axis=1))
    share = (1 - confidence) / 2

    def spread(value: float, draw_B: NDArray[np.float64]) -> Spread:
        low, high = np.quantile(draw_B, [share, 1 - share])
        return Spread(value=float(value), low=float(low), high=float(high))

    kendall, spearman, pairs = (
        spread(each_W.mean(), each_W[world_BW].mean(axis=1))
        for each_W in (
            _tau(first_WV, second_WV),
            _rho(first_WV, second_WV),
            _pairs_alike(first_WV, second_WV),
        )
    )
    return RankAgreement(
        kendall=kendall,
        spearman=spearman,
        pairs=pairs,
        kendall_of_means=spread(summary, summary_B),
    )


def mean_ranks(measure_WV: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each variant's rank averaged over worlds, shape (V,); 1 is the best, ties share."""
    return _ranks(np.asarray(measure_WV)).mean(axis=0)


def _ranks(measure_WV: NDArray[np.float64]) -> NDArray[np.float64]:
    return stats.rankdata(-measure_WV, axis=1)


def _tau(a_XV: NDArray[np.float64], b_XV: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tau-b of each pair of rows; 0 where one of the two puts nothing in order."""
    a_XP, b_XP = _signs(a_XV), _signs(b_XV)
    untied_X = np.abs(a_XP).sum(axis=-1) * np.abs(b_XP).sum(axis=-1)
    return (a_XP * b_XP).sum(axis=-1) / np.sqrt(np.maximum(untied_X, 1))


def _rho(a_WV: NDArray[np.float64], b_WV: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation of the ranks of each pair of rows; 0 where one puts nothing in order."""
    a_WV, b_WV = (stats.rankdata(x, axis=1) - (x.shape[1] + 1) / 2 for x in (a_WV, b_WV))
    spread_W = np.sqrt((a_WV**2).sum(axis=1) * (b_WV**2).sum(axis=1))
    return (a_WV * b_WV).sum(axis=1) / np.where(spread_W > 0, spread_W, 1.0)


def _pairs_alike(a_WV: NDArray[np.float64], b_WV: NDArray[np.float64]) -> NDArray[np.float64]:
    return (1 + _signs(a_WV) * _signs(b_WV)).mean(axis=1) / 2


def _signs(x_XV: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each pair of variants, which one is ahead: 1, 0 or -1."""
    first_P, second_P = np.triu_indices(x_XV.shape[-1], k=1)
    return np.sign(x_XV[..., first_P] - x_XV[..., second_P])
