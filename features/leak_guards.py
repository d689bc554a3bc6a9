"""Refusals of what would let a model see the answer: later rows, its own row, a mixed split.

Shape letters: N rows, V distinct keys of more than one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

MIXED_SHARE = 0.01
"""Rows of a part that may be later than the next part begins: requests that take a while."""

SAME_SHARE = 0.99
"""Rows on which a column must equal a rate to be that rate."""


@dataclass(frozen=True, kw_only=True)
class SplitPart:
    """What is looked at of one part of a split."""

    time_us_N: NDArray[np.int64]
    request_N: NDArray[np.int64]
    """Codes of requests, comparable across parts."""
    user_N: NDArray[np.int64]
    """Codes of users, comparable across parts."""


def refuse_mixed_times(parts: Mapping[str, SplitPart]) -> None:
    """Refuse a split that is not by time: one drawn at random shares requests and moments.

    Args:
        parts: By name, in the order of time: train, validation, test.

    Raises:
        ValueError: If a request has rows in two parts, or more than 1% of a part's rows are later
            than the first row of the next.
    """
    given = [(name, part) for name, part in parts.items() if len(part.time_us_N)]
    for (name, part), (later, following) in pairwise(given):
        begin = int(following.time_us_N.min())
        share = float((part.time_us_N >= begin).mean())
        if share > MIXED_SHARE:
            users = len(np.intersect1d(part.user_N, following.user_N))
            raise ValueError(
                f"{share:.1%} of the rows of {name} are later than the first of {later}, and "
                f"{users} users are in both: this is a random split, and a split by time was "
                "asked for; a model would be judged on moments, users and pages it was trained on"
            )
    for place, (name, part) in enumerate(given):
        for later, following in given[place + 1 :]:
            shared = np.intersect1d(part.request_N, following.request_N)
            if len(shared):
                raise ValueError(
                    f"{len(shared)} requests have rows in {name} and in {later}: rows of one page "
                    "know of each other; keep a request whole"
                )


def refuse_outcomes_before_their_cause(
    impressions: pl.DataFrame, events: pl.DataFrame, *, request: str
) -> None:
    """Refuse events stamped before the impression that they came from.

    Such an event would be in the history of that very impression: the label in disguise.

    Args:
        impressions: The column ``request``, product_id and time.
        events: The same columns, one row an event.
        request: The column that names the request, by id or by hash.

    Raises:
        ValueError: If there is such an event.
    """
    keys = [request, "product_id"]
    shown = impressions.group_by(keys).agg(pl.col("time").min().alias("shown"))
    early = events.join(shown, on=keys).filter(pl.col("time") < pl.col("shown"))
    if len(early):
        user, product, time, shown_at = early.select("user_id", "product_id", "time", "shown").row(
            0
        )
        raise ValueError(
            f"events.time: user {user!r} bought {product!r} at {time} from a request shown at "
            f"{shown_at} ({len(early)} such events): stamped before its cause, an event describes "
            "the impression that led to it; stamp it when it happened"
        )


def key_rates(
    rows: pl.DataFrame, key: str, columns: Sequence[str], train_N: NDArray[np.bool_]
) -> pl.DataFrame:
    """Count clicks by key, and between which values some columns lie there.

    A log of any size is counted in parts, which ``rates_that_saw_their_rows`` adds up.

    Args:
        rows: Impressions with ``clicked``, the key and the columns.
        key: Column that a rate could be of.
        columns: Numeric columns.
        train_N: True for training rows, shape (N,).

    Returns:
        A row for each key over all rows, and another over training rows alone (``of``).
    """
    numbers = {
        # A missing value is no rate.
        name: pl.col(name).cast(pl.Float64).fill_nan(None).fill_null(float("inf"))
        for name in columns
    }
    counts = (
        pl.len().alias("shown"),
        pl.col("clicked").fill_null(0).cast(pl.Int64).sum().alias("clicks"),
        *(number.min().alias(f"low {name}") for name, number in numbers.items()),
        *(number.max().alias(f"high {name}") for name, number in numbers.items()),
    )
    by_part = (rows, rows.filter(pl.Series(train_N)))
    return pl.concat(
        part.drop_nulls(key).group_by(key).agg(*counts).with_columns(of=pl.lit(of))
        for of, part in zip(("all rows", "training rows"), by_part, strict=True)
    )


def rates_that_saw_their_rows(
    counts: Iterable[pl.DataFrame], key: str, columns: Sequence[str]
) -> list[str]:
    """Return the columns that are a key's click rate over the very rows that they describe.

    A rate per product that was computed on the whole log, or on all training rows, and joined
    back has seen the click of every row that it describes.

    Args:
        counts: ``key_rates`` of all parts of a log.
        key, columns: As given there.
    """
    summed = (
        pl.concat(counts)
        .group_by("of", key)
        .agg(
            pl.col("shown", "clicks").sum(),
            pl.col(f"low {name}" for name in columns).min(),
            pl.col(f"high {name}" for name in columns).max(),
        )
        # A key of one row has its label for a rate, and most columns of 0 and 1 would match.
        .filter(pl.col("shown") > 1)
    )
    found = []
    for fitted in summed.partition_by("of"):
        shown_V = fitted["shown"].to_numpy()
        rate_V = fitted["clicks"].to_numpy() / shown_V
        if np.ptp(rate_V) == 0:
            continue
        for name in columns:
            ends = (fitted[f"{end} {name}"].to_numpy() for end in ("low", "high"))
            same_V = np.all([np.isclose(end_V, rate_V, rtol=1e-5, atol=1e-7) for end_V in ends], 0)
            if shown_V[same_V].sum() >= SAME_SHARE * shown_V.sum():
                found.append(name)
    return [name for name in columns if name in found]
