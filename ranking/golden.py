"""Golden rows: raw impressions with the trained model's scores, edge cases among them.

They travel with a bundle, so that any machine can tell whether it computes what the exporting
one did, without the trained model.

Shape letters: N impressions, M rows on the thresholds of trees, T columns of trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.columns import TABLE_COLUMNS, canonical
from features.embedding_join import Vectors
from features.pipeline import FeaturePipeline
from ranking.bundle import GOLDEN_SCORE

CASE = "golden_case"
LOW, HIGH = "expected_low", "expected_high"
"""What the score may be, but for the tolerance. They differ where a calibration is steep: the
steps of an isotonic one turn the last digit of a prediction into anything."""

SAMPLE, RANDOM, REQUEST, NO_VECTORS = "sample", "random", "one_request", "missing_vectors"
SAMPLE_ROWS, EDGE_ROWS, REQUEST_ROWS = 256, 16, 64
MAX_THRESHOLDS = 400

Predict = Callable[[pl.DataFrame, Vectors | None], NDArray[np.float64]]
"""Takes raw impressions and returns the trained model's uncalibrated probabilities, shape (N,)."""
Calibrate = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_NEVER_MISSING = {
    *("user_id", "query_id"),  # cases of their own
    *(column.name for column in TABLE_COLUMNS["impressions"] if not column.nullable),
}
_UNKNOWN = "\x00 unknown"
_LONG_AGO = datetime(1970, 1, 2, tzinfo=UTC)


def golden_cases(
    sample: pl.DataFrame, pipeline: FeaturePipeline, *, seed: int
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield raw impressions by case.

    Args:
        sample: Raw impressions, at least one.
        pipeline: Says which columns are features.
        seed: Of the rows drawn at random.
    """
    sample = canonical("impressions", sample)
    few = sample.head(EDGE_ROWS)
    yield SAMPLE, sample.head(SAMPLE_ROWS)
    yield RANDOM, random_rows(sample, SAMPLE_ROWS, seed=seed)
    yield REQUEST, one_request(sample, pipeline.product_ids_, REQUEST_ROWS)
    for column in ("product_id", "query_id", "user_id"):
        yield f"unknown_{column}", few.with_columns(pl.lit(_UNKNOWN).alias(column))
    for column in ("query_id", "user_id"):
        yield f"no_{column}", few.with_columns(_nulls(sample, column))
    # Nobody has bought anything before the first event.
    yield (
        "empty_history",
        few.with_columns(pl.lit(_LONG_AGO).cast(sample["time"].dtype).alias("time")),
    )
    features = pipeline.spec.features.of_impressions()
    # What every log must have (a position) is there at scoring too.
    own = [name for name in features if name not in _NEVER_MISSING]
    if own:
        yield "missing_values", few.with_columns(_nulls(sample, name) for name in own)


def golden_table(
    cases: Iterator[tuple[str, pl.DataFrame]],
    predict: Predict,
    vectors: Vectors | None,
    calibrate: Calibrate | None,
    *,
    slack: float,
) -> pl.DataFrame:
    """Return all cases one below another, with the trained model's scores.

    Args:
        cases: What ``golden_cases`` yields.
        predict: The trained model, before calibration.
        vectors: Those it was trained with.
        calibrate: Applied to its predictions.
        slack: How far a prediction may be from the trained model's before calibration.
    """
    tables = []
    for case, raw in cases:
        tables.append(_scored(case, raw, predict(raw, vectors), calibrate, slack))
        if case == SAMPLE and vectors is not None:
            few = raw.head(EDGE_ROWS)
            p_N = predict(few, without_half(vectors))
            tables.append(_scored(NO_VECTORS, few, p_N, calibrate, slack))
    return pl.concat(tables, how="vertical")


def band_of(
    p_N: NDArray[np.float64], calibrate: Calibrate | None, slack: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the expected score, and the least and the largest that it may be, each (N,)."""
    if calibrate is None:
        return p_N, p_N, p_N
    low_N, high_N = np.clip(p_N - slack, 0, 1), np.clip(p_N + slack, 0, 1)
    return calibrate(p_N), calibrate(low_N), calibrate(high_N)


def random_rows(sample: pl.DataFrame, rows: int, *, seed: int) -> pl.DataFrame:
    """Return rows whose every column is drawn from the sample's by itself."""
    rng = np.random.default_rng(seed)
    drawn = {
        name: sample[name].gather(rng.integers(len(sample), size=rows)) for name in sample.columns
    }
    return pl.DataFrame(drawn)


def one_request(sample: pl.DataFrame, product_ids: list[str], rows: int) -> pl.DataFrame:
    """Return the first impression's request with products of the catalogue as candidates."""
    products = [product_ids[row % len(product_ids)] for row in range(rows)]
    request = sample[np.zeros(rows, np.int64)]
    return request.with_columns(pl.Series("product_id", products, dtype=pl.String))


def without_half(vectors: Vectors) -> Vectors:
    """Return the same vectors, with every other product and query absent."""
    product_P = vectors.product_present_P & (np.arange(len(vectors.product_PD)) % 2 == 0)
    query_Q = vectors.query_present_Q & (np.arange(len(vectors.query_QD)) % 2 == 0)
    return replace(
        vectors,
        product_PD=np.where(product_P[:, None], vectors.product_PD, np.float32(0)),
        product_present_P=product_P,
        query_QD=np.where(query_Q[:, None], vectors.query_QD, np.float32(0)),
        query_present_Q=query_Q,
    )


def threshold_rows(trees: dict[str, Any], base_T: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows that lie exactly on splits of trees, and just above them, shape (M, T).

    Args:
        trees: What ``lightgbm.Booster.dump_model`` returns.
        base_T: A row; each returned one differs from it in one column.
    """
    rows: list[NDArray[np.float64]] = []
    for split in _splits(trees):
        values: list[float]
        if split["decision_type"] == "<=":
            threshold = float(split["threshold"])
            values = [threshold, float(np.nextafter(threshold, np.inf))]
        else:
            first = int(str(split["threshold"]).split("||")[0])
            values = [float(first), float(first + 1)]
        for value in values:
            row_T = base_T.copy()
            row_T[split["split_feature"]] = value
            rows.append(row_T)
        if len(rows) >= MAX_THRESHOLDS:
            break
    return np.stack(rows) if rows else base_T[None, :]


def _splits(trees: dict[str, Any]) -> Iterator[dict[str, Any]]:
    waiting = [tree["tree_structure"] for tree in reversed(trees["tree_info"])]
    while waiting:
        node = waiting.pop()
        if "split_feature" in node:
            yield node
            waiting += [node["right_child"], node["left_child"]]


def _scored(
    case: str,
    raw: pl.DataFrame,
    p_N: NDArray[np.float64],
    calibrate: Calibrate | None,
    slack: float,
) -> pl.DataFrame:
    expected_N, low_N, high_N = band_of(p_N, calibrate, slack)
    return raw.with_columns(
        pl.lit(case).alias(CASE),
        pl.Series(GOLDEN_SCORE, expected_N),
        pl.Series(LOW, low_N),
        pl.Series(HIGH, high_N),
    )


def _nulls(sample: pl.DataFrame, column: str) -> pl.Expr:
    return pl.lit(None).cast(sample[column].dtype).alias(column)
