"""A build refuses what the check of a whole dataset refuses, however the log is cut."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from features import build
from features.build import build_features
from features.check import check_dataset
from features.dataset import Dataset, write_dataset
from features.schema import FeatureNames, SplitRule

ROW = pl.int_range(pl.len())


def at(row, value, otherwise):
    return pl.when(row == ROW).then(value).otherwise(pl.col(otherwise)).alias(otherwise)


def first(column):
    """The value of request 10's first row."""
    return pl.col(column).get(30)


FAULTS = {
    "unknown product": (
        "impressions",
        [at(70, pl.lit("p99"), "product_id")],
        "product_id 'p99' is not in table products",
    ),
    "unknown query": (
        "impressions",
        [at(70, pl.lit("q99"), "query_id")],
        "query_id 'q99' is not in table queries",
    ),
    "unknown product of an event": (
        "events",
        [at(1, pl.lit("p99"), "product_id")],
        "product_id 'p99' is not in table products",
    ),
    "wrong unit": (
        "impressions",
        [pl.when(ROW < 3).then(datetime(1970, 1, 20, tzinfo=UTC)).otherwise("time").alias("time")],
        "the time is 1970-01-20",
    ),
    "request of two days": (
        "impressions",
        [at(31, pl.col("time") + timedelta(days=2), "time")],
        "request 'r10' began more than a day earlier",
    ),
    "row twice": (
        "impressions",
        [at(31, first("product_id"), "product_id"), at(31, first("position"), "position")],
        "an earlier row has the same request_id.*product_id='p4', position=1",
    ),
    "no position": (
        "impressions",
        [at(50, pl.lit(None), "position")],
        "position, row .*: the value is missing",
    ),
    "rate that saw its rows": (
        "impressions",
        [pl.col("clicked").mean().over("product_id").alias("age")],
        "feature 'age' is the click rate of product_id over the very rows",
    ),
    "feature written after the click": (
        "impressions",
        [(pl.col("clicked") * 40.0 + ROW % 7).alias("age")],
        r"feature 'age' alone predicts clicks with AUC 1\.000",
    ),
}


@pytest.fixture
def written(tmp_path, tables, spec):
    """Write the world with one table changed."""
    names = FeatureNames(sparse=("user_id", "product_id"), dense=("age",))
    split = SplitRule(validation_fraction=0.2, test_fraction=0.3)
    spec = spec.model_copy(update={"features": names, "split": split})
    kept = {name: tables[name] for name in ("products", "queries", "impressions", "events")}
    kept["impressions"] = kept["impressions"].with_columns(age=ROW % 40)

    def write(table="impressions", change=()):
        changed = {**kept, table: kept[table].with_columns(*change)}
        folder = write_dataset(tmp_path / "data", spec, **changed)
        changed["impressions"].write_parquet(folder / "impressions.parquet", row_group_size=20)
        return folder

    return write


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(build, "UNIT_ROWS", 40)


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_check_refuses_the_build_refuses(written, tmp_path, fault, partitions):
    table, change, said = FAULTS[fault]
    folder = written(table, change)
    errors = [str(v) for v in check_dataset(Dataset.open(folder)) if v.severity == "error"]
    with pytest.raises(ValueError, match=said):
        raise ValueError("\n".join(errors))
    with pytest.raises(ValueError, match=said):
        build_features(folder, tmp_path / "out", partitions=partitions, workers="local:1")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_what_the_check_passes_is_built(written, tmp_path):
    folder = written()
    assert not [v for v in check_dataset(Dataset.open(folder)) if v.severity == "error"]
    build_features(folder, tmp_path / "out", partitions=3, workers="local:1")


def test_a_log_without_a_column_is_refused_by_its_name(written, tmp_path):
    folder = written()
    log = pl.read_parquet(folder / "impressions.parquet").drop("position")
    log.write_parquet(folder / "impressions.parquet")
    with pytest.raises(ValueError, match=r"impressions\.position: the column is missing"):
        build_features(folder, tmp_path / "out", workers="local:1")


def test_samples_are_enough_to_find_a_feature_written_after_the_click(written, tmp_path):
    table, change, said = FAULTS["feature written after the click"]
    folder = written(table, change)
    with pytest.raises(ValueError, match=said):
        build_features(folder, tmp_path / "out", workers="local:1", sample_rows=50)


def test_a_mended_log_is_built(written, tmp_path):
    folder = written(*FAULTS["row twice"][:2])
    with pytest.raises(ValueError, match="row 31: an earlier row"):
        build_features(folder, tmp_path / "out", partitions=3, workers="local:1")
    mended = pl.read_parquet(folder / "impressions.parquet").filter(ROW != 31)
    mended.write_parquet(folder / "impressions.parquet", row_group_size=20)
    build_features(folder, tmp_path / "out", partitions=3, workers="local:1")
