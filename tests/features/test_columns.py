from datetime import UTC, datetime

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from features.columns import as_frame, canonical, column_violations


@pytest.mark.parametrize(
    "table",
    [
        pl.DataFrame({"a": [1, None]}),
        pl.LazyFrame({"a": [1, None]}),
        pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}),
        pa.table({"a": [1, None]}),
    ],
)
def test_polars_pandas_and_arrow_are_the_same(table):
    assert as_frame(table)["a"].to_list() == [1, None]


def test_a_list_is_no_table():
    with pytest.raises(ValueError, match="polars, pandas and Arrow"):
        as_frame([1, 2])


def test_canonical_types(tables):
    given = tables["impressions"].with_columns(
        pl.col("user_id").str.slice(1).cast(pl.Int64),
        pl.col("time").dt.convert_time_zone("Asia/Tokyo").dt.cast_time_unit("ms"),
        pl.col("clicked").cast(pl.Boolean),
    )
    assert not column_violations("impressions", given)
    out = canonical("impressions", given)
    assert out.schema["user_id"] == pl.String and out["user_id"][1] == "0"
    assert out.schema["time"] == pl.Datetime("us", "UTC")
    assert out["time"].to_list() == tables["impressions"]["time"].to_list()
    assert out.schema["clicked"] == pl.Int8 and out.schema["position"] == pl.Int32


def test_times_without_a_zone_and_dates_are_utc(tables):
    naive = tables["events"].with_columns(pl.lit(datetime(2024, 5, 1)).alias("time"))
    dates = tables["events"].with_columns(pl.lit(datetime(2024, 5, 1)).cast(pl.Date).alias("time"))
    for frame in (naive, dates):
        assert canonical("events", frame)["time"][0] == datetime(2024, 5, 1, tzinfo=UTC)


def violation(table, frame):
    found = column_violations(table, frame)
    assert len(found) == 1, [str(v) for v in found]
    return found[0]


@pytest.mark.parametrize(
    ("table", "column", "value", "problem"),
    [
        ("relevance", "label", 3, "the value is 3"),
        ("relevance", "label", 300, "the value is 300"),
        ("relevance", "label", -1, "the value is -1"),
        ("relevance", "source", "guess", "the value is 'guess'"),
        ("relevance", "query_id", None, "missing"),
        ("impressions", "clicked", 2, "the value is 2"),
        ("impressions", "position", 0, "the value is 0"),
        ("impressions", "product_id", None, "missing"),
        ("events", "kind", "look", "the value is 'look'"),
        ("products", "product_id", "p0", "was there before"),
    ],
)
def test_a_wrong_value_is_named_with_its_row(tables, table, column, value, problem):
    frame = tables[table]
    values = [*frame[column].to_list()[:-1], value]
    found = violation(table, frame.with_columns(pl.Series(column, values)))
    assert (found.table, found.column, found.row, found.count) == (table, column, len(frame) - 1, 1)
    assert problem in found.problem


@pytest.mark.parametrize(
    ("table", "column", "dtype"),
    [
        ("products", "product_id", pl.Float64),
        ("products", "title", pl.Int64),
        ("relevance", "label", pl.Float64),
        ("relevance", "label", pl.String),
        ("impressions", "clicked", pl.Float64),
        ("impressions", "time", pl.Int64),
        ("impressions", "time", pl.String),
        ("impressions", "position", pl.Float64),
    ],
)
def test_a_wrong_type_is_named(tables, table, column, dtype):
    frame = tables[table].with_columns(pl.lit(None).cast(dtype).alias(column))
    found = violation(table, frame)
    assert found.column == column and str(dtype()) in found.problem and "must be" in found.advice


def test_a_missing_column_is_named_with_those_that_are_there(tables):
    found = violation("queries", tables["queries"].drop("query"))
    assert found.column == "query" and "query_id" in found.advice


def test_all_problems_of_a_table_are_found_and_counted(tables):
    frame = tables["impressions"].with_columns(clicked=pl.lit(7), position=pl.lit(-2))
    found = column_violations("impressions", frame.drop("time"))
    assert [v.column for v in found] == ["time", "position", "clicked"]
    assert found[1].count == len(frame) and found[1].row == 0


def test_absent_visitors_and_searches_are_allowed(tables):
    frame = tables["impressions"].with_columns(user_id=pl.lit(None), query_id=pl.lit(None))
    assert not column_violations("impressions", frame)
