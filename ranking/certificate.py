"""Proof that a bundle scores as the trained model does, or the reason why it does not.

Shape letters: N impressions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.embedding_join import Vectors
from features.pipeline import FeaturePipeline
from ranking.contract import ClickModel
from ranking.score import Scorer

TOLERANCE = 1e-5
"""Largest distance between two probabilities that passes; float32 sums in another order reach
about 1e-7."""

_BATCHES = (1, 2, 7, 500)
_UNKNOWN = "\x00 unknown"
_LONG_AGO = datetime(1970, 1, 2, tzinfo=UTC)
_REPEATS = 20


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """How far a bundle's scores lie from the trained model's."""

    tolerance: float
    max_difference: dict[str, float]
    """Of each case: largest distance between two probabilities of one impression."""
    latency_ms: float
    """Median time to score 500 raw impressions, features included, on the exporting machine."""


def certify(
    scorer: Scorer,
    model: ClickModel,
    pipeline: FeaturePipeline,
    vectors: Vectors | None,
    sample: pl.DataFrame,
    *,
    calibrate: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
    tolerance: float = TOLERANCE,
) -> Certificate:
    """Compare a loaded bundle with the model it was made from.

    Batches of 1, 2, 7 and 500; unknown products, queries and users; empty histories; missing
    vectors. In every case scores must agree to ``tolerance`` and stand in the same order.

    Args:
        scorer: The bundle, loaded from its files.
        model, pipeline, vectors: What it was exported from.
        sample: Raw impressions, at least one.
        calibrate: Applied to the model's probabilities, as the bundle does.
        tolerance: Largest distance that passes.

    Raises:
        ValueError: If any case fails; the message names all that did.
    """
    differences: dict[str, float] = {}
    failures: list[str] = []
    for case, raw, case_vectors in _cases(model, vectors, sample):
        expected_N = model.predict_proba(pipeline.transform(raw), case_vectors)
        if calibrate is not None:
            expected_N = calibrate(expected_N)
        found_N = scorer.score_examples(scorer.pipeline.transform(raw), case_vectors)
        distance_N = np.abs(found_N - expected_N)
        differences[case] = float(distance_N.max())
        # Not "greater than", so that NaN fails.
        if not differences[case] <= tolerance:
            row = int(np.argmax(~(distance_N <= tolerance)))
            failures.append(
                f"{case}: row {row} is {found_N[row]:.7f} instead of {expected_N[row]:.7f}"
            )
        elif not same_order(expected_N, found_N, tolerance):
            failures.append(f"{case}: the order of the scores differs")
    if vectors is not None and scorer.vectors is not None:
        differences["stored_vectors"] = _vector_difference(vectors, scorer.vectors)
        if differences["stored_vectors"] != 0:
            failures.append("stored_vectors: the bundle's vectors are not the model's")
    if failures:
        raise ValueError(
            f"the bundle does not score as the trained model does (tolerance {tolerance:g}), so "
            "nothing was written. " + "; ".join(failures)
        )
    return Certificate(
        tolerance=tolerance,
        max_difference=differences,
        latency_ms=_latency_ms(scorer, _cycled(sample, 500)),
    )


def same_order(
    expected_N: NDArray[np.float64], found_N: NDArray[np.float64], tolerance: float
) -> bool:
    """Whether ``found_N`` ranks as ``expected_N`` does wherever scores differ by ``tolerance``."""
    order_N = np.argsort(expected_N, kind="stable")
    gap_N = np.diff(expected_N[order_N]) > tolerance
    return bool((np.diff(found_N[order_N])[gap_N] > 0).all())


def _cases(
    model: ClickModel, vectors: Vectors | None, sample: pl.DataFrame
) -> Iterator[tuple[str, pl.DataFrame, Vectors | None]]:
    for rows in _BATCHES:
        yield f"batch_{rows}", _cycled(sample, rows), vectors
    few = _cycled(sample, 20)
    for column in ("product_id", "query_id", "user_id"):
        yield f"unknown_{column}", few.with_columns(pl.lit(_UNKNOWN).alias(column)), vectors
    # Nobody has bought anything before the first event.
    yield "empty_history", few.with_columns(pl.lit(_LONG_AGO).alias("time")), vectors
    if model.uses_vectors and vectors is not None:
        yield "missing_vectors", few, _without_half(vectors)


def _vector_difference(own: Vectors, stored: Vectors) -> float:
    return max(
        float(np.abs(getattr(own, name) - getattr(stored, name)).max(initial=0.0))
        for name in ("product_PD", "query_QD")
    )


def _without_half(vectors: Vectors) -> Vectors:
    """The same vectors, with every other product and query absent."""
    product_P = vectors.product_present_P & (np.arange(len(vectors.product_PD)) % 2 == 0)
    query_Q = vectors.query_present_Q & (np.arange(len(vectors.query_QD)) % 2 == 0)
    return replace(
        vectors,
        product_PD=np.where(product_P[:, None], vectors.product_PD, np.float32(0)),
        product_present_P=product_P,
        query_QD=np.where(query_Q[:, None], vectors.query_QD, np.float32(0)),
        query_present_Q=query_Q,
    )


def _cycled(sample: pl.DataFrame, rows: int) -> pl.DataFrame:
    """``rows`` impressions of the sample, from the top again when it ends."""
    return sample[np.arange(rows) % len(sample)]


def _latency_ms(scorer: Scorer, impressions: pl.DataFrame) -> float:
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        scorer.score(impressions)
        times.append((time.perf_counter() - start) * 1000)
    return float(np.median(times))
