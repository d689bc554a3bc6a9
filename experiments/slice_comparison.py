"""Variants compared on parts of the test impressions: cold products, tail queries, missing images.

Slices are looked at to understand a result, not to find one. So each interval stands at its own
level, and beside it the q-value of Benjamini and Hochberg over all variants and slices: claims
below 0.05 are wrong in one of twenty cases.

Shape letters: N test impressions, M members of the slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ranking.intervals import AucComponents, auc_components, auc_difference, auc_estimate

FEWEST_USERS = 10
"""A slice with clicks of fewer users is counted and not compared."""


@dataclass(frozen=True, kw_only=True)
class SliceResult:
    """One variant on one part of the test impressions."""

    slice: str
    """Name of the part."""
    variant: str
    """Name of the variant."""
    impressions: int
    """Its rows."""
    clicks: int
    """Clicked ones among them."""
    users_with_clicks: int
    """Users with a click; they bound what can be known."""
    auc: float | None = None
    """Mean over seeds; None where too few users clicked to tell."""
    auc_low: float | None = None
    """Lower end of its interval."""
    auc_high: float | None = None
    """Upper end of its interval."""
    delta_auc: float | None = None
    """AUC minus the baseline's."""
    delta_auc_low: float | None = None
    """Lower end, not adjusted for the number of slices."""
    delta_auc_high: float | None = None
    """Upper end, not adjusted."""
    q_value: float | None = None
    """Of the difference to the baseline, over all slices and variants; None for the baseline."""
    delta_placebo: float | None = None
    """AUC minus the better placebo's, the one of the whole comparison; None without one."""
    delta_placebo_low: float | None = None
    """Lower end, not adjusted."""
    delta_placebo_high: float | None = None
    """Upper end, not adjusted."""


def compare_slices(
    label_N: ArrayLike,
    user_N: ArrayLike,
    p_click: Mapping[str, Sequence[ArrayLike]],
    slices: Mapping[str, NDArray[np.bool_]],
    *,
    baseline: str,
    placebo: str | None,
    confidence: float = 0.95,
) -> tuple[SliceResult, ...]:
    """Compare every variant with the baseline and the placebo on every slice.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        user_N: The user of each impression, shape (N,).
        p_click: For each variant the predictions of each seed, each shape (N,).
        slices: Mask of each slice, shape (N,).
        baseline: The variant that others are compared with.
        placebo: The better placebo on all test rows; None where none was trained.
        confidence: Of each interval.

    Returns:
        Slice by slice, one result a variant.

    Raises:
        ValueError: If a mask has another shape.
    """
    label_N, user_N = np.asarray(label_N, np.float64), np.asarray(user_N)
    results: list[SliceResult] = []
    p_values: dict[int, float] = {}
    for name, mask_N in slices.items():
        if mask_N.shape != label_N.shape or mask_N.dtype != np.bool_:
            raise ValueError(
                f"slice {name!r} has dtype {mask_N.dtype} and shape {mask_N.shape}; a boolean mask "
                f"of shape {label_N.shape} is needed"
            )
        label_M, user_M = label_N[mask_N], user_N[mask_N]
        clicking, idle = (len(np.unique(user_M[label_M == clicked])) for clicked in (1, 0))
        components: dict[str, AucComponents] = {}
        if min(clicking, idle) >= FEWEST_USERS:
            components = {
                variant: auc_components(label_M, [np.asarray(p_N)[mask_N] for p_N in seeds])
                for variant, seeds in p_click.items()
            }
        for variant in p_click:
            figures: dict[str, float] = {}
            if components:
                estimate = auc_estimate(label_M, components[variant], user_M)
                figures = _figures("auc", estimate.value, *estimate.logit_interval(confidence))
            for reference, key in ((baseline, "delta_auc"), (placebo, "delta_placebo")):
                if components and reference is not None and variant != reference:
                    difference = auc_difference(
                        label_M, components[variant], components[reference], user_M
                    )
                    figures |= _figures(key, difference.value, *difference.interval(confidence))
                    if reference == baseline:
                        p_values[len(results)] = difference.p_value
            results.append(
                SliceResult(
                    slice=name,
                    variant=variant,
                    impressions=len(label_M),
                    clicks=int(label_M.sum()),
                    users_with_clicks=clicking,
                    **figures,
                )
            )
    if p_values:
        q_values = stats.false_discovery_control(list(p_values.values()))
        for place, q_value in zip(p_values, q_values, strict=True):
            results[place] = replace(results[place], q_value=float(q_value))
    return tuple(results)


def _figures(key: str, value: float, low: float, high: float) -> dict[str, float]:
    return {key: value, f"{key}_low": low, f"{key}_high": high}
