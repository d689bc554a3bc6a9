"""Check a dataset before anything is trained on it.

``check_dataset`` reports all it finds rather than stopping at the first. Errors must be mended;
warnings should be understood. ``Dataset.table`` and ``Dataset.split`` refuse the fatal ones by
themselves (missing columns, wrong types, labels outside the set, one-class clicks).
"""

from __future__ import annotations

from datetime import UTC, datetime

import fsspec
import numpy as np
import polars as pl

from features.bags import Bag
from features.columns import canonical, column_violations
from features.dataset import Dataset
from features.dense import finite_numbers
from features.describe import describe_dataset
from features.feature_spec import DAY_US, SIDE_TABLE_KEYS
from features.image_check import image_problem
from features.leaks import (
    leak_violations,
    near_perfect_features,
    statistics_that_saw_their_rows,
    straddling_requests,
)
from features.schema import TABLE_NAMES, DatasetSpec
from features.sparse import as_text
from features.split import request_start_us, split_boundaries, split_by_time
from features.violation import Violation, first_where, refuse_errors

__all__ = ["Violation", "check_dataset", "describe_dataset", "refuse_errors"]

KEYS = {
    "relevance": ("query_id", "product_id", "source", "annotator"),
    "impressions": ("request_id", "product_id", "position"),
}
"""What no two rows of a table may share; products and queries have their id."""

REFERENCES = (
    ("impressions", "product_id", "products"),
    ("impressions", "query_id", "queries"),
    ("relevance", "product_id", "products"),
    ("relevance", "query_id", "queries"),
    ("events", "product_id", "products"),
)

EARLIEST, LATEST = datetime(1990, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
"""Times outside were read in a wrong unit: seconds as microseconds give 1970."""


def check_dataset(dataset: Dataset, *, max_images: int | None = None) -> list[Violation]:
    """Find everything that is wrong or suspicious in a dataset.

    Looks for missing, empty and unreadable tables, missing columns, wrong types, missing values,
    values outside the allowed set (labels, flags, positions below 1), duplicate keys, ids that
    point nowhere, times out of order (before 1990 or after 2100; a request spread over more than
    a day; as a warning, a log not in the order of time), images that do not decode, labels of
    one class, and leaks: a request in two splits, an event at or after the impression it
    describes, a click rate that counts the rows it describes, a feature that predicts clicks
    almost perfectly alone.

    Args:
        dataset: As ``Dataset.open`` or ``Dataset.from_tables`` gives it.
        max_images: Decode this many images, the first ones; None decodes all, 0 none.

    Returns:
        Violations with table, column, first row (from 0) and number of rows; empty if all is well.
    """
    found: list[Violation] = []
    tables: dict[str, pl.DataFrame] = {}
    for name in TABLE_NAMES:
        if dataset.has(name):
            frame, violations = _sound_columns(dataset, name)
            found += violations
            if frame is not None:
                tables[name] = frame
    if not any(dataset.has(name) for name in TABLE_NAMES):
        found.append(_about_table("dataset", "there are no tables", "name them under [tables]"))
    found += _duplicate_keys(tables)
    found += dangling_ids(tables)
    found += _features(dataset, tables)
    found += odd_times(tables)
    if "products" in tables and max_images != 0:
        found += _images(dataset, tables["products"], max_images)
    found += _one_class_relevance(tables)
    found += leak_violations(tables, dataset.spec)
    return found + _splits(tables, dataset.spec)


def _sound_columns(dataset: Dataset, name: str) -> tuple[pl.DataFrame | None, list[Violation]]:
    """A table without the columns of wrong type, so that the other checks can go on."""
    try:
        raw = dataset.raw_table(name)
    except ValueError as error:
        return None, [_about_table(name, str(error), "write it again as parquet")]
    violations = column_violations(name, raw)
    if raw.is_empty():
        violations.append(_about_table(name, "the table has no rows", "leave it out or fill it"))
    unusable = [v.column for v in violations if v.row is None and v.column in raw.columns]
    return canonical(name, raw.drop(unusable)), violations


def _duplicate_keys(tables: dict[str, pl.DataFrame]) -> list[Violation]:
    found = []
    for table, key in KEYS.items():
        frame = tables.get(table)
        if frame is None:
            continue
        columns = [column for column in key if column in frame.columns]
        if not {"product_id", key[0]} <= set(columns):
            continue
        row, count = first_where(~frame.select(pl.struct(columns).is_first_distinct()).to_series())
        if count:
            shown = ", ".join(f"{column}={frame[column][row]!r}" for column in columns)
            found.append(
                Violation(
                    table=table,
                    column=columns[0],
                    row=row,
                    count=count,
                    problem=f"an earlier row has the same {shown}",
                    advice=f"{', '.join(columns)} together must be unique; was a file read twice?",
                )
            )
    return found


def dangling_ids(tables: dict[str, pl.DataFrame]) -> list[Violation]:
    """Find ids of impressions, judgements and events that no row of their table has.

    Args:
        tables: Tables of the contract's types by name; what is absent is passed over.
    """
    found = []
    for table, column, target in REFERENCES:
        if table not in tables or target not in tables:
            continue
        frame, key = tables[table], SIDE_TABLE_KEYS[target]
        if column not in frame.columns or key not in tables[target].columns:
            continue
        known = tables[target][key].drop_nulls().unique()
        row, count = first_where(~frame[column].is_in(known.implode()))
        if count:
            found.append(
                Violation(
                    table=table,
                    column=column,
                    row=row,
                    count=count,
                    problem=f"{column} {frame[column][row]!r} is not in table {target}",
                    advice=f"add it to {target}, or drop the row",
                )
            )
    return found


def _features(dataset: Dataset, tables: dict[str, pl.DataFrame]) -> list[Violation]:
    """Every feature must have its column, of a type that can be one. Only a log needs features."""
    if not dataset.has("impressions"):
        return []
    found = []
    features = dataset.spec.features
    for name in features.columns:
        table, dot, column = name.partition(".")
        if table == "time" and dot:
            continue
        table, column = (table, column) if dot else ("impressions", name)
        if not dataset.has(table):
            problem = f"feature {name!r} needs this table, and it is missing"
            found.append(_about_table(table, problem, "add it, or take out the feature"))
            continue
        frame = tables.get(table)
        if frame is None or column not in frame.columns:
            if frame is None or column in dataset.raw_table(table).columns:
                continue  # reported with the table's own types
            found.append(
                Violation(
                    table=table,
                    column=column,
                    row=None,
                    problem=f"feature {name!r} has no column",
                    advice=f"the table has {', '.join(frame.columns)}",
                )
            )
            continue
        try:
            if name in features.dense:
                finite_numbers(frame[column], name)
            elif name in features.bags:
                Bag(name, slots=features.bags[name]).member_counts(frame[column])
            else:
                as_text(frame[column])
        except ValueError as error:
            found.append(_feature_violation(table, column, frame[column], str(error)))
    return found


def _feature_violation(table: str, column: str, values: pl.Series, error: str) -> Violation:
    row, count = (-1, 0)
    if values.dtype.is_float():
        row, count = first_where(~values.is_finite())
    problem, _, advice = error.partition("; ")
    return Violation(
        table=table,
        column=column,
        row=row if count else None,
        count=max(count, 1),
        problem=problem,
        advice=advice,
    )


def odd_times(tables: dict[str, pl.DataFrame]) -> list[Violation]:
    """Find times read in a wrong unit, out of order, or of one request a day apart.

    Args:
        tables: Tables of the contract's types by name; what is absent is passed over.
    """
    found = []
    for table in ("impressions", "events"):
        if table not in tables or "time" not in tables[table].columns:
            continue
        time = tables[table]["time"]
        row, count = first_where(~time.is_between(EARLIEST, LATEST))
        if count:
            found.append(
                Violation(
                    table=table,
                    column="time",
                    row=row,
                    count=count,
                    problem=f"the time is {time[row]}",
                    advice="times lie between 1990 and 2100; was the unit (seconds, milliseconds) "
                    "read wrongly?",
                )
            )
    impressions = tables.get("impressions")
    if impressions is None or not {"time", "request_id"} <= set(impressions.columns):
        return found
    row, count = first_where(impressions["time"].diff().cast(pl.Int64) < 0)
    if count:
        found.append(
            Violation(
                table="impressions",
                column="time",
                row=row,
                count=count,
                problem=f"the time {impressions['time'][row]} is earlier than the row before",
                advice="all is ordered by time before use, so this is harmless if the file was "
                "written in parts, and wrong if the clock was",
                severity="warning",
            )
        )
    late_us_N = impressions["time"].cast(pl.Int64).to_numpy() - request_start_us(impressions)
    row, count = first_where(pl.Series(late_us_N > DAY_US))
    if count:
        found.append(
            Violation(
                table="impressions",
                column="request_id",
                row=row,
                count=count,
                problem=f"request {impressions['request_id'][row]!r} began more than a day earlier",
                advice="a request is one page shown to one user; are its ids used again?",
            )
        )
    return found


def _images(dataset: Dataset, products: pl.DataFrame, max_images: int | None) -> list[Violation]:
    if "image" not in products.columns:
        return []
    images = products["image"]
    first, problem, count = -1, "", 0
    for row, image in enumerate(images[:max_images]):
        if image is None:
            continue
        wrong = image_problem(image) if isinstance(image, bytes) else _file_problem(dataset, image)
        if wrong is None:
            continue
        if not count:
            first, problem = row, wrong
        count += 1
    if not count:
        return []
    product = products["product_id"][first] if "product_id" in products.columns else "?"
    return [
        Violation(
            table="products",
            column="image",
            row=first,
            count=count,
            problem=f"the image of product {product!r} cannot be decoded: {problem}",
            advice="replace it, or set it to null: products without an image are allowed",
        )
    ]


def _file_problem(dataset: Dataset, path: str) -> str | None:
    try:
        with fsspec.open(dataset.locate(path), "rb") as file:
            return image_problem(file.read())  # type: ignore[union-attr]
    except OSError as error:
        return f"{path}: {error}"


def _one_class_relevance(tables: dict[str, pl.DataFrame]) -> list[Violation]:
    relevance = tables.get("relevance")
    if relevance is None or "label" not in relevance.columns:
        return []
    labels = relevance["label"].drop_nulls().unique()
    if len(labels) != 1:
        return []
    return [
        Violation(
            table="relevance",
            column="label",
            row=0,
            count=len(relevance),
            problem=f"the label is {labels[0]} in every row",
            advice="nothing can be learned from one class; are the other judgements missing?",
        )
    ]


def _splits(tables: dict[str, pl.DataFrame], spec: DatasetSpec) -> list[Violation]:
    """One-class clicks, requests in two splits, and features too good on later rows."""
    impressions = tables.get("impressions")
    if impressions is None or impressions.is_empty():
        return []
    if not {"time", "request_id", "clicked"} <= set(impressions.columns):
        return []
    if impressions.select("time", "request_id").null_count().sum_horizontal()[0]:
        return []
    boundaries = split_boundaries(impressions, spec.split)
    found = straddling_requests(impressions, boundaries)
    try:
        split_by_time(impressions, spec.split)
    except ValueError as error:
        problem, _, advice = str(error).partition(": ")
        found.append(
            Violation(
                table="impressions", column="clicked", row=None, problem=problem, advice=advice
            )
        )
    train_N = (impressions["time"] < boundaries[0]).to_numpy()
    if not np.any(train_N):
        return found
    found += statistics_that_saw_their_rows(impressions, spec, train_N)
    return found + near_perfect_features(tables, spec, train_N)


def _about_table(table: str, problem: str, advice: str) -> Violation:
    return Violation(table=table, column=None, row=None, problem=problem, advice=advice)
