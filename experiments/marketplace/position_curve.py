"""How much a slot is looked at, from a log of clicks in which items change their slot.

The click rate by slot mixes two things: lower slots are looked at less, and a ranker puts worse
items there. Here an item is compared with itself only: the curve explains how its clicks fall over
the slots it was shown in, whatever its own attraction is.

Shape letters: N impressions, C cells (item and slot), I items, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_ROUNDS = 20_000
TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True)
class PositionCurve:
    """Position-based examination fitted to a log."""

    examination_S: NDArray[np.float64]
    """How likely each slot is looked at, relative to the most looked-at one."""
    click_rate_S: NDArray[np.float64]
    """Plain click rate by slot: attraction and examination mixed."""
    impressions: int
    informative_impressions: int
    """Of items with a click and at least two slots; the others say nothing of the curve."""


def fit_position_curve(
    item_N: ArrayLike, position_N: ArrayLike, clicked_N: ArrayLike, *, slots: int | None = None
) -> PositionCurve:
    """Fit P(click) = examination[slot] x attraction[item] by what items do in different slots.

    Maximum likelihood of a Poisson regression with one effect an item, whose slot effects are
    consistent however few impressions an item has: given an item's clicks, their distribution
    over its slots does not depend on its attraction. Slot and item effects are solved for in
    turns until they stand still.

    Args:
        item_N: What was shown, say a query and product: any values that compare, shape (N,).
        position_N: Slot of each impression, from 1, shape (N,).
        clicked_N: 1 where clicked, shape (N,).
        slots: Fit the first so many; by default all that occur.

    Raises:
        ValueError: If shapes differ, positions do not start at 1, or the clicks of items that
            changed their slot do not reach or do not connect every slot.

    Source:
        The position-based model (Joachims, Swaminathan and Schnabel 2017); Hausman, Hall and
        Griliches 1984 for counts with effects of items.
    """
    item_N, position_N = np.asarray(item_N), np.asarray(position_N)
    clicked_N = np.asarray(clicked_N, np.float64)
    if not item_N.shape == position_N.shape == clicked_N.shape or item_N.ndim != 1:
        raise ValueError(
            f"items {item_N.shape}, positions {position_N.shape} and clicks {clicked_N.shape} "
            "must each be one value an impression, shape (N,)"
        )
    if not len(position_N) or position_N.min() != 1:
        first = position_N.min() if len(position_N) else "none"
        raise ValueError(f"the first position is {first}; slots are counted from 1")
    slots = int(position_N.max()) if slots is None else slots
    kept_N = position_N <= slots
    slot_N = position_N[kept_N].astype(np.int64) - 1
    code_N = np.unique(item_N[kept_N], return_inverse=True)[1]
    cell_C, at_N = np.unique(code_N * slots + slot_N, return_inverse=True)
    shown_C = np.bincount(at_N).astype(np.float64)
    clicks_C = np.bincount(at_N, clicked_N[kept_N]).astype(np.float64)
    click_rate_S = np.bincount(slot_N, clicked_N[kept_N], slots) / np.maximum(
        np.bincount(slot_N, minlength=slots), 1
    )
    item_C, slot_C = cell_C // slots, cell_C % slots
    tells_C = (np.bincount(item_C)[item_C] > 1) & (np.bincount(item_C, clicks_C)[item_C] > 0)
    item_C, slot_C = item_C[tells_C], slot_C[tells_C]
    shown_C, clicks_C = shown_C[tells_C], clicks_C[tells_C]
    _check_slots(item_C, slot_C, clicks_C, slots)
    look_S = _solve(np.unique(item_C, return_inverse=True)[1], slot_C, shown_C, clicks_C, slots)
    return PositionCurve(
        examination_S=look_S / look_S.max(),
        click_rate_S=click_rate_S,
        impressions=int(kept_N.sum()),
        informative_impressions=int(shown_C.sum()),
    )


def _solve(
    item_C: NDArray[np.int64],
    slot_C: NDArray[np.int64],
    shown_C: NDArray[np.float64],
    clicks_C: NDArray[np.float64],
    slots: int,
) -> NDArray[np.float64]:
    clicks_I, clicks_S = np.bincount(item_C, clicks_C), np.bincount(slot_C, clicks_C, slots)
    look_S = np.ones(slots)
    for _ in range(MOST_ROUNDS):
        attraction_I = clicks_I / np.bincount(item_C, look_S[slot_C] * shown_C)
        new_S = clicks_S / np.bincount(slot_C, attraction_I[item_C] * shown_C, slots)
        new_S /= new_S[0]
        change = np.abs(new_S - look_S).max()
        look_S = new_S
        if change < TOLERANCE:
            return look_S
    raise ValueError(
        f"the position curve still moves by {change:.2g} after {MOST_ROUNDS} rounds: too few items "
        "change their slot; give a longer log or fewer slots"
    )


def _check_slots(
    item_C: NDArray[np.int64], slot_C: NDArray[np.int64], clicks_C: NDArray, slots: int
) -> None:
    clicks_S = np.bincount(slot_C, clicks_C, slots)
    if (clicks_S == 0).any():
        raise ValueError(
            f"slot {int(np.argmin(clicks_S > 0)) + 1} of {slots} has no click on any item that was "
            "shown in another slot too, so its examination cannot be told. Fit fewer slots, or a "
            "log in which the order varies"
        )
    # Slots that share no item, directly or by others, cannot be compared with each other.
    group_S = np.arange(slots)
    for _ in range(slots):
        lowest_I = np.full(item_C.max() + 1, slots)
        np.minimum.at(lowest_I, item_C, group_S[slot_C])
        np.minimum.at(group_S, slot_C, lowest_I[item_C])
    if group_S.any():
        raise ValueError(
            f"slot {int(np.argmax(group_S > 0)) + 1} shares no item with slot 1, directly or by "
            "way of others, so the two cannot be compared"
        )
