"""Refusals of what would let a model see the answer: later rows, its own row, a mixed split.

Shape letters: N rows, V distinct keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.stable_hash import NULL_HASH, hash_values

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


def statistic_that_saw_its_row(
    values: pl.Series, keys: Mapping[str, pl.Series], clicked_N: NDArray, train_N: NDArray[np.bool_]
) -> str | None:
    """Return the key whose click rate over the rows themselves a column is; None if no key's.

    A rate per product that was computed on the whole log, or on all training rows, and joined
    back has seen the click of every row that it describes.

    Args:
        values: A numeric column of the impressions, shape (N,).
        keys: Columns that a rate could be of, each shape (N,).
        clicked_N: 0 or 1, shape (N,).
        train_N: True for training rows, shape (N,).
    """
    value_N = values.cast(pl.Float64).fill_null(np.nan).to_numpy()
    for name, key in keys.items():
        hash_N = hash_values(key)
        for fitted_N in (np.ones(len(train_N), bool), train_N):
            rows_N = np.flatnonzero((hash_N != NULL_HASH) & fitted_N)
            _, code_N = np.unique(hash_N[rows_N], return_inverse=True)
            shown_V = np.bincount(code_N)
            rate_N = (np.bincount(code_N, weights=clicked_N[rows_N]) / shown_V)[code_N]
            # A key of one row has its label for a rate, and most columns of 0 and 1 would match.
            often_N = shown_V[code_N] > 1
            if not often_N.any() or np.ptp(rate_N[often_N]) == 0:
                continue
            same_N = np.isclose(value_N[rows_N], rate_N, rtol=1e-5, atol=1e-7)
            if same_N[often_N].mean() >= SAME_SHARE:
                return name
    return None
