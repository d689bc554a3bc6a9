"""Which rows an epoch reads and in which order: a pure function of the seed and the epoch.

Non-clicks are plenty and alike, so an epoch may read a share of them only. Odds then come out too
high by one over that share, which is a shift of the logit: ``p = p' / (p' + (1 - p') / w)``.

Shape letters: N rows, M rows that are read.

Source: McMahan et al. 2013, "Ad click prediction" (KDD), section 4.6; He et al. 2014, "Practical
lessons from predicting clicks on ads at Facebook" (ADKDD), section 6.3, for the correction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def order_of_epoch(label_N: Tensor, *, negative_rate: float, seed: int, epoch: int) -> Tensor:
    """Return the rows to read, shuffled, shape (M,); M is the same in every epoch.

    Args:
        label_N: 0 for non-clicks.
        negative_rate: Share of the non-clicks that is read, in (0, 1]; at least one is.
        seed, epoch: What the draw depends on, and nothing else.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    if negative_rate == 1:
        return torch.randperm(len(label_N), generator=generator)
    click_M, other_M = (torch.nonzero(kind)[:, 0] for kind in (label_N > 0, label_N == 0))
    kept = _kept(len(other_M), negative_rate)
    drawn_M = other_M[torch.randperm(len(other_M), generator=generator)[:kept]]
    row_M = torch.cat([click_M, drawn_M])
    return row_M[torch.randperm(len(row_M), generator=generator)]


def rows_of_epoch(label_N: Tensor, *, negative_rate: float) -> int:
    """Return M, how many rows ``order_of_epoch`` returns, without drawing them."""
    if negative_rate == 1:
        return len(label_N)
    return int((label_N > 0).sum()) + _kept(int((label_N == 0).sum()), negative_rate)


def _kept(others: int, negative_rate: float) -> int:
    """How many of so many non-clicks are read."""
    return max(1, round(negative_rate * others))


def sampled_shift(negative_rate: float) -> float:
    """Return what down-sampling adds to a logit: ``-log(w)``, 0 where every row is read."""
    return -math.log(negative_rate)


def corrected(p_click: float, negative_rate: float) -> float:
    """Return the probability over all rows of one learned on down-sampled rows.

    Args:
        p_click: p', in [0, 1].
        negative_rate: w, in (0, 1].

    Raises:
        ValueError: If the rate lies outside (0, 1].
    """
    if not 0 < negative_rate <= 1:
        raise ValueError(
            f"negative_rate is {negative_rate}, must be above 0 and at most 1: the share of the "
            "non-clicks that were read"
        )
    return p_click / (p_click + (1 - p_click) / negative_rate)
