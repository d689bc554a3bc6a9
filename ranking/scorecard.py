"""Every metric of one set of predictions, on all impressions and on named slices of them.

Shape letters: N impressions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ranking.metrics import (
    auc,
    auc_by_group,
    calibration_ratio,
    check_group,
    check_probabilities,
    expected_calibration_error,
    log_loss_nats,
    normalized_entropy,
    pr_auc,
)


def click_metrics(
    label_N: ArrayLike, p_click_N: ArrayLike, group_N: ArrayLike | None = None
) -> dict[str, float]:
    """Every metric of this file under its name, flat.

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        p_click_N: Predicted click probability, shape (N,), within [0, 1].
        group_N: Users (or queries) for the grouped AUC, shape (N,); None leaves it out.

    Returns:
        ``impressions, clicks, auc, pr_auc, log_loss, normalized_entropy, calibration_ratio, ece``
        and, with groups, ``grouped_auc`` (left out where no group has both classes) and
        ``grouped_auc_coverage``.

    Raises:
        ValueError: As the single metrics do; all labels the same is one reason.
    """
    label_N, p_click_N = check_probabilities(label_N, p_click_N)
    metrics = {
        "impressions": float(len(label_N)),
        "clicks": float(label_N.sum()),
        "auc": auc(label_N, p_click_N),
        "pr_auc": pr_auc(label_N, p_click_N),
        "log_loss": log_loss_nats(label_N, p_click_N),
        "normalized_entropy": normalized_entropy(label_N, p_click_N),
        "calibration_ratio": calibration_ratio(label_N, p_click_N),
        "ece": expected_calibration_error(label_N, p_click_N),
    }
    if group_N is not None:
        groups = auc_by_group(label_N, p_click_N, group_N)
        metrics["grouped_auc_coverage"] = groups.coverage
        if groups.coverage > 0:
            metrics["grouped_auc"] = groups.mean
    return metrics


def sliced_metrics(
    label_N: ArrayLike,
    p_click_N: ArrayLike,
    slices: Mapping[str, NDArray[np.bool_]],
    group_N: ArrayLike | None = None,
) -> dict[str, float]:
    """Every metric on each named part of the impressions: cold products, tail queries, ...

    Args:
        label_N: 1 where clicked, else 0, shape (N,).
        p_click_N: Predicted click probability, shape (N,), within [0, 1].
        slices: Boolean mask of each slice by its name, each shape (N,); they may overlap.
        group_N: As in ``click_metrics``.

    Returns:
        ``"SLICE.METRIC"``. A slice without both classes has ``impressions`` and ``clicks`` only.

    Raises:
        ValueError: As ``click_metrics`` except for one class; or if a mask is not boolean or has
            another length.
    """
    label_N, p_click_N = check_probabilities(label_N, p_click_N)
    group_N = None if group_N is None else check_group(group_N, len(label_N))
    out: dict[str, float] = {}
    for name, mask_N in slices.items():
        mask_N = np.asarray(mask_N)
        if mask_N.dtype != np.bool_ or mask_N.shape != label_N.shape:
            raise ValueError(
                f"slice {name!r} has dtype {mask_N.dtype} and shape {mask_N.shape}; a boolean mask "
                f"of shape {label_N.shape} is needed (row numbers are not a mask)"
            )
        clicks, impressions = label_N[mask_N].sum(), int(mask_N.sum())
        if 0 < clicks < impressions:
            group = None if group_N is None else group_N[mask_N]
            part = click_metrics(label_N[mask_N], p_click_N[mask_N], group)
        else:
            part = {"impressions": float(impressions), "clicks": float(clicks)}
        out |= {f"{name}.{key}": value for key, value in part.items()}
    return out
