"""Training, validation and test rows, by time.

Shape letters: N rows of the impressions table.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.schema import SplitRule

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Impressions by time. The rows keep the table's order."""

    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame
    boundaries: tuple[datetime, datetime]
    """First moment of validation and first moment of test, UTC."""
    train_row_N: NDArray[np.int64]
    """Rows of the impressions table that became ``train``."""
    validation_row_N: NDArray[np.int64]
    """Rows of the impressions table that became ``validation``."""
    test_row_N: NDArray[np.int64]
    """Rows of the impressions table that became ``test``."""


def split_by_time(impressions: pl.DataFrame, rule: SplitRule) -> Split:
    """Cut impressions into training, validation and test, the latest last.

    A request goes where its first row falls, whole. With fractions, the boundaries are the
    times that leave the named share of rows behind them; rows of equal time stay together.

    Args:
        impressions: request_id, time (UTC, microseconds) and clicked (0 or 1) are read.
        rule: The boundaries or the fractions.

    Raises:
        ValueError: If a part would be empty or would hold only clicks or only non-clicks.
    """
    start_us_N = request_start_us(impressions)
    validation_us, test_us = _boundaries_us(start_us_N, rule)
    parts = {
        "training": np.flatnonzero(start_us_N < validation_us),
        "validation": np.flatnonzero((start_us_N >= validation_us) & (start_us_N < test_us)),
        "test": np.flatnonzero(start_us_N >= test_us),
    }
    boundaries = (moment(validation_us), moment(test_us))
    frames = {name: impressions[row_N] for name, row_N in parts.items()}
    for name, frame in frames.items():
        _refuse_useless_part(name, frame, impressions, boundaries)
    return Split(
        train=frames["training"],
        validation=frames["validation"],
        test=frames["test"],
        boundaries=boundaries,
        train_row_N=parts["training"],
        validation_row_N=parts["validation"],
        test_row_N=parts["test"],
    )


def request_start_us(impressions: pl.DataFrame) -> NDArray[np.int64]:
    """Return the time of each row's request (its first row's), microseconds UTC, shape (N,)."""
    start = pl.col("time").min().over("request_id").cast(pl.Int64)
    return impressions.select(start).to_series().to_numpy()


def split_boundaries(impressions: pl.DataFrame, rule: SplitRule) -> tuple[datetime, datetime]:
    """Return the first moment of validation and of test, UTC, without looking at the parts."""
    validation_us, test_us = _boundaries_us(request_start_us(impressions), rule)
    return moment(validation_us), moment(test_us)


def _boundaries_us(start_us_N: NDArray[np.int64], rule: SplitRule) -> tuple[int, int]:
    if rule.validation_start is not None and rule.test_start is not None:
        return _microseconds(rule.validation_start), _microseconds(rule.test_start)
    sorted_N = np.sort(start_us_N)
    last = len(sorted_N) - 1
    test_row = round(len(sorted_N) * (1 - rule.test_fraction))
    validation_row = round(len(sorted_N) * (1 - rule.test_fraction - rule.validation_fraction))
    return int(sorted_N[min(validation_row, last)]), int(sorted_N[min(test_row, last)])


def _refuse_useless_part(
    name: str,
    part: pl.DataFrame,
    impressions: pl.DataFrame,
    boundaries: tuple[datetime, datetime],
) -> None:
    where = (
        f"impressions run from {impressions['time'].min()} to {impressions['time'].max()}, "
        f"validation starts at {boundaries[0]} and test at {boundaries[1]}"
    )
    if part.is_empty():
        raise ValueError(
            f"the {name} part of the impressions is empty: {where}; change [split] in dataset.toml"
        )
    clicks = int(part["clicked"].sum())
    if clicks in (0, len(part)):
        raise ValueError(
            f"impressions.clicked is {0 if clicks == 0 else 1} in all {len(part)} rows of the "
            f"{name} part: nothing can be learned or measured from one class ({where}). Are "
            "impressions without a click logged, and is the split where you want it?"
        )


def _microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def moment(us: int) -> datetime:
    """Return the time so many microseconds after the epoch, UTC."""
    return EPOCH + timedelta(microseconds=us)
