"""How far an AUC, or the difference of two, can be trusted.

Three sources of noise are told apart:

- *impressions*: DeLong's structural components say how much each row moves the AUC;
- *users*: one user's impressions are alike, so components are summed within users before their
  variance is taken (Obuchowski); with every row its own user this is DeLong's variance exactly;
- *seeds*: a model trained again differs. The reported AUC is the mean over S seeds, and s²/S is
  added, s² being the variance between seeds.

    Var(mean of A_s − mean of B_s) = V_users(mean components of A − mean components of B)
                                     + s²_A / S_A + s²_B / S_B

What is not in it: other training data. A p-value or interval uses Student's t with the degrees of
freedom of Welch and Satterthwaite, so that two seeds are not mistaken for many.

Shape letters: N impressions, S seeds, U users.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from ranking.metrics import check_group, check_scores, count_classes


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its standard error, from which intervals at any level follow."""

    value: float
    """The estimate itself: an AUC, or a difference of two."""
    standard_error: float
    """Standard deviation of the estimate over users and seeds."""
    degrees_of_freedom: float
    """Of Student's t; infinite would be the normal distribution."""

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return ``value`` plus and minus its margin.

        Args:
            confidence: Between 0 and 1, both excluded.

        Returns:
            Lower and upper end. For an AUC near 1 they may pass 1; see ``logit_interval``.

        Raises:
            ValueError: If ``confidence`` is not between 0 and 1.
        """
        margin = self._quantile(confidence) * self.standard_error
        return self.value - margin, self.value + margin

    def logit_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return an interval for a share (an AUC) that stays within 0 and 1.

        The plain interval is taken for logit(A), whose standard error is se / (A (1 - A)), and
        mapped back.

        Args:
            confidence: Between 0 and 1, both excluded.

        Returns:
            Lower and upper end. A perfect AUC of 0 or 1 has no spread to measure: both ends are
            the estimate, which says too little.

        Raises:
            ValueError: If ``confidence`` is not between 0 and 1, or the value is not within 0
                and 1.
        """
        quantile = self._quantile(confidence)
        if not 0 <= self.value <= 1:
            raise ValueError(f"{self.value} is not a share; logit intervals are for AUCs alone")
        if self.value in (0.0, 1.0):
            return self.value, self.value
        logit = math.log(self.value / (1 - self.value))
        margin = quantile * self.standard_error / (self.value * (1 - self.value))
        return float(special.expit(logit - margin)), float(special.expit(logit + margin))

    @property
    def p_value(self) -> float:
        """Two-sided probability of a value this far from zero if the truth is zero.

        1.0 where both value and standard error are zero: a thing compared with itself.
        """
        if self.standard_error == 0:
            return 1.0 if self.value == 0 else 0.0
        t = abs(self.value) / self.standard_error
        return float(2 * stats.t.sf(t, self.degrees_of_freedom))

    def _quantile(self, confidence: float) -> float:
        if not 0 < confidence < 1:
            raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95")
        return float(stats.t.isf((1 - confidence) / 2, self.degrees_of_freedom))


@dataclass(frozen=True, kw_only=True)
class AucComponents:
    """What each impression contributes to the AUC, averaged over the seeds of one variant."""

    auc_S: NDArray[np.float64]
    """AUC of each seed."""
    component_N: NDArray[np.float64]
    """For a click, the share of non-clicks scored below it; for a non-click, the share of clicks
    scored above it; ties count half. The mean over the clicks is the AUC, and so is the mean over
    the non-clicks."""

    @property
    def auc(self) -> float:
        """Mean AUC over the seeds."""
        return float(self.auc_S.mean())


def auc_components(label_N: ArrayLike, scores: Sequence[ArrayLike]) -> AucComponents:
    """Compute DeLong's structural components, by sorting rather than by comparing all pairs.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        scores: The scores of each seed, each shape (N,).

    Returns:
        The AUC of each seed and the components' mean over the seeds.

    Raises:
        ValueError: If there is no seed, or as ``ranking.metrics.auc``.

    Source:
        DeLong, DeLong and Clarke-Pearson 1988; ranks as in Sun and Xu 2014, "Fast Implementation
        of DeLong's Algorithm", O(N log N).
    """
    if not len(scores):
        raise ValueError("no scores: a variant needs one array of predictions a seed")
    auc_S = np.empty(len(scores))
    component_N = np.zeros(np.shape(label_N))
    for seed, score_N in enumerate(scores):
        one_N = _components(label_N, score_N)
        auc_S[seed] = one_N[np.asarray(label_N) == 1].mean()
        component_N += one_N
    return AucComponents(auc_S=auc_S, component_N=component_N / len(scores))


def auc_estimate(
    label_N: ArrayLike, components: AucComponents, cluster_N: ArrayLike | None = None
) -> Estimate:
    """Attach users' and seeds' noise to an AUC.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        components: From ``auc_components`` on the same rows.
        cluster_N: The user of each impression, shape (N,); None takes the rows for independent.

    Returns:
        The mean AUC over the seeds, with its standard error.

    Raises:
        ValueError: As ``clustered_variance``.
    """
    variance, users = clustered_variance(label_N, components.component_N, cluster_N)
    return _with_seed_noise(components.auc, variance, users, [components.auc_S])


def auc_difference(
    label_N: ArrayLike, a: AucComponents, b: AucComponents, cluster_N: ArrayLike | None = None
) -> Estimate:
    """Compare two variants on the same impressions, with users' and both sides' seed noise.

    Pairing is by impression: what makes an impression easy for both cancels. Seeds are not
    paired, for two variants trained with one seed share nothing but a number.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        a: Components of the one variant, from ``auc_components``.
        b: Components of the other, on the same rows.
        cluster_N: The user of each impression, shape (N,); None takes the rows for independent.

    Returns:
        AUC of ``a`` minus AUC of ``b``, positive where ``a`` orders better.

    Raises:
        ValueError: As ``clustered_variance``.
    """
    difference_N = a.component_N - b.component_N
    variance, users = clustered_variance(label_N, difference_N, cluster_N)
    return _with_seed_noise(a.auc - b.auc, variance, users, [a.auc_S, b.auc_S])


def delong_interval(
    label_N: ArrayLike,
    score_N: ArrayLike,
    *,
    confidence: float = 0.95,
    cluster_N: ArrayLike | None = None,
) -> tuple[float, float, float]:
    """AUC of one model with its interval, on the logit scale.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        score_N: Any finite score, shape (N,).
        confidence: Between 0 and 1, both excluded.
        cluster_N: The user of each impression, shape (N,); None takes the rows for independent.

    Returns:
        AUC, lower end, upper end.

    Raises:
        ValueError: As ``auc_components`` and ``clustered_variance``.
    """
    estimate = auc_estimate(label_N, auc_components(label_N, [score_N]), cluster_N)
    return (estimate.value, *estimate.logit_interval(confidence))


def clustered_variance(
    label_N: ArrayLike, component_N: NDArray[np.float64], cluster_N: ArrayLike | None = None
) -> tuple[float, int]:
    """Variance of an AUC (or a difference of AUCs) over users, from its components.

    With V the components, A their mean over clicks (and over non-clicks), M clicks, L non-clicks,
    and sums within user u over its M_u clicks and L_u non-clicks:

        Var = k₁/(k₁-1) Σ_u (V_u⁺ - M_u A)² / M²  +  k₀/(k₀-1) Σ_u (V_u⁻ - L_u A)² / L²
              + 2 k/(k-1) Σ_u (V_u⁺ - M_u A)(V_u⁻ - L_u A) / (M L)

    where k users have rows, k₁ of them clicks and k₀ non-clicks. Every row written twice leaves
    it as it is; every row its own user makes it DeLong's.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        component_N: Structural components, or the difference of two variants', shape (N,).
        cluster_N: The user of each impression, shape (N,); None takes the rows for independent.

    Returns:
        The variance, and the smaller of k₁ and k₀, which bounds what is known about it.

    Raises:
        ValueError: If fewer than two users have clicks, or fewer than two have non-clicks, or the
            shapes disagree.

    Source:
        Obuchowski 1997, "Nonparametric Analysis of Clustered ROC Curve Data", Biometrics 53.
    """
    label_N, component_N = check_scores(label_N, component_N)
    click_N = label_N == 1
    clicks, non_clicks = count_classes(label_N)
    if cluster_N is None:
        user_N = np.arange(len(label_N))
    else:
        user_N = np.unique(check_group(cluster_N, len(label_N)), return_inverse=True)[1]
    users = int(user_N.max()) + 1
    mean_click, mean_non_click = component_N[click_N].mean(), component_N[~click_N].mean()
    deviation_N = component_N - np.where(click_N, mean_click, mean_non_click)
    click_U = np.bincount(user_N[click_N], deviation_N[click_N], users) / clicks
    non_click_U = np.bincount(user_N[~click_N], deviation_N[~click_N], users) / non_clicks
    with_clicks = int(np.count_nonzero(np.bincount(user_N[click_N], minlength=users)))
    with_non_clicks = int(np.count_nonzero(np.bincount(user_N[~click_N], minlength=users)))
    for count, what in ((with_clicks, "a click"), (with_non_clicks, "a non-click")):
        if count < 2:
            raise ValueError(
                f"{count} user has {what} among {len(label_N)} impressions of {users} users; an "
                "interval needs at least two. Was one constant passed as the user of every row?"
            )
    variance = (
        with_clicks / (with_clicks - 1) * (click_U**2).sum()
        + with_non_clicks / (with_non_clicks - 1) * (non_click_U**2).sum()
        + 2 * users / (users - 1) * (click_U * non_click_U).sum()
    )
    # Rounding, and small samples through the factors, can leave the cross term in the lead.
    return max(float(variance), 0.0), min(with_clicks, with_non_clicks)


def _components(label_N: ArrayLike, score_N: ArrayLike) -> NDArray[np.float64]:
    label_N, score_N = check_scores(label_N, score_N)
    clicks, non_clicks = count_classes(label_N)
    click_N = label_N == 1
    rank_N = stats.rankdata(score_N)
    component_N = np.empty(len(label_N))
    component_N[click_N] = (rank_N[click_N] - stats.rankdata(score_N[click_N])) / non_clicks
    own_rank_N = stats.rankdata(score_N[~click_N])
    component_N[~click_N] = 1 - (rank_N[~click_N] - own_rank_N) / clicks
    return component_N


def _with_seed_noise(
    value: float, user_variance: float, users: int, auc_by_side: Sequence[NDArray[np.float64]]
) -> Estimate:
    """Add s²/S of every side with more than one seed; degrees of freedom by Satterthwaite."""
    parts = [(user_variance, users - 1)]
    parts += [(float(a.var(ddof=1)) / len(a), len(a) - 1) for a in auc_by_side if len(a) > 1]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Estimate(value=value, standard_error=0.0, degrees_of_freedom=float(users - 1))
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    return Estimate(value=value, standard_error=math.sqrt(variance), degrees_of_freedom=freedom)
