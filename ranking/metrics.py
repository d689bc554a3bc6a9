"""How good predicted click probabilities are: ranking, calibration and likelihood.

Every metric is exact (no thresholds, no buckets; ties count half) and takes plain arrays, so that
any model's predictions can be judged. ``auc``, ``grouped_auc`` and ``pr_auc`` read only the order
of the scores and accept any finite number; the others need probabilities and refuse logits.

Shape letters: N impressions, G groups (users or queries), T distinct scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

SMALLEST_PROBABILITY = 1e-12
"""Predictions are held this far from 0 and 1 in the log loss: one certain mistake costs 27.6 nats
and not infinity, as a float32 sigmoid that rounds to 1 would otherwise."""

CALIBRATION_BINS = 20


@dataclass(frozen=True, kw_only=True)
class GroupAucs:
    """The AUC inside each group, in ascending order of the group's code."""

    group_G: NDArray
    """The groups' codes, distinct and ascending."""
    auc_G: NDArray[np.float64]
    """AUC of each group; NaN where all its impressions have one label."""
    impressions_G: NDArray[np.int64]
    """Impressions of each group."""

    @property
    def coverage(self) -> float:
        """Share of the impressions that lie in groups with both a click and a non-click."""
        defined_G = ~np.isnan(self.auc_G)
        return float(self.impressions_G[defined_G].sum() / self.impressions_G.sum())

    @property
    def mean(self) -> float:
        """The AUC averaged over the groups that have one, weighted by their impressions.

        Raises:
            ValueError: If no group has both a click and a non-click.
        """
        defined_G = ~np.isnan(self.auc_G)
        if not defined_G.any():
            raise ValueError(
                f"none of the {len(self.auc_G)} groups has both a click and a non-click, so none "
                "has an AUC; are the groups single impressions?"
            )
        return float(np.average(self.auc_G[defined_G], weights=self.impressions_G[defined_G]))


def auc(label_N: ArrayLike, score_N: ArrayLike) -> float:
    """Probability that a random click is scored above a random non-click, ties counting half.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        score_N: Any finite score, higher meaning more likely clicked, shape (N,).

    Returns:
        1.0 is a perfect order, 0.5 no better than chance, 0.0 perfectly backwards.

    Raises:
        ValueError: If the shapes disagree, a label is outside {0, 1}, a score is not finite, or
            all labels are the same.

    Source:
        The rank sum of Mann and Whitney 1947, with average ranks; integer arithmetic until the
        one division at the end.
    """
    label_N, score_N = check_scores(label_N, score_N)
    clicks, non_clicks = count_classes(label_N)
    doubled_rank_N, order_N = _doubled_ranks(score_N)
    clicked_N = label_N[order_N] == 1
    doubled_sum = int(doubled_rank_N[clicked_N].sum())
    return (doubled_sum - clicks * (clicks + 1)) / (2 * clicks * non_clicks)


def auc_by_group(label_N: ArrayLike, score_N: ArrayLike, group_N: ArrayLike) -> GroupAucs:
    """Compute the AUC inside every group at once.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        score_N: Any finite score, shape (N,).
        group_N: The group of each impression (user or query); integer codes are fastest, shape
            (N,).

    Returns:
        Each group's AUC, NaN where the group has one class only.

    Raises:
        ValueError: As ``auc``, except that one class overall is no error here.
    """
    label_N, score_N = check_scores(label_N, score_N)
    code_N = check_group(group_N, len(label_N))
    order_N = np.lexsort((score_N, code_N))
    code_N, score_N, label_N = code_N[order_N], score_N[order_N], label_N[order_N]
    new_group_N = _starts(code_N)
    start_G = np.flatnonzero(new_group_N)
    size_G = np.diff(start_G, append=len(code_N))

    start_T = np.flatnonzero(new_group_N | _starts(score_N))
    end_T = np.append(start_T[1:], len(code_N))
    # A tie's doubled average rank, counted from the start of its group.
    doubled_T = start_T + end_T + 1 - 2 * start_G[np.cumsum(new_group_N)[start_T] - 1]
    clicked_N = label_N == 1
    doubled_N = np.where(clicked_N, np.repeat(doubled_T, end_T - start_T), 0)

    clicks_G = np.add.reduceat(clicked_N.astype(np.int64), start_G)
    pairs_G = clicks_G * (size_G - clicks_G)
    auc_G = np.full(len(start_G), np.nan)
    numerator_G = np.add.reduceat(doubled_N, start_G) - clicks_G * (clicks_G + 1)
    np.divide(numerator_G, 2 * pairs_G, out=auc_G, where=pairs_G > 0)
    return GroupAucs(group_G=code_N[start_G], auc_G=auc_G, impressions_G=size_G)


def grouped_auc(label_N: ArrayLike, score_N: ArrayLike, group_N: ArrayLike) -> float:
    """Average the AUC inside each group, weighted by the group's impressions.

    It asks whether each user's (or query's) own impressions are in the right order, which the
    plain AUC mixes with telling eager users from idle ones. Groups with one class have no AUC and
    are left out; ``auc_by_group(...).coverage`` says how much is left.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        score_N: Any finite score, shape (N,).
        group_N: The group of each impression, shape (N,).

    Returns:
        Between 0 and 1; 0.5 is chance.

    Raises:
        ValueError: As ``auc_by_group``, or if no group has both classes.

    Source:
        Zhu et al. 2017, "Optimized Cost per Click in Taobao Display Advertising",
        arXiv:1703.02091.
    """
    return auc_by_group(label_N, score_N, group_N).mean


def log_loss_nats(label_N: ArrayLike, p_click_N: ArrayLike) -> float:
    """Mean negative log likelihood of the clicks, in nats.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        p_click_N: Predicted click probability, shape (N,), within [0, 1].

    Returns:
        0.0 is certainty that is always right. Predicting the base rate scores the labels' entropy.

    Raises:
        ValueError: If the shapes disagree, a label is outside {0, 1}, or a prediction is not a
            probability.
    """
    label_N, p_click_N = check_probabilities(label_N, p_click_N)
    return _log_loss(label_N, p_click_N)


def normalized_entropy(label_N: ArrayLike, p_click_N: ArrayLike) -> float:
    """Log loss divided by the log loss of always predicting these labels' click rate.

    Unlike the log loss it can be compared between data sets with different click rates.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        p_click_N: Predicted click probability, shape (N,), within [0, 1].

    Returns:
        1.0 is no better than the base rate, above 1.0 worse than it, 0.0 perfect.

    Raises:
        ValueError: As ``log_loss_nats``, or if all labels are the same.

    Source:
        He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook", section 3.
    """
    label_N, p_click_N = check_probabilities(label_N, p_click_N)
    count_classes(label_N)
    # The same summation for both, so that the base rate scores exactly 1.0.
    reference_nats = _log_loss(label_N, np.full_like(label_N, label_N.mean()))
    return _log_loss(label_N, p_click_N) / reference_nats


def pr_auc(label_N: ArrayLike, score_N: ArrayLike) -> float:
    """Average precision: the area under the precision-recall curve, as a step function.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        score_N: Any finite score, shape (N,).

    Returns:
        1.0 is perfect; a score without information reaches about the click rate.

    Raises:
        ValueError: As ``auc``.
    """
    label_N, score_N = check_scores(label_N, score_N)
    clicks, _ = count_classes(label_N)
    order_N = np.argsort(-score_N, kind="stable")
    score_N, label_N = score_N[order_N], label_N[order_N]
    last_T = np.append(np.flatnonzero(_starts(score_N))[1:] - 1, len(score_N) - 1)
    hits_T = np.cumsum(label_N)[last_T]
    precision_T = hits_T / (last_T + 1)
    return float((np.diff(hits_T, prepend=0.0) * precision_T).sum() / clicks)


def equal_mass_bins(p_click_N: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Put each prediction in one of ``bins`` bins of about equal size, by its average rank.

    Equal predictions always share a bin, so the answer does not depend on the order of the rows,
    and a constant prediction fills one bin.

    Args:
        p_click_N: Predictions, shape (N,).
        bins: Number of bins, at least 1.

    Returns:
        Bin of each prediction, 0 to ``bins - 1``, rising with it; shape (N,). Some bins may stay
        empty.

    Raises:
        ValueError: If ``bins`` is below 1.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; at least one bin is needed")
    doubled_rank_N, order_N = _doubled_ranks(p_click_N)
    bin_N = np.empty(len(p_click_N), np.int64)
    bin_N[order_N] = (doubled_rank_N - 1) * bins // (2 * len(p_click_N))
    return bin_N


def expected_calibration_error(
    label_N: ArrayLike, p_click_N: ArrayLike, *, bins: int = CALIBRATION_BINS
) -> float:
    """Mean gap between predicted and observed click rate over equally filled bins.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        p_click_N: Predicted click probability, shape (N,), within [0, 1].
        bins: Number of bins of equal mass. More bins see finer faults and more noise.

    Returns:
        0.0 is calibrated in every bin; predicting the base rate also scores 0, so read it
        beside the AUC.

    Raises:
        ValueError: As ``log_loss_nats``, or if ``bins`` is below 1.

    Source:
        Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning";
        bins of equal mass as in Nixon et al. 2019, arXiv:1904.01685.
    """
    label_N, p_click_N = check_probabilities(label_N, p_click_N)
    gap_T = np.bincount(equal_mass_bins(p_click_N, bins), weights=p_click_N - label_N)
    return float(np.abs(gap_T).sum() / len(label_N))


def calibration_ratio(label_N: ArrayLike, p_click_N: ArrayLike) -> float:
    """Mean predicted click rate over the mean observed one.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        p_click_N: Predicted click probability, shape (N,), within [0, 1].

    Returns:
        1.0 is calibrated on average; 1.1 predicts ten percent too many clicks.

    Raises:
        ValueError: As ``log_loss_nats``, or if nobody clicked.
    """
    label_N, p_click_N = check_probabilities(label_N, p_click_N)
    if not label_N.any():
        raise ValueError(f"none of the {len(label_N)} impressions was clicked: no observed rate")
    return float(p_click_N.mean() / label_N.mean())


def check_scores(
    label_N: ArrayLike, score_N: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return labels and scores as float64, or say what is wrong with them.

    Raises:
        ValueError: If the shapes disagree, are empty, a label is outside {0, 1}, or a score is
            not finite.
    """
    label_N, score_N = np.asarray(label_N, np.float64), np.asarray(score_N, np.float64)
    if label_N.ndim != 1 or label_N.shape != score_N.shape:
        raise ValueError(
            f"labels have shape {label_N.shape} and scores {score_N.shape}; both must be one "
            "number an impression, shape (N,)"
        )
    if not len(label_N):
        raise ValueError("no impressions: a metric needs at least one row")
    bad_N = (label_N != 0) & (label_N != 1)
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise ValueError(
            f"label {label_N[row]} at row {row}; only 0 (not clicked) and 1 (clicked) are allowed. "
            "Were relevance grades passed, or labels and predictions swapped?"
        )
    if not np.isfinite(score_N).all():
        row = int(np.argmin(np.isfinite(score_N)))
        raise ValueError(f"score {score_N[row]} at row {row} is not finite; did training diverge?")
    return label_N, score_N


def check_probabilities(
    label_N: ArrayLike, p_click_N: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return labels and probabilities as float64, or say what is wrong with them.

    Raises:
        ValueError: As ``check_scores``, or if a prediction is outside [0, 1].
    """
    label_N, p_click_N = check_scores(label_N, p_click_N)
    bad_N = (p_click_N < 0) | (p_click_N > 1)
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise ValueError(
            f"predicted click probability {p_click_N[row]:.6g} at row {row} is outside [0, 1]; "
            "were logits passed? Apply the sigmoid first"
        )
    return label_N, p_click_N


def count_classes(label_N: NDArray[np.float64]) -> tuple[int, int]:
    """Return the clicks and the non-clicks, both at least one.

    Raises:
        ValueError: If all labels are the same.
    """
    clicks = int(label_N.sum())
    if clicks in (0, len(label_N)):
        raise ValueError(
            f"all {len(label_N)} labels are {int(label_N[0])}; both clicks and non-clicks are "
            "needed. Is this slice too small, or are the non-clicks missing from the table?"
        )
    return clicks, len(label_N) - clicks


def check_group(group_N: ArrayLike, rows: int) -> NDArray:
    """Return the groups (users, queries) of ``rows`` impressions, or say what is wrong with them.

    Raises:
        ValueError: If there is not one group an impression.
    """
    group_N = np.asarray(group_N)
    if group_N.shape != (rows,):
        raise ValueError(
            f"groups have shape {group_N.shape}; one an impression is needed: ({rows},)"
        )
    if group_N.dtype == object:
        group_N = group_N.astype(str)
    return group_N


def _log_loss(label_N: NDArray[np.float64], p_click_N: NDArray[np.float64]) -> float:
    p_click_N = np.clip(p_click_N, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return float(-np.log(np.where(label_N == 1, p_click_N, 1 - p_click_N)).mean())


def _starts(sorted_N: NDArray) -> NDArray[np.bool_]:
    """True where a value differs from the one before it; the first row is True."""
    return np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]])


def _doubled_ranks(score_N: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Twice the average rank (from 1) of the sorted scores, an integer, and the sorting order."""
    order_N = np.argsort(score_N, kind="stable")
    start_T = np.flatnonzero(_starts(score_N[order_N]))
    end_T = np.append(start_T[1:], len(score_N))
    return np.repeat(start_T + end_T + 1, end_T - start_T), order_N
