"""What a click costs the winner of a slot, by two rules.

Quality is the squashed score and rank is quality times bid. Ranks come sorted, -1 where nobody is.

Shape letters: R requests, S slots, J slots and the first loser.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def generalized_second_price(
    quality_RS: NDArray[np.float64],
    rank_RJ: NDArray[np.float64],
    column_RJ: NDArray[np.integer],
    reserve_micros: int,
) -> NDArray[np.int64]:
    """Return the lowest bid, in whole micros, that keeps each slot, shape (R, S).

    A bid keeps the slot if its rank beats the next one's, or equals it and stands in an earlier
    column. That is tried with the products as the auction forms them, so no rounding of a quotient
    can be off by one.

    Args:
        quality_RS: Of the winner of each slot.
        rank_RJ: Ranks, falling, -1 where nobody is.
        column_RJ: The candidates' columns, which decide ties.
        reserve_micros: Nobody pays less.

    Source:
        Edelman, Ostrovsky and Schwarz 2007.
    """
    next_RS = np.maximum(rank_RJ[:, 1:], 0.0)
    is_next_RS = rank_RJ[:, 1:] >= 0
    wins_tie_RS = ~is_next_RS | (column_RJ[:, :-1] < column_RJ[:, 1:])

    def keeps(bid_RS: NDArray[np.float64]) -> NDArray[np.bool_]:
        own_RS = quality_RS * bid_RS
        return (own_RS > next_RS) | ((own_RS == next_RS) & wins_tie_RS)

    needed_RS = np.divide(next_RS, quality_RS, out=np.zeros_like(next_RS), where=quality_RS > 0)
    first_RS = np.maximum(np.floor(needed_RS) - 1, reserve_micros)
    price_RS = first_RS + 3
    for step in (2, 1, 0):
        bid_RS = first_RS + step
        price_RS = np.where(keeps(bid_RS), bid_RS, price_RS)
    return price_RS.astype(np.int64)


def vickrey_clarke_groves(
    quality_RS: NDArray[np.float64],
    rank_RJ: NDArray[np.float64],
    look_S: NDArray[np.float64],
    bid_RS: NDArray[np.integer],
    reserve_micros: int,
) -> NDArray[np.int64]:
    """Return the price per click that makes each winner pay for the harm to the others, (R, S).

    Without the winner of slot k all below move up by one. Per look at slot k that costs them

        sum over j > k of (look[j-1] - look[j]) * rank[j] / look[k],

    and per click that over the winner's quality. Squashed, it is the VCG price of the welfare in
    which candidate i weighs score^(squashing - 1).

    Args:
        quality_RS: Of the winner of each slot.
        rank_RJ: Ranks, falling, -1 where nobody is.
        look_S: How likely each slot is looked at, never rising.
        bid_RS: Nobody pays more, whatever rounding says.
        reserve_micros: Nobody pays less.

    Source:
        Varian and Harris 2014, "The VCG Auction in Theory and Practice".
    """
    below_RS = np.maximum(rank_RJ[:, 1:], 0.0)
    lost_S = look_S - np.append(look_S[1:], 0.0)
    harm_RS = np.cumsum((lost_S * below_RS)[:, ::-1], axis=1)[:, ::-1]
    worth_RS = look_S * quality_RS
    price_RS = np.divide(harm_RS, worth_RS, out=np.zeros_like(harm_RS), where=worth_RS > 0)
    # A quotient that is a whole number but for rounding must not cost one micro more.
    whole_RS = np.ceil(price_RS * (1 - 1e-12))
    return np.minimum(np.maximum(whole_RS, reserve_micros), bid_RS).astype(np.int64)
