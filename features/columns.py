"""The columns of each table: which must be there, of what type, with what values.

``column_violations`` finds what is wrong with a table as it was read; ``canonical`` brings a sound
table to the types that all other code relies on. Rows are counted from 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from features.violation import Violation, first_where

TIME_DTYPE = pl.Datetime("us", "UTC")

Kind = Literal[
    "id", "text", "time", "flag", "label", "position", "micros", "share", "image", "event", "source"
]

EVENT_KINDS = ("purchase", "click", "cart")
LABEL_SOURCES = ("human", "llm", "judge", "rule")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the contract."""

    name: str
    kind: Kind
    required: bool = True
    nullable: bool = False


def _columns(*given: tuple[str, Kind], optional: Sequence[tuple[str, Kind]] = ()) -> list[Column]:
    return [Column(name=name, kind=kind) for name, kind in given] + [
        Column(name=name, kind=kind, required=False, nullable=True) for name, kind in optional
    ]


TABLE_COLUMNS: dict[str, list[Column]] = {
    "products": [
        Column(name="product_id", kind="id"),
        Column(name="title", kind="text", nullable=True),
        *_columns(
            optional=[
                ("description", "text"),
                ("image", "image"),
                ("category", "text"),
                ("brand", "text"),
                ("group_id", "id"),
            ]
        ),
    ],
    "queries": _columns(("query_id", "id"), ("query", "text")),
    "relevance": _columns(
        ("query_id", "id"),
        ("product_id", "id"),
        ("label", "label"),
        ("source", "source"),
        optional=[("p0", "share"), ("p1", "share"), ("p2", "share"), ("annotator", "id")],
    ),
    "impressions": [
        *_columns(("request_id", "id"), ("time", "time")),
        # Visitors without an account and pages without a search are real.
        Column(name="user_id", kind="id", nullable=True),
        Column(name="query_id", kind="id", nullable=True),
        *_columns(
            ("product_id", "id"),
            ("position", "position"),
            ("clicked", "flag"),
            optional=[("purchased", "flag"), ("bid_micros", "micros"), ("propensity", "share")],
        ),
    ],
    "events": _columns(
        ("user_id", "id"), ("product_id", "id"), ("time", "time"), ("kind", "event")
    ),
}

UNIQUE_KEYS = {"products": "product_id", "queries": "query_id"}


def as_frame(table: Any) -> pl.DataFrame:
    """Take a polars, pandas or Arrow table as a polars one. A NaN of pandas is a null.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(table, pl.DataFrame):
        return table
    if isinstance(table, pl.LazyFrame):
        return table.collect()
    root = type(table).__module__.split(".")[0]
    if root == "pandas":
        with warnings.catch_warnings():
            # Meant for Arrow's authors, not for whoever has a time with a zone.
            warnings.filterwarnings("ignore", message=r"Series\.values returning")
            return pl.from_pandas(table)
    if root == "pyarrow" or hasattr(table, "__arrow_c_stream__"):
        return pl.DataFrame(table)
    raise ValueError(
        f"a table of type {type(table).__name__} was given; polars, pandas and Arrow are accepted"
    )


def column_violations(
    table: str, frame: pl.DataFrame, *, names: Iterable[str] | None = None
) -> list[Violation]:
    """Find missing columns, wrong types, nulls and values outside the allowed set.

    Args:
        table: Name of the table, a key of ``TABLE_COLUMNS``.
        frame: The table as read.
        names: Look at these columns only; all of them must then be there, required or not.

    Returns:
        At most one violation a column and kind of problem, in column order.
    """
    wanted = None if names is None else set(names)
    found: list[Violation] = []
    for column in TABLE_COLUMNS[table]:
        if wanted is not None and column.name not in wanted:
            continue
        if column.name in frame.columns:
            found += _violations_of(table, column, frame.get_column(column.name))
        elif column.required or wanted is not None:
            found.append(
                Violation(
                    table=table,
                    column=column.name,
                    row=None,
                    problem="the column is missing",
                    advice=f"the table has {', '.join(frame.columns) or 'no columns'}",
                )
            )
    return found


def canonical(table: str, frame: pl.DataFrame) -> pl.DataFrame:
    """Cast a table without violations to the contract's types; other columns stay as they are.

    Ids and texts become String, times Datetime in microseconds UTC (a time without a zone is
    taken as UTC), flags and labels Int8, positions Int32, micros Int64, shares Float64. Numbers
    outside the type's range, which ``column_violations`` reports, become null.
    """
    casts = [
        _cast(frame.get_column(column.name), column.kind)
        for column in TABLE_COLUMNS[table]
        if column.name in frame.columns
    ]
    return frame.with_columns(casts)


def _violations_of(table: str, column: Column, values: pl.Series) -> list[Violation]:
    if not _has_type(values.dtype, column.kind) and not (
        values.dtype == pl.Null and column.nullable
    ):
        return [
            Violation(
                table=table,
                column=column.name,
                row=None,
                problem=f"the type is {values.dtype}",
                advice=f"it must be {_TYPES_IN_WORDS[column.kind]}",
            )
        ]
    found: list[Violation] = []

    def note(wrong: pl.Series, problem: str, advice: str) -> None:
        row, count = first_where(wrong)
        if count:
            problem = problem.format(value=values[row])
            place = {"table": table, "column": column.name, "row": row, "count": count}
            found.append(Violation(**place, problem=problem, advice=advice))

    if not column.nullable and values.null_count():
        note(values.is_null(), "the value is missing", "this column must have a value in every row")
    allowed = _VALUES_IN_WORDS.get(column.kind)
    if allowed and values.dtype != pl.Null:
        note(~_in_range(values, column.kind), "the value is {value!r}", f"it must be {allowed}")
    if column.name == UNIQUE_KEYS.get(table):
        repeated = ~values.is_first_distinct()
        note(repeated, "the key {value!r} was there before", "each id must have one row")
    return found


def _has_type(dtype: pl.DataType, kind: Kind) -> bool:
    text = dtype in (pl.String, pl.Categorical, pl.Enum)
    match kind:
        case "id":
            return text or dtype.is_integer()
        case "text" | "event" | "source":
            return text
        case "time":
            return dtype.is_temporal() and dtype in (pl.Datetime, pl.Date)
        case "flag":
            return dtype.is_integer() or dtype == pl.Boolean
        case "label" | "position" | "micros":
            return dtype.is_integer()
        case "share":
            return dtype.is_numeric()
        case "image":
            return dtype in (pl.Binary, pl.String)


def _in_range(values: pl.Series, kind: Kind) -> pl.Series:
    """Where a value is allowed; null where it is null."""
    match kind:
        case "flag":
            return _between(values.cast(pl.Int8) if values.dtype == pl.Boolean else values, 0, 1)
        case "label":
            return _between(values, 0, 2)
        case "position":
            return _between(values.cast(pl.Int64), 1, 2**31 - 1)
        case "micros":
            return values >= 0
        case "share":
            return _between(values, 0, 1)
        case "event":
            return values.cast(pl.String).is_in(EVENT_KINDS)
        case "source":
            return values.cast(pl.String).is_in(LABEL_SOURCES)
        case _:
            raise AssertionError(kind)


def _between(values: pl.Series, low: int, high: int) -> pl.Series:
    # Comparisons of a series are answered at once, is_between by way of a query plan.
    return (values >= low) & (values <= high)


def _cast(values: pl.Series, kind: Kind) -> pl.Series:
    match kind:
        case "id" | "text" | "event" | "source":
            return values.cast(pl.String)
        case "time":
            if isinstance(values.dtype, pl.Datetime) and values.dtype.time_zone is not None:
                return values.dt.convert_time_zone("UTC").cast(TIME_DTYPE)
            return values.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        case "flag" | "label":
            return values.cast(pl.Int8, strict=False)
        case "position":
            return values.cast(pl.Int32, strict=False)
        case "micros":
            return values.cast(pl.Int64, strict=False)
        case "share":
            return values.cast(pl.Float64, strict=False)
        case "image":
            return values if values.dtype != pl.Null else values.cast(pl.Binary)


_TYPES_IN_WORDS: dict[Kind, str] = {
    "id": "text or a whole number (a whole number with gaps becomes a decimal in pandas: cast it)",
    "text": "text",
    "time": "a date and time (parse text first)",
    "flag": "a boolean or the whole numbers 0 and 1",
    "label": "the whole numbers 0, 1 and 2",
    "position": "a whole number",
    "micros": "a whole number of millionths",
    "share": "a number",
    "image": "encoded bytes (JPEG, PNG) or the path of a file",
    "event": "text",
    "source": "text",
}

_VALUES_IN_WORDS: dict[Kind, str] = {
    "flag": "0 or 1",
    "label": "0 (irrelevant), 1 (moderately relevant) or 2 (relevant)",
    "position": "1 for the first slot, and upward",
    "micros": "0 or more",
    "share": "between 0 and 1",
    "event": "one of " + ", ".join(EVENT_KINDS),
    "source": "one of " + ", ".join(LABEL_SOURCES),
}
