"""The shape of a cloud of vectors: what no ranking shows, and what betrays a collapse.

Shape letters: V vectors, D embedding size, N pairs.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from embeddings.collapse import effective_rank, modality_gap, uniformity

MAX_ROWS = 2000
"""Vectors at most that effective rank and uniformity are measured on, a seeded sample."""


def cloud(vector_VD: NDArray[np.floating], *, seed: int) -> dict[str, float]:
    """Describe a set of vectors; rows of zeros count for their share alone.

    Args:
        vector_VD: Vectors of any length.
        seed: Chooses the sample of ``MAX_ROWS`` rows where there are more.

    Returns:
        ``effective_rank``, how many directions are used, and ``uniformity``, 0 for one point and
        about -4 for an even spread (see ``embeddings.collapse``), both on the sample.
        ``anisotropy``: the mean cosine of two different vectors, 0 for an even spread and 1 for
        one direction (Ethayarajh 2019, arXiv:1909.00512). ``norm_mean``, ``norm_min``,
        ``norm_max``, and ``zero_share``, the share of rows of zeros. With fewer than two vectors
        that are not zero, ``zero_share`` alone.
    """
    norm_V = np.linalg.norm(vector_VD, axis=1)
    present_V = norm_V > 0
    measures = {"zero_share": float(1 - present_V.mean()) if len(norm_V) else 1.0}
    count = int(present_V.sum())
    if count < 2:
        return measures
    unit_VD = np.asarray(vector_VD)[present_V] / norm_V[present_V, None]
    # The sum over all pairs is the squared length of the sum, less the pairs of one with itself.
    total = float((unit_VD.astype(np.float64).sum(axis=0) ** 2).sum())
    row_B = np.arange(count)
    if count > MAX_ROWS:
        row_B = np.sort(np.random.default_rng(seed).choice(count, MAX_ROWS, replace=False))
    sample_BD = torch.from_numpy(np.ascontiguousarray(unit_VD[row_B], np.float32))
    return measures | {
        "effective_rank": effective_rank(sample_BD),
        "uniformity": uniformity(sample_BD),
        "anisotropy": (total - count) / (count * (count - 1)),
        "norm_mean": float(norm_V[present_V].mean()),
        "norm_min": float(norm_V[present_V].min()),
        "norm_max": float(norm_V[present_V].max()),
    }


def alignment(cosine_N: NDArray[np.floating]) -> float:
    """Mean squared distance of positive pairs on the unit sphere: 0 is one point, 2 is chance.

    Source:
        Wang and Isola 2020, arXiv:2005.10242, with exponent 2.
    """
    return float((2 - 2 * cosine_N.astype(np.float64)).mean())


def gap(one_VD: NDArray[np.floating], other_VD: NDArray[np.floating]) -> float | None:
    """Distance between the mean directions of two sets, 0 to 2; see ``modality_gap``.

    Returns:
        The distance; None where a set has no vector but zeros.
    """
    present = [rows[np.linalg.norm(rows, axis=1) > 0] for rows in (one_VD, other_VD)]
    if not all(map(len, present)):
        return None
    return modality_gap(*(torch.from_numpy(np.array(rows, np.float32)) for rows in present))
