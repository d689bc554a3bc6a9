"""The auction: rank by bid times predicted click probability, and fill the slots.

Shape letters: R requests, K candidates, S slots, J slots and the first loser.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from experiments.marketplace.parameters import Pricing
from experiments.marketplace.prices import generalized_second_price, vickrey_clarke_groves


def run_auction(
    score_RK: NDArray[np.float64],
    bid_micros_RK: NDArray[np.integer],
    *,
    slots: int,
    reserve_micros: int,
    pricing: Pricing = "gsp",
    squashing: float = 1.0,
    examination: Sequence[float] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Fill the slots of each request and say what a click in each costs.

    Candidates are ranked by bid times score to the power of ``squashing``; those that bid below
    the reserve take no part. At equal rank the earlier column wins. Nobody pays less than the
    reserve or more than the bid.

    Args:
        score_RK: Predicted click probabilities; anything finite and not negative can be ranked.
        bid_micros_RK: Bids per click; negative marks an absent candidate.
        slots: Slots per request, at least 1.
        reserve_micros: Lowest bid and lowest price, at least 0.
        pricing: "gsp": the lowest bid, in whole micros, that would have kept the slot.
            "first_price": the bid. "vcg": the harm that taking part does to the others.
        squashing: 1 ranks by expected revenue, 0 by the bid alone.
        examination: How likely each slot is looked at, at least S values; VCG needs it.

    Returns:
        Columns shown in each slot, -1 where a slot stays empty, shape (R, S); and the price per
        click in each slot, 0 where it stays empty, shape (R, S).

    Raises:
        ValueError: If shapes differ, a score is negative, NaN or infinite, ``slots``,
            ``reserve_micros``, ``squashing`` or ``pricing`` is out of range, or VCG lacks a falling
            examination.

    Source:
        Edelman, Ostrovsky and Schwarz 2007; Varian 2007; Lahaie and Pennock 2007.
    """
    score_RK = np.asarray(score_RK, dtype=np.float64)
    bid_RK = np.asarray(bid_micros_RK)
    _check(score_RK, bid_RK, slots, reserve_micros, squashing)
    # x ** 1.0 is x to the bit, but 0 ** 0 is 1: squashing to nothing ranks by the bid.
    quality_RK = score_RK if squashing == 1 else score_RK**squashing
    takes_part_RK = (bid_RK >= reserve_micros) & (bid_RK >= 0)
    rank_RK = np.where(takes_part_RK, quality_RK * bid_RK, -1.0)
    # One more than the slots: the first loser sets the last winner's price.
    order_RJ = np.argsort(-rank_RK, axis=1, kind="stable")[:, : slots + 1]
    missing = slots + 1 - order_RJ.shape[1]
    won_RJ = np.take_along_axis(rank_RK, order_RJ, axis=1)
    order_RJ = np.pad(order_RJ, ((0, 0), (0, missing)), constant_values=-1)
    won_RJ = np.pad(won_RJ, ((0, 0), (0, missing)), constant_values=-1.0)
    order_RJ = np.where(won_RJ >= 0, order_RJ, -1)
    shown_RS = order_RJ[:, :slots].astype(np.int64)
    column_RS = np.maximum(shown_RS, 0)
    quality_RS = np.take_along_axis(quality_RK, column_RS, axis=1)
    if pricing == "gsp":
        price_RS = generalized_second_price(quality_RS, won_RJ, order_RJ, reserve_micros)
    elif pricing == "first_price":
        price_RS = np.take_along_axis(bid_RK, column_RS, axis=1)
    elif pricing == "vcg":
        look_S = _falling(examination, slots)
        bid_RS = np.take_along_axis(bid_RK, column_RS, axis=1)
        price_RS = vickrey_clarke_groves(quality_RS, won_RJ, look_S, bid_RS, reserve_micros)
    else:
        raise ValueError(f"pricing is {pricing!r}; gsp, first_price and vcg are known")
    return shown_RS, np.where(shown_RS >= 0, price_RS, 0).astype(np.int64)


def _falling(examination: Sequence[float] | None, slots: int) -> NDArray[np.float64]:
    look_S = np.asarray(() if examination is None else examination, np.float64)[:slots]
    if len(look_S) < slots or (look_S <= 0).any() or (np.diff(look_S) > 0).any():
        raise ValueError(
            f"examination={examination}: VCG prices the looks lost by those below, and needs one "
            f"positive probability for each of the {slots} slots, never rising"
        )
    return look_S


def _check(
    score_RK: NDArray[np.float64],
    bid_RK: NDArray,
    slots: int,
    reserve_micros: int,
    squashing: float,
) -> None:
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
    if not 0 <= squashing <= 2:
        raise ValueError(
            f"squashing is {squashing}; it must lie between 0 (the bid alone) and 2, 1 being usual"
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
