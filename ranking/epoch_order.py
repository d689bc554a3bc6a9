"""Which rows an epoch reads and in which order: a pure function of the seed and the epoch.

Non-clicks are plenty and alike, so an epoch may read a share of them only. Odds then come out too
high by one over that share, which is a shift of the logit: ``p = p' / (p' + (1 - p') / w)``.

Shape letters: N rows, M rows that are read.

Source: McMahan et al. 2013, "Ad click prediction" (KDD), section 4.6; He et al. 2014, "Practical
lessons from predicting clicks on ads at Facebook" (ADKDD), section 6.3, for the correction.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from features.permutation import Permutation


def order_of_epoch(
    label_N: Tensor, *, negative_rate: float, seed: int, epoch: int, run_rows: int = 1
) -> Tensor:
    """Return the rows to read, shuffled, shape (M,); M is the same in every epoch.

    Args:
        label_N: 0 for non-clicks.
        negative_rate: Share of the non-clicks that is read, in (0, 1]; at least one is.
        seed, epoch: What the draw depends on, and nothing else.
        run_rows: Rows that stay together, which is for rows that lie in a random order already:
            so many of a disk are read at once. The few behind the last whole run come last.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    if run_rows > 1:
        order_N = _order_of_runs(len(label_N), run_rows, seed=seed, epoch=epoch)
        if negative_rate == 1:
            return order_N
        read_N = torch.zeros(len(label_N), dtype=torch.bool)
        read_N[_sampled(label_N, negative_rate, generator)] = True
        return order_N[read_N[order_N]]
    if negative_rate == 1:
        return torch.randperm(len(label_N), generator=generator)
    row_M = _sampled(label_N, negative_rate, generator)
    return row_M[torch.randperm(len(row_M), generator=generator)]


def rows_of_epoch(label_N: Tensor, *, negative_rate: float) -> int:
    """Return M, how many rows ``order_of_epoch`` returns, without drawing them."""
    if negative_rate == 1:
        return len(label_N)
    return int((label_N > 0).sum()) + _kept(int((label_N == 0).sum()), negative_rate)


def _sampled(label_N: Tensor, negative_rate: float, generator: torch.Generator) -> Tensor:
    """All clicks and a share of the other rows."""
    click_M, other_M = (torch.nonzero(kind)[:, 0] for kind in (label_N > 0, label_N == 0))
    kept = _kept(len(other_M), negative_rate)
    return torch.cat([click_M, other_M[torch.randperm(len(other_M), generator=generator)[:kept]]])


def _order_of_runs(rows: int, run_rows: int, *, seed: int, epoch: int) -> Tensor:
    runs = rows // run_rows
    run_M = Permutation(runs, seed=seed, epoch=epoch).at(np.arange(runs))
    order_N = (run_M[:, None] * run_rows + np.arange(run_rows)).ravel()
    return torch.from_numpy(np.concatenate([order_N, np.arange(runs * run_rows, rows)]))


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
