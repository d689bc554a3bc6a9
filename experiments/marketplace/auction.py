"""The auction: rank by predicted click probability times bid, pay the second price.

Shape letters: R requests, K candidates, S slots.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def run_auction(
    score_RK: NDArray[np.float64],
    bid_micros_RK: NDArray[np.integer],
    *,
    slots: int,
    reserve_micros: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Fill the slots of each request by a generalized second-price auction.

    Candidates are ranked by score times bid; those that bid below the reserve take no part. The
    winner of a slot pays, per click, the lowest bid (in whole micros) that would have kept it:
    ``max(reserve, ceil(next rank score / own score))``. At equal rank the earlier column wins.

    Args:
        score_RK: Predicted click probabilities in [0, 1]; a squashed score works too, as long as
            it is not negative.
        bid_micros_RK: Bids per click; negative marks an absent candidate.
        slots: Slots per request, at least 1.
        reserve_micros: Lowest bid and lowest price, at least 0.

    Returns:
        Columns shown in each slot, -1 where a slot stays empty, shape (R, S); and the price per
        click in each slot, 0 where it stays empty, shape (R, S).

    Raises:
        ValueError: If shapes differ, a score is negative, NaN or infinite, or ``slots`` or
            ``reserve_micros`` is out of range.

    Source:
        Edelman, Ostrovsky and Schwarz 2007; Varian 2007.
    """
    score_RK = np.asarray(score_RK, dtype=np.float64)
    bid_RK = np.asarray(bid_micros_RK)
    _check(score_RK, bid_RK, slots, reserve_micros)
    takes_part_RK = (bid_RK >= reserve_micros) & (bid_RK >= 0)
    rank_RK = np.where(takes_part_RK, score_RK * bid_RK, -1.0)
    # One more than the slots: the first loser sets the last winner's price.
    order_RJ = np.argsort(-rank_RK, axis=1, kind="stable")[:, : slots + 1]
    missing = slots + 1 - order_RJ.shape[1]
    won_RJ = np.take_along_axis(rank_RK, order_RJ, axis=1)
    order_RJ = np.pad(order_RJ, ((0, 0), (0, missing)), constant_values=-1)
    won_RJ = np.pad(won_RJ, ((0, 0), (0, missing)), constant_values=-1.0)
    shown_RS = np.where(won_RJ[:, :slots] >= 0, order_RJ[:, :slots], -1)
    own_score_RS = np.take_along_axis(score_RK, np.maximum(shown_RS, 0), axis=1)
    next_RS = np.maximum(won_RJ[:, 1:], 0.0)
    needed_RS = np.divide(next_RS, own_score_RS, out=np.zeros_like(next_RS), where=own_score_RS > 0)
    # A quotient that is a whole number but for rounding must not cost one micro more.
    price_RS = np.maximum(np.ceil(needed_RS * (1 - 1e-12)), reserve_micros).astype(np.int64)
    return shown_RS.astype(np.int64), np.where(shown_RS >= 0, price_RS, 0)


def _check(score_RK: NDArray[np.float64], bid_RK: NDArray, slots: int, reserve_micros: int) -> None:
    if score_RK.ndim != 2 or score_RK.shape != bid_RK.shape:
        raise ValueError(
            f"score_RK has shape {score_RK.shape} and bid_micros_RK {bid_RK.shape}; both must be "
            "(requests, candidates)"
        )
    if slots < 1 or reserve_micros < 0:
        raise ValueError(
            f"slots={slots} and reserve_micros={reserve_micros}: slots must be at least 1 and the "
            "reserve at least 0"
        )
    if not np.isfinite(score_RK).all():
        row, column = np.argwhere(~np.isfinite(score_RK))[0]
        raise ValueError(
            f"score_RK[{row}, {column}] is {score_RK[row, column]}; scores must be finite. Give "
            "absent candidates a bid of -1 and any finite score"
        )
    if (score_RK < 0).any():
        row, column = np.argwhere(score_RK < 0)[0]
        raise ValueError(
            f"score_RK[{row}, {column}] is {score_RK[row, column]:.4g}; a click probability is not "
            "negative (were logits passed?)"
        )
