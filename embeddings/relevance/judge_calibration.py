"""From a judge's logits to probabilities that can be believed and a class that agrees best.

Both are fitted on queries that the judge did not learn from: one temperature, and two cuts of the
expected label. The likeliest class is not the answer that people agree with most: between many
relevant pairs and few irrelevant ones, a judge in doubt would never say 0.

Shape letters: N pairs, K = 3 classes, G candidate cuts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.optimize import fminbound
from scipy.special import log_softmax, softmax

from embeddings.relevance.agreement import CLASSES, weighted_kappa

TEMPERATURES = (0.05, 20.0)
MIN_PAIRS = 30
"""Fewer pairs say too little to fit three numbers by."""
CANDIDATES = 48
"""Cuts that are tried, evenly spread over the pairs by their expected label."""


class Calibration(BaseModel):
    """What turns logits into probabilities and labels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = 1.0
    """Divides the logits; above 1 where the judge was too sure of itself."""
    cuts: tuple[float, float] = (0.5, 1.5)
    """Expected labels from which on a pair is labelled 1, and 2."""
    pairs: int = 0
    """Pairs it was fitted on; 0 where there were too few, and the other fields change nothing."""

    def probabilities(self, logit_NK: NDArray[np.floating]) -> NDArray[np.float32]:
        """Chances of the classes, (N, K)."""
        return softmax(logit_NK / self.temperature, axis=1).astype(np.float32)

    def labels(self, p_NK: NDArray[np.floating]) -> NDArray[np.int64]:
        """Labels 0, 1, 2 of probabilities, (N,)."""
        return np.digitize(expected_label(p_NK), self.cuts).astype(np.int64)


def expected_label(p_NK: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean of the label under its chances, from 0 to 2, (N,)."""
    return p_NK.astype(np.float64) @ np.arange(CLASSES)


def calibrate(logit_NK: NDArray[np.floating], target_NK: NDArray[np.floating]) -> Calibration:
    """Fit temperature and cuts.

    Args:
        logit_NK: Of pairs that the judge did not learn from.
        target_NK: What people said: chances of the classes.

    Returns:
        The calibration; the one that changes nothing below ``MIN_PAIRS`` pairs.

    Source:
        Guo et al. 2017, arXiv:1706.04599, for the temperature.
    """
    if len(logit_NK) < MIN_PAIRS:
        return Calibration()

    def loss(log_temperature: float) -> float:
        scaled_NK = logit_NK.astype(np.float64) / np.exp(log_temperature)
        return float(-(target_NK * log_softmax(scaled_NK, axis=1)).sum(axis=1).mean())

    low, high = np.log(TEMPERATURES)
    temperature = float(np.exp(fminbound(loss, low, high)))
    p_NK = Calibration(temperature=temperature).probabilities(logit_NK)
    label_N = np.floor(target_NK @ np.arange(CLASSES) + 0.5).astype(np.int64)
    cuts = best_cuts(expected_label(p_NK), label_N)
    return Calibration(temperature=temperature, cuts=cuts, pairs=len(logit_NK))


def best_cuts(score_N: NDArray[np.floating], label_N: NDArray[np.int64]) -> tuple[float, float]:
    """The two cuts of a score whose classes have the highest quadratic weighted kappa.

    Args:
        score_N: Any score that is higher for more relevant pairs.
        label_N: Labels.

    Returns:
        Scores from which on a pair is in class 1, and in class 2; (0.5, 1.5) where no cut is better
        than another.
    """
    cut_G = np.unique(np.quantile(score_N, np.arange(1, CANDIDATES) / CANDIDATES))
    bin_N = np.digitize(score_N, cut_G)
    # Pairs by bin and label: then every two cuts are sums of a small table.
    cell_N = bin_N * CLASSES + label_N
    table = np.bincount(cell_N, minlength=(len(cut_G) + 1) * CLASSES).reshape(-1, CLASSES)
    below_GK = np.concatenate([np.zeros((1, CLASSES)), np.cumsum(table, axis=0)])
    best, found = -np.inf, (0.5, 1.5)
    for low in range(1, len(below_GK) - 1):
        for high in range(low + 1, len(below_GK) - 1):
            given = (below_GK[low], below_GK[high] - below_GK[low], below_GK[-1] - below_GK[high])
            kappa = weighted_kappa(np.stack(given, axis=1), "quadratic")
            if kappa is not None and kappa > best:
                best, found = kappa, (float(cut_G[low - 1]), float(cut_G[high - 1]))
    return found
