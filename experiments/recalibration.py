"""The calibration gate: every arm enters the auction with probabilities that the simulator fitted.

Rank and price read the size of a score, so a model could gain revenue or clicks by scaling or
bending its scores without knowing anything more. The gate reads their order alone: a score becomes
its place among the scores of calibration traffic, and the place a probability, fitted to that
traffic's clicks. Whatever strictly increasing function a model's scores went through, the same
numbers come out, to the bit.

Shape letters: N calibration impressions, M scores to map, J pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, ndtri

KNOTS = (-1.5, -0.5, 0.5, 1.5)
"""Where the slope may change, on the normal scale of places: 7%, 31%, 69% and 93%."""
SMOOTHNESS = 2.0
"""Penalty on squared changes of slope between pieces; 2 is some ten clicks' worth."""
LEAST_SLOPE = 1e-3
"""So that the order of scores is kept strictly even where clicks contradict it."""
FEWEST_CLICKS = 30


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """A rising map from one model's scores to click probabilities, by their order alone."""

    reference_N: NDArray[np.float64]
    """Scores of the calibration traffic, ascending."""
    intercept: float
    slope_J: NDArray[np.float64]
    """Of the log-odds in each piece between the knots, positive."""

    @classmethod
    def fit(cls, label_N: ArrayLike, score_N: ArrayLike) -> Recalibration:
        """Fit to the clicks of traffic that no arm chose.

        The log-odds are a rising, piecewise linear function of the place's normal quantile, fitted
        by penalised maximum likelihood.

        Args:
            label_N: 1 where clicked, shape (N,).
            score_N: The model's scores of the same impressions, any finite numbers, shape (N,).

        Raises:
            ValueError: If shapes differ, a score is not finite, or there are too few clicks.
        """
        label_N = np.asarray(label_N, np.float64)
        score_N = np.asarray(score_N, np.float64)
        if label_N.shape != score_N.shape or not np.isfinite(score_N).all():
            raise ValueError(
                f"{label_N.shape} labels and {score_N.shape} scores: one finite score a label is "
                "needed"
            )
        clicks = int(label_N.sum())
        if min(clicks, len(label_N) - clicks) < FEWEST_CLICKS:
            raise ValueError(
                f"{clicks} clicks on {len(label_N)} calibration impressions; the calibration gate "
                f"needs {FEWEST_CLICKS} of either kind. Give it more calibration requests"
            )
        reference_N = np.sort(score_N)
        piece_NJ = _pieces(_quantile(reference_N, score_N))
        base = np.log(clicks / (len(label_N) - clicks))

        def loss(weight: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            logit_N = weight[0] + piece_NJ @ weight[1:]
            change = np.diff(weight[1:])
            error_N = expit(logit_N) - label_N
            gradient = np.append(error_N.sum(), error_N @ piece_NJ)
            gradient[1:-1] -= 2 * SMOOTHNESS * change
            gradient[2:] += 2 * SMOOTHNESS * change
            value = (np.logaddexp(0, logit_N) - label_N * logit_N).sum()
            return float(value + SMOOTHNESS * (change @ change)), gradient

        start = np.array([base, *np.full(piece_NJ.shape[1], 0.5)])
        bounds = [(None, None), *[(LEAST_SLOPE, None)] * piece_NJ.shape[1]]
        weight = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x
        return cls(reference_N=reference_N, intercept=float(weight[0]), slope_J=weight[1:])

    def probability(self, score_M: ArrayLike) -> NDArray[np.float64]:
        """Return the click probability of each score, the shape kept."""
        score_M = np.asarray(score_M, np.float64)
        place_M = _quantile(self.reference_N, score_M.ravel())
        return expit(self.intercept + _pieces(place_M) @ self.slope_J).reshape(score_M.shape)


def _quantile(reference_N: NDArray[np.float64], score_M: NDArray[np.float64]) -> NDArray:
    """Normal quantile of each score's place among the reference, ties in the middle."""
    below_M = np.searchsorted(reference_N, score_M, side="left")
    up_to_M = np.searchsorted(reference_N, score_M, side="right")
    return ndtri((0.5 * (below_M + up_to_M) + 0.5) / (len(reference_N) + 1))


def _pieces(quantile_M: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much of each piece lies below a quantile, shape (M, J): the basis of the function."""
    edge_J = np.array([-np.inf, *KNOTS, np.inf])
    low_J, high_J = edge_J[:-1], edge_J[1:]
    inside_MJ = np.clip(quantile_M[:, None], low_J, high_J)
    # The first piece hangs from its upper knot, the others stand on their lower one.
    return inside_MJ - np.where(np.isfinite(low_J), low_J, high_J)
