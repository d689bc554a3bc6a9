"""Agreement of two who labelled the same pairs, and whether probabilities mean what they say.

Shape letters: N pairs, K = 3 classes, B bins.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

CLASSES = 3
BINS = 10

Weights = Literal["linear", "quadratic"]


def confusion_matrix(
    label_N: NDArray[np.int64], other_N: NDArray[np.int64], weight_N: NDArray | None = None
) -> NDArray[np.float64]:
    """Count how often the one says row k where the other says column j, (K, K).

    Raises:
        ValueError: If a label is not 0, 1 or 2.
    """
    for name, values_N in (("label_N", label_N), ("other_N", other_N)):
        wrong_N = (values_N < 0) | (values_N >= CLASSES)
        if wrong_N.any():
            raise ValueError(f"{name} holds {values_N[wrong_N][0]}; labels are 0, 1 and 2")
    cell_N = label_N * CLASSES + other_N
    return np.bincount(cell_N, weight_N, CLASSES**2).astype(float).reshape(CLASSES, CLASSES)


def weighted_kappa(confusion_KK: NDArray[np.float64], weights: Weights) -> float | None:
    """Agreement beyond what the two class distributions give by chance.

    Args:
        confusion_KK: From ``confusion_matrix``.
        weights: A disagreement costs the distance of the classes, or its square.

    Returns:
        1.0 is perfect agreement, 0.0 no better than chance. None where nobody could disagree: no
        pair, or both know one class only.

    Source:
        Cohen 1968, "Weighted kappa", Psychological Bulletin 70.
    """
    total = confusion_KK.sum()
    distance_KK = np.abs(np.subtract.outer(np.arange(CLASSES), np.arange(CLASSES))).astype(float)
    if weights == "quadratic":
        distance_KK **= 2
    chance_KK = np.outer(confusion_KK.sum(1), confusion_KK.sum(0))
    expected = (distance_KK * chance_KK).sum()
    if expected == 0:
        return None
    return float(1 - total * (distance_KK * confusion_KK).sum() / expected)


def coincidence_matrix(
    label_N: NDArray[np.int64], pair_N: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """Count which labels several people gave to one pair, (K, K), symmetric.

    Every two labels of a pair count in both orders, divided by the number of its labels less
    one, so that each label weighs the same. ``weighted_kappa`` of it is the agreement among people;
    it is Krippendorff's alpha but for that one's correction for few labels.

    Args:
        label_N: Labels.
        pair_N: Code of the pair each belongs to.

    Returns:
        The matrix, or None if no pair has two labels.
    """
    code_N = np.unique(pair_N, return_inverse=True)[1]
    count_PK = np.zeros((int(code_N.max(initial=-1)) + 1, CLASSES))
    np.add.at(count_PK, (code_N, label_N), 1)
    several_PK = count_PK[count_PK.sum(1) > 1]
    if not len(several_PK):
        return None
    scale_P = 1 / (several_PK.sum(1) - 1)
    both_KK = (several_PK * scale_P[:, None]).T @ several_PK
    return both_KK - np.diag((several_PK * scale_P[:, None]).sum(0))


def equal_count_bins(p_N: NDArray[np.floating], bins: int = BINS) -> NDArray[np.int64]:
    """Bin of each probability, bins as full as each other; equal values share a bin, (N,)."""
    edge_B = np.quantile(p_N, np.arange(1, bins) / bins)
    return np.searchsorted(edge_B, p_N, side="left")


def reliability(
    p_N: NDArray[np.floating], hit_N: NDArray[np.bool_], bins: int = BINS
) -> list[tuple[float, float, int]]:
    """Mean probability, share that came true, and number of pairs of each bin that has any."""
    bin_N = equal_count_bins(p_N, bins)
    count_B = np.bincount(bin_N, minlength=bins)
    p_B = np.bincount(bin_N, p_N, bins)
    hit_B = np.bincount(bin_N, hit_N, bins)
    return [
        (float(p / n), float(h / n), int(n))
        for p, h, n in zip(p_B, hit_B, count_B, strict=True)
        if n
    ]


def calibration_error(curve: list[tuple[float, float, int]]) -> float:
    """Mean distance between what was said and what came true, over pairs; 0 is calibrated.

    Source:
        Naeini et al. 2015; over bins of equal count as in Nguyen and O'Connor 2015.
    """
    total = sum(count for *_, count in curve)
    return sum(count * abs(said - true) for said, true, count in curve) / total
