"""Which variants are worth shipping: paired differences on one test set, honestly adjusted.

Two questions are asked of every variant. Is it above ``production``? And is it above the better
*placebo*: a model of the same capacity whose vectors mean nothing? Vectors of any kind are one
more embedding of the product id, so even random ones can gain by memorising. A variant ships only
if both answers are yes.

Each question has its own family of intervals, adjusted by Holm's step-down rule so that the chance
of even one false claim in the family is at most 1 - ``confidence``.

Shape letters: N test impressions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.comparison import Comparison, VariantResult
from experiments.exchange_rate import exchange_rates
from experiments.holm import HolmResult, holm
from experiments.slice_comparison import compare_slices
from ranking.intervals import AucComponents, Estimate, auc_components, auc_difference, auc_estimate
from ranking.metrics import check_group
from ranking.scorecard import click_metrics

CONTROLS = ("random_vectors", "shuffled_vectors")


def compare_variants(
    label_N: ArrayLike,
    user_N: ArrayLike,
    p_click: Mapping[str, Sequence[ArrayLike]],
    *,
    baseline: str = "production",
    controls: Sequence[str] = CONTROLS,
    confidence: float = 0.95,
    slices: Mapping[str, NDArray[np.bool_]] | None = None,
    embedding: Mapping[str, Mapping[str, float]] | None = None,
    exchanged: Sequence[str] | None = None,
) -> Comparison:
    """Compare variants trained on the same rows by their predictions for the same test rows.

    The better placebo is the one with the higher *test* AUC. Choosing on test rows favours the
    placebo, so it can only cost a variant its claim, never lend it one.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        user_N: The user of each impression, shape (N,); intervals are over users.
        p_click: For each variant the predicted click probabilities, one array of shape (N,) a
            seed. One array is right for a deterministic model; its seed noise is then zero.
        baseline: The variant that all others are compared with.
        controls: The placebos among ``p_click``; those absent are left out.
        confidence: Between 0 and 1, for each family of intervals as a whole.
        slices: Masks of the test rows, each shape (N,), on which all is compared again.
        embedding: Metrics of the vectors of those variants that have some.
        exchanged: The variants that the exchange rate is drawn through: those whose click model is
            the same but for its vectors. By default all of ``embedding``.

    Returns:
        One row a variant. The first family has every variant but the baseline, placebos too; the
        second every variant but the baseline and the better placebo. The baseline's own
        difference to the placebo is the placebo's gain with its sign turned.

    Raises:
        ValueError: If the baseline is missing, a control is the baseline, a variant has no
            predictions, or an array's length or content is wrong (the variant is named).
    """
    _check_set(p_click, baseline, controls, confidence)
    label_N, user_N = np.asarray(label_N, np.float64), np.asarray(user_N)
    # Once for all: every comparison below groups by user again.
    user_N = np.unique(check_group(user_N, len(label_N)), return_inverse=True)[1]
    components = {name: _named_components(name, label_N, p_click[name]) for name in p_click}
    others = [name for name in p_click if name != baseline]
    trained_controls = tuple(name for name in controls if name in p_click)
    placebo = max(trained_controls, key=lambda n: components[n].auc, default=None)

    def differences(names: Sequence[str], reference: str) -> dict[str, HolmResult]:
        estimates = [
            auc_difference(label_N, components[name], components[reference], user_N)
            for name in names
        ]
        return dict(zip(names, holm(estimates, confidence), strict=True))

    itself = HolmResult(value=0.0, low=0.0, high=0.0, p_value=1.0, rejected=False)
    against_baseline = differences(others, baseline) | {baseline: itself}
    against_placebo: dict[str, HolmResult] = {}
    if placebo is not None:
        against_placebo = differences([name for name in others if name != placebo], placebo)
        against_placebo |= {placebo: itself, baseline: against_baseline[placebo].turned()}
    rows = tuple(
        _row(
            name,
            label_N,
            user_N,
            p_click[name],
            auc_estimate(label_N, components[name], user_N),
            tuple(float(auc) for auc in components[name].auc_S),
            against_baseline[name],
            against_placebo.get(name),
            confidence,
        )
        for name in (baseline, *others)
    )
    embedding = {name: dict(measures) for name, measures in (embedding or {}).items()}
    through = embedding if exchanged is None else exchanged
    return Comparison(
        slices=compare_slices(
            label_N,
            user_N,
            p_click,
            slices or {},
            baseline=baseline,
            placebo=placebo,
            confidence=confidence,
        ),
        embedding=embedding,
        exchange=exchange_rates(
            {name: embedding[name] for name in through},
            {row.name: row.auc for row in rows},
            confidence=confidence,
        ),
        rows=rows,
        baseline=baseline,
        controls=trained_controls,
        placebo=placebo,
        confidence=confidence,
        impressions=len(label_N),
        clicks=int(label_N.sum()),
        users=int(user_N.max()) + 1,
    )


def _row(
    name: str,
    label_N: np.ndarray,
    user_N: np.ndarray,
    p_click: Sequence[ArrayLike],
    estimate: Estimate,
    auc_by_seed: tuple[float, ...],
    baseline: HolmResult,
    placebo: HolmResult | None,
    confidence: float,
) -> VariantResult:
    by_seed = [click_metrics(label_N, p_N, user_N) for p_N in p_click]
    mean = {key: float(np.mean([card[key] for card in by_seed])) for key in by_seed[0]}
    low, high = estimate.logit_interval(confidence)
    return VariantResult(
        name=name,
        seeds=len(p_click),
        auc_by_seed=auc_by_seed,
        auc=estimate.value,
        auc_low=low,
        auc_high=high,
        delta_auc=baseline.value,
        delta_auc_low=baseline.low,
        delta_auc_high=baseline.high,
        p_value_holm=baseline.p_value,
        delta_placebo=None if placebo is None else placebo.value,
        delta_placebo_low=None if placebo is None else placebo.low,
        delta_placebo_high=None if placebo is None else placebo.high,
        p_value_placebo_holm=None if placebo is None else placebo.p_value,
        log_loss=mean["log_loss"],
        normalized_entropy=mean["normalized_entropy"],
        calibration_ratio=mean["calibration_ratio"],
        ece=mean["ece"],
        pr_auc=mean["pr_auc"],
        grouped_auc=mean.get("grouped_auc"),
        grouped_auc_coverage=mean["grouped_auc_coverage"],
    )


def _check_set(
    p_click: Mapping[str, Sequence[ArrayLike]],
    baseline: str,
    controls: Sequence[str],
    confidence: float,
) -> None:
    if baseline not in p_click:
        raise ValueError(
            f"the baseline {baseline!r} is not among the variants {sorted(p_click)}; train it too, "
            "or name another baseline"
        )
    if baseline in controls:
        raise ValueError(f"{baseline!r} is both baseline and control; a placebo cannot be both")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95")


def _named_components(
    name: str, label_N: np.ndarray, p_click: Sequence[ArrayLike]
) -> AucComponents:
    """Say which variant is at fault where its predictions are."""
    if len(p_click) and np.ndim(p_click[0]) == 0:
        raise ValueError(
            f"variant {name!r}: a list of arrays is needed, one a seed; was a single array passed?"
        )
    try:
        return auc_components(label_N, p_click)
    except ValueError as error:
        raise ValueError(f"variant {name!r}: {error}") from error
