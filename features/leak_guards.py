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


def key_rates(rows: pl.DataFrame, key: str, train_N: NDArray[np.bool_]) -> pl.DataFrame:
    """Count rows and clicks by key; counts of parts of a log add up (``add_rates``).

    Args:
        rows: Impressions with ``clicked`` and the key; rows without a key are passed over.
        key: Column that a rate could be of.
        train_N: True for training rows, shape (N,).

    Returns:
        The key, ``shown`` and ``clicks`` of all rows, and the same of training rows.
    """
    clicked = pl.col("clicked").fill_null(0).cast(pl.Int64)
    return (
        rows.select(key, clicked, train=pl.Series(train_N, dtype=pl.Boolean))
        .drop_nulls(key)
        .group_by(key)
        .agg(
            shown=pl.len().cast(pl.Int64),
            clicks=pl.col("clicked").sum(),
            train_shown=pl.col("train").cast(pl.Int64).sum(),
            train_clicks=pl.col("clicked").filter("train").sum(),
        )
    )


def add_rates(parts: Iterable[pl.DataFrame], key: str) -> pl.DataFrame:
    """Return ``key_rates`` of a whole log from those of its parts."""
    return pl.concat(parts).group_by(key).sum()


def rows_like_rates(
    rows: pl.DataFrame,
    key: str,
    columns: Sequence[str],
    rates: pl.DataFrame,
    train_N: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Count the rows in which a column is the click rate of the key; counts of parts add up.

    Args:
        rows: Impressions with the key and the columns.
        key: Column that a rate could be of.
        columns: Numeric columns, K of them.
        rates: ``key_rates`` of the whole log.
        train_N: True for training rows, shape (N,).

    Returns:
        Rows that were looked at, and those like the rate by column, shape (2, 1 + K): for rates
        over all rows, and for training rows and rates over these.
    """
    joined = rows.select(key, *columns).join(rates, on=key, how="left", maintain_order="left")
    counts = []
    for prefix, fitted_N in (("", np.ones(len(rows), bool)), ("train_", train_N)):
        shown_N = joined[f"{prefix}shown"].fill_null(0).to_numpy()
        # A key of one row has its label for a rate, and most columns of 0 and 1 would match.
        often_N = fitted_N & (shown_N > 1)
        rate_N = joined[f"{prefix}clicks"].fill_null(0).to_numpy()[often_N] / shown_N[often_N]
        values = (joined[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in columns)
        like = [np.isclose(value_N[often_N], rate_N, rtol=1e-5, atol=1e-7) for value_N in values]
        counts.append([often_N.sum(), *(like_N.sum() for like_N in like)])
    return np.array(counts, np.int64)


def rates_that_saw_their_rows(
    rates: pl.DataFrame, counts: NDArray[np.int64], columns: Sequence[str]
) -> list[str]:
    """Return the columns that are a key's click rate over the very rows that they describe.

    A rate per product that was computed on the whole log, or on all training rows, and joined
    back has seen the click of every row that it describes.

    Args:
        rates: ``key_rates`` of the whole log.
        counts: ``rows_like_rates`` of the whole log, shape (2, 1 + K).
        columns: As given there.
    """
    found = np.zeros(len(columns), bool)
    for prefix, (rows, *like) in zip(("", "train_"), counts.tolist(), strict=True):
        often = rates.filter(pl.col(f"{prefix}shown") > 1)
        rate_V = often[f"{prefix}clicks"].to_numpy() / often[f"{prefix}shown"].to_numpy()
        if len(rate_V) and np.ptp(rate_V) > 0:
            found |= np.array(like, np.int64) >= SAME_SHARE * rows
    return [name for name, is_rate in zip(columns, found, strict=True) if is_rate]
