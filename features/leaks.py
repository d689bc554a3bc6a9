"""Signs that a feature knows the label.

Shape letters: N impressions, V distinct values of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.feature_spec import SIDE_TABLE_KEYS, TIME_PARTS
from features.leak_guards import key_rates, rates_that_saw_their_rows, rows_like_rates
from features.schema import DatasetSpec
from features.sparse import as_text
from features.split import request_start_us
from features.stable_hash import in_sample
from features.violation import Violation, first_where

NEAR_PERFECT_AUC = 0.98
"""Real logs reach .7 to .9 with all features together; one feature that does better than this
was written after the click."""

MIN_ROWS_OF_A_CLASS = 10
"""With fewer clicks or non-clicks to judge by, a perfect AUC happens by chance."""

SAMPLE_ROWS = 200_000
"""Rows that tell an AUC of .98 from one of .97, with a click in a hundred."""

DENSE_BINS = 64

RATED_IDS = ("user_id", "query_id", "product_id")
"""Whose click rates are looked for among the dense columns."""


def leak_violations(tables: dict[str, pl.DataFrame], spec: DatasetSpec) -> list[Violation]:
    """Find signs of leaks in tables of the contract's types.

    Args:
        tables: By name; checks whose tables or columns are absent are passed over.
        spec: Names the features and the split.
    """
    impressions = tables.get("impressions")
    if impressions is None or impressions.is_empty():
        return []
    found = _features_from_the_future(impressions, spec)
    if "events" in tables:
        found += _outcomes_before_their_cause(impressions, tables["events"])
        found += _events_by_day(impressions, tables["events"])
    return found


def straddling_requests(
    impressions: pl.DataFrame, boundaries: tuple[datetime, datetime]
) -> list[Violation]:
    """Find requests with rows on both sides of a boundary between splits."""
    start_us_N = request_start_us(impressions)
    time_us_N = impressions["time"].cast(pl.Int64).to_numpy()
    found = []
    for name, moment in zip(("validation", "test"), boundaries, strict=True):
        limit = pl.Series([moment], dtype=pl.Datetime("us", "UTC")).cast(pl.Int64)[0]
        row, count = first_where(pl.Series((start_us_N < limit) & (time_us_N >= limit)))
        if count:
            found.append(
                Violation(
                    table="impressions",
                    column="request_id",
                    row=row,
                    count=count,
                    problem=f"request {impressions['request_id'][row]!r} began before {name} "
                    f"starts ({moment}) and this row is after it: it lies in two splits",
                    advice="it is kept whole on the earlier side; give all rows of a request one "
                    "time, or move the boundary",
                    severity="warning",
                )
            )
    return found


def near_perfect_features(
    tables: dict[str, pl.DataFrame],
    spec: DatasetSpec,
    train_N: NDArray[np.bool_],
    *,
    sample_rows: int = SAMPLE_ROWS,
) -> list[Violation]:
    """Find features that alone tell clicks from non-clicks on rows they were not fitted on.

    Each value (each of 64 quantile bins of a number, null apart) is scored by its click rate on
    the training rows, and the AUC of that score is taken on the others. A number is also taken as
    a score itself, which finds leaks that drift.

    Args:
        tables: Tables of the contract's types; impressions must have ``clicked``.
        spec: Names the features.
        train_N: True for the rows to fit on, shape (N,).
        sample_rows: Of both kinds of rows about so many are looked at; all if there are fewer.
    """
    drawn_N = _drawn(train_N, sample_rows) | _drawn(~train_N, sample_rows)
    tables = {**tables, "impressions": tables["impressions"].filter(pl.Series(drawn_N))}
    train_N = train_N[drawn_N]
    clicked_N = tables["impressions"]["clicked"].fill_null(0).to_numpy() == 1
    held_out_N = ~train_N
    for part_N in (train_N, held_out_N):
        clicks = int(clicked_N[part_N].sum())
        if min(clicks, int(part_N.sum()) - clicks) < MIN_ROWS_OF_A_CLASS:
            return []
    found = []
    for name in (*spec.features.sparse, *spec.features.dense):
        values = feature_values(name, tables)
        if values is None:
            continue
        binned = name in spec.features.dense and values.dtype.is_numeric()
        code_N = _codes(values, train_N, binned=binned)
        scores = [_click_rate(code_N, clicked_N, train_N)]
        if binned:
            number_N = values.cast(pl.Float64).fill_nan(None).fill_null(strategy="mean").to_numpy()
            scores += [number_N, -number_N]
        auc = max(_auc(clicked_N[held_out_N], score_N[held_out_N]) for score_N in scores)
        if auc >= NEAR_PERFECT_AUC:
            table, _, column = name.rpartition(".")
            found.append(
                Violation(
                    table=table if table in SIDE_TABLE_KEYS else "impressions",
                    column=column,
                    row=None,
                    problem=f"feature {name!r} alone predicts clicks with AUC {auc:.3f}",
                    advice=f"{NEAR_PERFECT_AUC} or more means that it is known only after the "
                    "click; take it out of [features]",
                )
            )
    return found


def statistics_that_saw_their_rows(
    impressions: pl.DataFrame, spec: DatasetSpec, train_N: NDArray[np.bool_]
) -> list[Violation]:
    """Find dense columns that are click rates of an id over the very rows they describe.

    Args:
        impressions: Of the contract's types, with ``clicked``.
        spec: Names the features.
        train_N: True for training rows, shape (N,).
    """
    names = numbers_of_the_log(impressions, spec)
    key_of: dict[str, str] = {}
    for key in RATED_IDS:
        if names and key in impressions.columns:
            rates = key_rates(impressions, key, train_N)
            counts = rows_like_rates(impressions, key, names, rates, train_N)
            for name in rates_that_saw_their_rows(rates, counts, names):
                key_of.setdefault(name, key)
    return rate_violations(key_of)


def numbers_of_the_log(impressions: pl.DataFrame, spec: DatasetSpec) -> list[str]:
    """Return the dense features that are columns of the impressions and numbers."""
    return [
        name
        for name in spec.features.dense
        if name in impressions.columns and impressions[name].dtype.is_numeric()
    ]


def rate_violations(key_of: Mapping[str, str]) -> list[Violation]:
    """Say which dense columns are click rates over the rows they describe, and of which id.

    Args:
        key_of: The id by column.
    """
    return [
        Violation(
            table="impressions",
            column=name,
            row=None,
            problem=f"feature {name!r} is the click rate of {key} over the very rows that "
            "it describes: each saw its own click, and later ones",
            advice=f"list {key!r} under target_statistics instead, which count strictly "
            "earlier rows",
        )
        for name, key in key_of.items()
    ]


def feature_values(name: str, tables: dict[str, pl.DataFrame]) -> pl.Series | None:
    """Return the raw values of a feature, one an impression; None where they cannot be had."""
    impressions = tables["impressions"]
    table, dot, column = name.partition(".")
    if not dot:
        return impressions[name] if name in impressions.columns else None
    if table == "time":
        assert column in TIME_PARTS
        if "time" not in impressions.columns:
            return None
        time = impressions["time"].dt
        return time.hour() if column == "hour" else time.weekday()
    key = SIDE_TABLE_KEYS[table]
    side = tables.get(table)
    if side is None or key not in impressions.columns or {key, column} - set(side.columns):
        return None
    looked_up = side.select(pl.col(key), pl.col(column).alias("value")).unique(key, keep="first")
    return impressions.select(key).join(looked_up, on=key, how="left", maintain_order="left")[
        "value"
    ]


def _features_from_the_future(impressions: pl.DataFrame, spec: DatasetSpec) -> list[Violation]:
    """Features that are moments themselves (a last purchase) must lie before the impression."""
    found = []
    for name in spec.features.of_impressions():
        if name == "time" or "time" not in impressions.columns or name not in impressions.columns:
            continue
        moment = impressions[name]
        if not isinstance(moment.dtype, pl.Datetime):
            continue
        row, count = first_where(moment.cast(pl.Int64) >= impressions["time"].cast(pl.Int64))
        if count:
            found.append(
                Violation(
                    table="impressions",
                    column=name,
                    row=row,
                    count=count,
                    problem=f"the event at {moment[row]} is at or after the impression that it "
                    f"describes ({impressions['time'][row]})",
                    advice="what describes an impression must have happened strictly before it",
                )
            )
    return found


def _outcomes_before_their_cause(
    impressions: pl.DataFrame, events: pl.DataFrame
) -> list[Violation]:
    """Events with a request_id must not be stamped before the impression they came from.

    Such an event would be part of that impression's own history: the label in disguise.
    """
    keys = ["request_id", "product_id"]
    if not {*keys, "time"} <= set(events.columns) or not {*keys, "time"} <= set(
        impressions.columns
    ):
        return []
    shown = impressions.group_by(keys).agg(pl.col("time").min().alias("shown"))
    joined = events.select(pl.col("request_id").cast(pl.String), "product_id", "time").join(
        shown, on=keys, how="left", maintain_order="left"
    )
    row, count = first_where(joined["time"] < joined["shown"])
    if not count:
        return []
    return [
        Violation(
            table="events",
            column="time",
            row=row,
            count=count,
            problem=f"the event at {joined['time'][row]} came from request "
            f"{joined['request_id'][row]!r}, shown at {joined['shown'][row]}, yet is stamped "
            "before it: it would describe the impression that caused it",
            advice="stamp an event when it happened",
        )
    ]


def _events_by_day(impressions: pl.DataFrame, events: pl.DataFrame) -> list[Violation]:
    """Events dated by day alone are all "before" whatever happened later that day."""
    if "time" not in events.columns or "time" not in impressions.columns or events.is_empty():
        return []
    day = 86_400_000_000
    by_day = bool((events["time"].cast(pl.Int64) % day == 0).all())
    if not by_day or bool((impressions["time"].cast(pl.Int64) % day == 0).all()):
        return []
    return [
        Violation(
            table="events",
            column="time",
            row=0,
            count=len(events),
            problem="every event is stamped at midnight, impressions are not: an event seems to "
            "lie before impressions of its day that came first",
            advice="log the moment, or stamp events at the end of their day",
            severity="warning",
        )
    ]


def _drawn(mask_N: NDArray[np.bool_], rows: int) -> NDArray[np.bool_]:
    """About so many of the rows of a mask, drawn by their numbers."""
    drawn_N = in_sample(np.arange(len(mask_N)), rows=rows, total=int(mask_N.sum()), seed=1)
    return drawn_N & mask_N


def _codes(values: pl.Series, train_N: NDArray[np.bool_], *, binned: bool) -> NDArray[np.int64]:
    """Number the values 0.., null as one of them."""
    if binned:
        number_N = values.cast(pl.Float64).fill_nan(None).to_numpy()
        present_N = np.isfinite(number_N)
        inside = number_N[train_N & present_N]
        if not len(inside):
            return np.zeros(len(number_N), np.int64)
        edges = np.unique(np.quantile(inside, np.linspace(0, 1, DENSE_BINS + 1)))
        return np.where(present_N, np.searchsorted(edges, number_N) + 1, 0)
    try:
        text = as_text(values)
    except ValueError:
        # A wrong type is reported by the check of types.
        return np.zeros(len(values), np.int64)
    return text.rank("dense").fill_null(0).cast(pl.Int64).to_numpy()


def _click_rate(
    code_N: NDArray[np.int64], clicked_N: NDArray[np.bool_], train_N: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Each row's click rate among training rows of its value, drawn a little to the mean."""
    size = int(code_N.max()) + 1
    shown_V = np.bincount(code_N[train_N], minlength=size)
    clicks_V = np.bincount(code_N[train_N], weights=clicked_N[train_N], minlength=size)
    base = clicked_N[train_N].mean()
    return ((clicks_V + base) / (shown_V + 1))[code_N]


def _auc(clicked_N: NDArray[np.bool_], score_N: NDArray[np.float64]) -> float:
    """Area under the ROC curve by average ranks (Mann-Whitney)."""
    rank_N = pl.Series(score_N).rank("average").to_numpy()
    clicks = int(clicked_N.sum())
    rest = len(clicked_N) - clicks
    return float((rank_N[clicked_N].sum() - clicks * (clicks + 1) / 2) / (clicks * rest))
