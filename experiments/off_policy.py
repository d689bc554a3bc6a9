"""What another policy would have earned, from a log whose choices were drawn with known chances.

Each logged row is one choice: an action drawn from the logging policy with its propensity, and its
reward. Weights w = pi_e(a|x) / pi_0(a|x) make the log speak for the target policy pi_e, as long as
the logging policy took what the target would take often enough. Where it did not, no estimator
helps, and the estimate is refused.

Shape letters: N logged choices, G clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from experiments.off_policy_config import SupportLimits


@dataclass(frozen=True, kw_only=True)
class Support:
    """How much of the log speaks for the target policy."""

    rows: int
    effective_rows: float
    """(sum of w)^2 / sum of w^2: rows of equal weight that would be as steady."""
    largest_weight: float
    largest_weight_share: float
    mean_weight: float
    """1 in expectation, if the propensities are those the log was drawn with."""
    mean_weight_error: float
    """Its standard error."""
    unsupported: float
    """Share of the target's choices that the log never took in that context."""
    rewarded_rows: int

    def violations(self, limits: SupportLimits) -> list[str]:
        """Say which limits are passed, in words; empty if none."""
        found = []
        if self.unsupported > limits.max_unsupported:
            found.append(
                f"{self.unsupported:.1%} of the target policy's choices were never logged "
                f"(at most {limits.max_unsupported:.1%})"
            )
        share = self.effective_rows / self.rows
        if self.effective_rows < limits.min_effective_rows or share < limits.min_effective_share:
            found.append(
                f"effective sample size {self.effective_rows:.1f} of {self.rows} rows (at least "
                f"{limits.min_effective_rows:g} and {limits.min_effective_share:.1%})"
            )
        if self.largest_weight_share > limits.max_weight_share:
            found.append(
                f"one row carries {self.largest_weight_share:.1%} of all weight (at most "
                f"{limits.max_weight_share:.1%})"
            )
        if self.rewarded_rows < limits.min_rewarded_rows:
            found.append(
                f"{self.rewarded_rows} rewarded rows with weight (at least "
                f"{limits.min_rewarded_rows})"
            )
        off = abs(self.mean_weight - 1 + self.unsupported)
        if off > limits.max_mean_weight_error * self.mean_weight_error + 1e-9:
            found.append(
                f"the mean weight is {self.mean_weight:.3f} +- {self.mean_weight_error:.3f} where "
                "it must be 1: the propensities are not those the log was drawn with, or the "
                "target's probabilities do not sum to 1"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The target policy's mean reward, by one estimator."""

    name: str
    value: float
    low: float
    high: float
    standard_error: float
    difference: float
    """To the logging policy's own mean reward."""
    difference_low: float
    difference_high: float


def importance_weights(target_N: ArrayLike, propensity_N: ArrayLike) -> NDArray[np.float64]:
    """Return pi_e(a|x) / pi_0(a|x) of the logged actions, shape (N,).

    Args:
        target_N: The target policy's probability of each logged action, in [0, 1].
        propensity_N: The logging policy's, above 0 and at most 1.

    Raises:
        ValueError: If shapes disagree or a probability is outside its range.
    """
    target_N, propensity_N = np.asarray(target_N, np.float64), np.asarray(propensity_N, np.float64)
    if target_N.shape != propensity_N.shape or target_N.ndim != 1:
        raise ValueError(f"target_N has shape {target_N.shape}, propensity_N {propensity_N.shape}")
    for name, values, low in (("target", target_N, False), ("propensity", propensity_N, True)):
        wrong = ~((values > 0) if low else (values >= 0)) | ~(values <= 1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"{name} is {values[row]} in row {row}; a probability lies in "
                f"{'(0, 1]' if low else '[0, 1]'}. Is the column a score or a percentage?"
            )
    return target_N / propensity_N


def support_of(
    weight_N: NDArray[np.float64], reward_N: NDArray[np.float64], unsupported: float
) -> Support:
    """Measure how much of the log speaks for the target policy."""
    total = weight_N.sum()
    square = (weight_N**2).sum()
    return Support(
        rows=len(weight_N),
        effective_rows=float(total**2 / square) if square > 0 else 0.0,
        largest_weight=float(weight_N.max()),
        largest_weight_share=float(weight_N.max() / total) if total > 0 else 1.0,
        mean_weight=float(weight_N.mean()),
        mean_weight_error=float(weight_N.std(ddof=1) / len(weight_N) ** 0.5),
        unsupported=unsupported,
        rewarded_rows=int(((reward_N != 0) & (weight_N > 0)).sum()),
    )


def ips(
    weight_N: ArrayLike,
    reward_N: ArrayLike,
    *,
    cluster_N: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Inverse propensity scores: the mean of w r. Unbiased, and noisy where weights are large.

    Args:
        weight_N: Importance weights, shape (N,).
        reward_N: Rewards, shape (N,).
        cluster_N: Unit of chance of each row for the interval, such as its user; rows if None.
        confidence: Of the interval.

    Source: Horvitz and Thompson 1952, doi:10.1080/01621459.1952.10483446.
    """
    weight_N, reward_N = _arrays(weight_N, reward_N)
    return _estimate("ips", weight_N * reward_N, reward_N, cluster_N, confidence)


def clipped_ips(
    weight_N: ArrayLike,
    reward_N: ArrayLike,
    *,
    largest: float,
    cluster_N: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """IPS with weights cut at ``largest``: steadier, and too low where rewards are not negative.

    Source: Ionides 2008, doi:10.1198/106186008X320456.
    """
    if not largest > 0:
        raise ValueError(f"largest={largest}: weights can be cut at a number above 0 only")
    weight_N, reward_N = _arrays(weight_N, reward_N)
    term_N = np.minimum(weight_N, largest) * reward_N
    return _estimate("clipped", term_N, reward_N, cluster_N, confidence)


def snips(
    weight_N: ArrayLike,
    reward_N: ArrayLike,
    *,
    cluster_N: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Self-normalised IPS: sum of w r over sum of w. A shift of all rewards shifts it alike.

    Source: Swaminathan and Joachims 2015, "The Self-Normalized Estimator for Counterfactual
    Learning".
    """
    weight_N, reward_N = _arrays(weight_N, reward_N)
    total = weight_N.sum()
    if total <= 0:
        raise ValueError("all weights are 0: the target policy never takes a logged action")
    value = float((weight_N * reward_N).sum() / total)
    # Influence of each row on a ratio of means, about the value.
    term_N = value + weight_N * (reward_N - value) / weight_N.mean()
    return _estimate("snips", term_N, reward_N, cluster_N, confidence)


def doubly_robust(
    weight_N: ArrayLike,
    reward_N: ArrayLike,
    expected_logged_N: ArrayLike,
    expected_target_N: ArrayLike,
    *,
    cluster_N: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """A reward model for every choice, and IPS for what it misses in the logged ones.

    Unbiased if either the propensities or the reward model are right. The model must not have
    seen the row it is asked about (``cross_fitted_rewards``).

    Args:
        weight_N: Importance weights.
        reward_N: Rewards.
        expected_logged_N: The model's reward of the logged action.
        expected_target_N: The model's mean reward under the target policy in each row's context.
        cluster_N: As for ``ips``.
        confidence: Of the interval.

    Source: Dudík, Langford and Li 2011, arXiv:1103.4601, equation 5.
    """
    weight_N, reward_N = _arrays(weight_N, reward_N)
    logged_N, target_N = _arrays(expected_logged_N, expected_target_N)
    term_N = target_N + weight_N * (reward_N - logged_N)
    return _estimate("doubly_robust", term_N, reward_N, cluster_N, confidence)


def cross_fitted_rewards(
    context_N: NDArray[np.int64],
    action_N: NDArray[np.int64],
    reward_N: NDArray[np.float64],
    target_XA: NDArray[np.float64],
    *,
    folds: int = 5,
    prior_rows: float = 200.0,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reward model for ``doubly_robust``: smoothed mean rewards of context and action.

    The mean of (context, action) shrinks to the action's, the action's to that of all, each by
    ``prior_rows`` rows. Every row is judged by a model fitted on the other folds.

    Args:
        context_N: Context of each row, 0..X-1.
        action_N: Action of each row, 0..A-1.
        reward_N: Rewards.
        target_XA: The target policy, rows sum to 1.
        folds: Parts that the rows are dealt to at random.
        prior_rows: Strength of the shrinkage.
        seed: Of the deal.

    Returns:
        Expected reward of the logged action and under the target policy, each (N,).
    """
    contexts, actions = target_XA.shape
    fold_N = np.random.default_rng(seed).permutation(len(reward_N)) % folds
    cell_N = context_N * actions + action_N
    logged_N, target_N = np.empty(len(reward_N)), np.empty(len(reward_N))
    for fold in range(folds):
        fit = fold_N != fold
        overall = reward_N[fit].mean()
        action_A = _shrunk(action_N[fit], reward_N[fit], np.full(actions, overall), prior_rows)
        prior_C = np.tile(action_A, contexts)
        model_XA = _shrunk(cell_N[fit], reward_N[fit], prior_C, prior_rows).reshape(target_XA.shape)
        logged_N[~fit] = model_XA[context_N[~fit], action_N[~fit]]
        target_N[~fit] = (target_XA * model_XA).sum(1)[context_N[~fit]]
    return logged_N, target_N


def _shrunk(
    code_N: NDArray[np.int64],
    reward_N: NDArray[np.float64],
    prior_C: NDArray[np.float64],
    prior_rows: float,
) -> NDArray[np.float64]:
    rows_C = np.bincount(code_N, minlength=len(prior_C))
    reward_C = np.bincount(code_N, reward_N, minlength=len(prior_C))
    return (reward_C + prior_rows * prior_C) / (rows_C + prior_rows)


def _arrays(*values: ArrayLike) -> tuple[NDArray[np.float64], ...]:
    arrays = tuple(np.asarray(value, np.float64) for value in values)
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1 or len(arrays[0]) < 2:
        raise ValueError(
            f"weights, rewards and model must be columns of one length of 2 rows or more; their "
            f"shapes are {', '.join(str(array.shape) for array in arrays)}"
        )
    for array in arrays:
        if not np.isfinite(array).all():
            raise ValueError(f"row {int(np.flatnonzero(~np.isfinite(array))[0])} is not finite")
    return arrays


def _estimate(
    name: str,
    term_N: NDArray[np.float64],
    reward_N: NDArray[np.float64],
    cluster_N: ArrayLike | None,
    confidence: float,
) -> Estimate:
    """Mean of the terms, with an interval over clusters (rows, if there are none)."""
    value, logged = float(term_N.mean()), float(reward_N.mean())
    error = _clustered_error(term_N - value, cluster_N)
    paired = _clustered_error(term_N - reward_N - (value - logged), cluster_N)
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    return Estimate(
        name=name,
        value=value,
        low=value - z * error,
        high=value + z * error,
        standard_error=error,
        difference=value - logged,
        difference_low=value - logged - z * paired,
        difference_high=value - logged + z * paired,
    )


def _clustered_error(centred_N: NDArray[np.float64], cluster_N: ArrayLike | None) -> float:
    """Standard error of a mean of centred terms whose clusters are independent."""
    sum_G = centred_N
    if cluster_N is not None:
        code_N = np.unique(np.asarray(cluster_N), return_inverse=True)[1]
        sum_G = np.bincount(code_N, centred_N)
        if len(sum_G) < 2:
            raise ValueError("one cluster holds all rows; an interval needs two or more")
    clusters = len(sum_G)
    return float(np.sqrt((sum_G**2).sum() * clusters / (clusters - 1)) / len(centred_N))
