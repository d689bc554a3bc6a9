from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from features import leaks
from features.leaks import (
    _auc,
    feature_values,
    leak_violations,
    near_perfect_features,
    statistics_that_saw_their_rows,
)
from features.schema import DatasetSpec, FeatureNames

ROWS = 400
START = datetime(2024, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def log():
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "request_id": [f"r{i}" for i in range(ROWS)],
            "product_id": [f"p{i % 9}" for i in range(ROWS)],
            "time": [START + timedelta(hours=i) for i in range(ROWS)],
            "clicked": (rng.random(ROWS) < 0.2).astype(np.int8),
        }
    )


def found(log, **features):
    spec = DatasetSpec(name="x", features=FeatureNames(**{"sparse": (), **features}))
    train_N = np.arange(ROWS) < 280
    return near_perfect_features({"impressions": log}, spec, train_N)


def test_a_sample_finds_what_knows_the_click(log, monkeypatch):
    spec = DatasetSpec(name="x", features=FeatureNames(sparse=(), dense=("dwell", "noise")))
    rows = pl.concat([log] * 20).with_columns(noise=pl.int_range(pl.len()) % 97 * 1.0)
    rows = rows.with_columns(dwell=pl.col("clicked") * 100 + pl.col("noise"))
    looked_at = []
    monkeypatch.setattr(leaks, "_auc", lambda *rows: looked_at.append(len(rows[0])) or 0.99)
    train_N = np.arange(len(rows)) < 6000
    tables = {"impressions": rows}
    assert len(near_perfect_features(tables, spec, train_N, sample_rows=500)) == 2
    assert all(400 < rows < 600 for rows in looked_at)
    monkeypatch.undo()
    (violation,) = near_perfect_features(tables, spec, train_N, sample_rows=500)
    assert violation.column == "dwell"


def test_auc_agrees_with_sklearn():
    rng = np.random.default_rng(1)
    label_N, score_N = rng.random(300) < 0.3, rng.integers(0, 20, 300).astype(float)
    assert _auc(label_N, score_N) == pytest.approx(roc_auc_score(label_N, score_N), abs=1e-12)


@pytest.mark.parametrize(
    "leak",
    [
        pl.col("clicked"),
        1 - pl.col("clicked"),
        pl.col("clicked") * 3.0 + pl.int_range(pl.len()) / ROWS,
        # Only clicked pages have a dwell time: that it is missing tells all.
        pl.when(pl.col("clicked") == 1).then(pl.int_range(pl.len()) * 1.5),
    ],
)
def test_a_number_that_knows_the_click_is_found(log, leak):
    violation = found(log.with_columns(dwell=leak.cast(pl.Float64)), dense=("dwell",))[0]
    assert (violation.table, violation.column) == ("impressions", "dwell")
    assert "AUC 1.000" in violation.problem and violation.severity == "error"


def test_a_category_that_knows_the_click_is_found(log):
    log = log.with_columns(page=pl.when(pl.col("clicked") == 1).then(pl.lit("thanks")))
    assert found(log, sparse=("page",))[0].column == "page"


def test_honest_features_pass(log):
    log = log.with_columns(noise=pl.Series(np.random.default_rng(2).normal(size=ROWS)))
    assert found(log, sparse=("product_id", "time.hour"), dense=("noise",)) == []


def test_ids_of_one_row_each_are_no_leak(log):
    # Fitted and judged on the same rows, each would look perfect.
    assert found(log, sparse=("request_id",)) == []


def test_too_few_clicks_to_judge_by(log):
    few = log.with_columns(clicked=pl.Series(([0] * 279 + [1]) + [1] + [0] * 119, dtype=pl.Int8))
    assert found(few.with_columns(copy=pl.col("clicked")), sparse=("copy",)) == []


def test_side_table_columns_are_looked_up(log):
    products = pl.DataFrame({"product_id": ["p1", "p0"], "brand": ["b", "a"]})
    values = feature_values("products.brand", {"impressions": log, "products": products})
    assert values is not None and values[:3].to_list() == ["a", "b", None]
    assert feature_values("products.brand", {"impressions": log}) is None


def test_an_event_at_or_after_the_impression_it_describes_is_found(log):
    spec = DatasetSpec(name="x", features=FeatureNames(sparse=("last_purchase",)))
    before = log.with_columns(last_purchase=pl.col("time") - pl.duration(hours=1))
    assert leak_violations({"impressions": before}, spec) == []
    at = before.with_columns(
        last_purchase=pl.when(pl.int_range(pl.len()) == 7).then("time").otherwise("last_purchase")
    )
    violation = leak_violations({"impressions": at}, spec)[0]
    assert (violation.column, violation.row, violation.count) == ("last_purchase", 7, 1)


def test_an_outcome_stamped_before_its_impression_is_found(log):
    events = log[:5].select("request_id", "product_id", "time", user_id=pl.lit("u"))
    events = events.with_columns(kind=pl.lit("purchase"))
    spec = DatasetSpec(name="x")
    later = events.with_columns(pl.col("time") + pl.duration(minutes=5))
    for sound in (events, later):
        assert leak_violations({"impressions": log, "events": sound}, spec) == []
    early = later.with_columns(
        time=pl.when(pl.col("request_id") == "r2").then(START).otherwise("time")
    )
    violation = leak_violations({"impressions": log, "events": early}, spec)[0]
    assert (violation.table, violation.column, violation.row) == ("events", "time", 2)


def test_events_dated_by_day_alone_are_a_warning(log):
    events = log[:5].select("product_id", pl.col("time").dt.truncate("1d"), user_id=pl.lit("u"))
    violation = leak_violations({"impressions": log, "events": events}, DatasetSpec(name="x"))[0]
    assert violation.severity == "warning" and "midnight" in violation.problem
    by_day = log.with_columns(pl.col("time").dt.truncate("1d"))
    assert not leak_violations({"impressions": by_day, "events": events}, DatasetSpec(name="x"))


def test_a_click_rate_over_its_own_rows_is_found(log):
    spec = DatasetSpec(name="x", features=FeatureNames(sparse=(), dense=("rate", "price")))
    log = log.with_columns(
        rate=pl.col("clicked").mean().over("product_id"), price=pl.int_range(pl.len()) * 0.5
    )
    violation = statistics_that_saw_their_rows(log, spec, np.arange(ROWS) < 280)[0]
    assert violation.column == "rate" and "click rate of product_id" in violation.problem
    assert len(statistics_that_saw_their_rows(log, spec, np.arange(ROWS) < 280)) == 1
