"""What a bundle proves about itself, on any machine and without the model it was made from.

Every check is a row with a name, a figure and its limit. The golden rows hold the trained model's
scores, so agreeing with them is agreeing with the trained model.

Imported are numpy, polars and what scores: onnxruntime or LightGBM (which brings scipy); never
pydantic, torch, torchrec, transformers or mlflow.

Shape letters: N impressions.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.embedding_join import Vectors
from ranking.bundle import GOLDEN_FILE, GOLDEN_SCORE, open_bundle
from ranking.golden import (
    CASE,
    HIGH,
    LOW,
    NO_VECTORS,
    REQUEST,
    SAMPLE,
    one_request,
    without_half,
)
from ranking.onnx_file import read_onnx
from ranking.predictor import load_trees
from ranking.score import Scorer

TOLERANCE = 1e-6
"""Largest distance between two probabilities that passes; float32 sums in another order reach
about 1e-7."""

BATCHES = (1, 2, 7, 500)
LATENCY_CANDIDATES = (1, 100, 500)
THRESHOLDS_FILE = "golden_thresholds.npz"
_REPEATS = 40
_WARM_UP = 3


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of a certificate."""

    name: str
    passed: bool
    value: float | None = None
    """What was measured, mostly a distance between probabilities."""
    limit: float | None = None
    """What it may be at most; None where nothing is demanded."""
    note: str = ""

    def cells(self) -> tuple[str, str, str, str, str]:
        """Return the row as the command lines print it: name, outcome, value, limit, note."""
        return (
            self.name,
            "passed" if self.passed else "failed",
            "" if self.value is None else f"{self.value:.3g}",
            "" if self.limit is None else f"{self.limit:.3g}",
            self.note if len(self.note) <= 90 else f"{self.note[:89]}…",
        )


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Every check of a bundle, on one machine."""

    tolerance: float
    machine: str
    versions: dict[str, str]
    """Of the libraries that scored."""
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> str:
        """The failed checks in one line."""
        return "; ".join(f"{check.name}: {check.note}" for check in self.checks if not check.passed)

    def to_json(self) -> str:
        """Return the text of ``certificate.json``."""
        return json.dumps({"passed": self.passed, **asdict(self)}, indent=2) + "\n"

    def to_metrics(self) -> dict[str, float]:
        """Return flat figures: ``NAME`` as measured, and ``passed``, 1 or 0."""
        measured = {c.name: c.value for c in self.checks if c.value is not None}
        return {"passed": float(self.passed), **measured}


def verify_bundle(
    folder: str | Path, *, vectors: str | Path | None = None, tolerance: float = TOLERANCE
) -> Certificate:
    """Check a bundle: its files, its scores, what it refuses, and how long it takes.

    Args:
        folder: What ``adtower export`` wrote.
        vectors: For a bundle that points to its vectors, where their stores lie.
        tolerance: Largest distance between two probabilities that passes.

    Returns:
        All checks. A bundle that cannot be opened has one, which failed.
    """
    try:
        bundle = open_bundle(folder, vectors=vectors)
        scorer = Scorer.load(folder, vectors=vectors)
    except ValueError as error:
        return _certificate(tolerance, [Check(name="files", passed=False, note=str(error))])
    files = Check(
        name="files", passed=True, value=float(len(bundle.files)),
        note="sizes and SHA-256 agree, nothing unlisted, no link",
    )  # fmt: skip
    checks = [files, *_checks(scorer, tolerance)]
    return _certificate(tolerance, checks)


def beyond(
    found_N: NDArray[np.float64], low_N: NDArray[np.float64], high_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how far each score lies outside what is allowed, 0 inside, shape (N,)."""
    return np.maximum(np.maximum(low_N - found_N, found_N - high_N), 0)


def misordered(
    found_N: NDArray[np.float64],
    low_N: NDArray[np.float64],
    high_N: NDArray[np.float64],
    tolerance: float,
) -> int:
    """Return how many rows do not score above every row that must score below them.

    Row i must score below row j where ``high[i] + tolerance < low[j]``.
    """
    by_high_N = np.argsort(high_N)
    highest_so_far_N = np.maximum.accumulate(found_N[by_high_N])
    below_N = np.searchsorted(high_N[by_high_N], low_N - tolerance, side="left")
    some_N = below_N > 0
    return int((highest_so_far_N[below_N[some_N] - 1] >= found_N[some_N]).sum())


def parity_check(
    name: str,
    found_N: NDArray[np.float64],
    low_N: NDArray[np.float64],
    high_N: NDArray[np.float64],
    tolerance: float,
) -> Check:
    """Compare scores, and their order, with what they should be."""
    distance_N = beyond(found_N, low_N, high_N)
    # Not "greater than", so that NaN fails.
    bad_N = ~(distance_N <= tolerance)
    order = misordered(found_N, low_N, high_N, tolerance)
    note = f"{len(found_N)} rows, in the same order"
    if bad_N.any():
        row = int(np.argmax(bad_N))
        note = f"row {row} is {found_N[row]:.7f} instead of {low_N[row]:.7f}"
    elif order:
        note = f"{order} of {len(found_N)} rows are out of order"
    return Check(
        name=name,
        passed=not bad_N.any() and not order,
        # JSON has no NaN; the note names the row.
        value=float(distance_N.max(initial=0.0)) if np.isfinite(distance_N).all() else None,
        limit=tolerance,
        note=note,
    )


def _checks(scorer: Scorer, tolerance: float) -> Iterator[Check]:
    yield from _graphs(scorer)
    golden = pl.read_parquet(scorer.bundle.path(GOLDEN_FILE))
    yield from _golden(scorer, golden, tolerance)
    sample = golden.filter(pl.col(CASE) == SAMPLE)
    yield from _batches(scorer, sample, tolerance)
    yield from _permuted(scorer, sample, tolerance)
    yield _request_side(scorer, golden.filter(pl.col(CASE) == REQUEST), tolerance)
    yield from _thresholds(scorer)
    yield from _refusals(scorer, sample)
    yield from _latency(scorer, sample)


def _graphs(scorer: Scorer) -> Iterator[Check]:
    bundle = scorer.bundle
    sizes = {name: record.size_bytes for name, record in bundle.files.items()}
    for member in bundle.manifest.members:
        if member.kind == "onnx":
            content = read_onnx(bundle.read(member.file), sizes)
            loops = sum(content.operators[name] for name in ("Loop", "Scan", "SequenceAt"))
            operators = sum(content.operators.values())
            yield Check(
                name=f"no_loop.{member.file}", passed=loops == 0, value=float(loops), limit=0.0,
                note=f"{operators} operators, {content.operators['Gather']} of them Gather",
            )  # fmt: skip


def _golden(scorer: Scorer, golden: pl.DataFrame, tolerance: float) -> Iterator[Check]:
    for case in golden[CASE].unique(maintain_order=True):
        rows = golden.filter(pl.col(CASE) == case)
        vectors = scorer.vectors
        if case == NO_VECTORS:
            assert vectors is not None
            vectors = without_half(vectors)
        found_N = scorer.score_examples(scorer.pipeline.transform(rows), vectors)
        yield parity_check(f"golden.{case}", found_N, *_band(rows), tolerance)


def _batches(scorer: Scorer, sample: pl.DataFrame, tolerance: float) -> Iterator[Check]:
    for size in BATCHES:
        # From the top again when the sample ends; fifty batches are enough to tell.
        rows = sample[np.arange(min(max(size, len(sample)), 50 * size)) % len(sample)]
        parts = [scorer.score(rows[start : start + size]) for start in range(0, len(rows), size)]
        yield parity_check(f"batch_{size}", np.concatenate(parts), *_band(rows), tolerance)


def _permuted(scorer: Scorer, sample: pl.DataFrame, tolerance: float) -> Iterator[Check]:
    found_N = scorer.score(sample.select(reversed(sample.columns)))
    yield parity_check("permuted_columns", found_N, *_band(sample), tolerance)
    order_N = np.random.default_rng(0).permutation(len(sample))
    rows = sample[order_N]
    yield parity_check("permuted_candidates", scorer.score(rows), *_band(rows), tolerance)


def _request_side(scorer: Scorer, request: pl.DataFrame, tolerance: float) -> Check:
    """A request's candidates one by one, against all at once with the request's side shared."""
    found_N = np.concatenate([scorer.score(request[row]) for row in range(len(request))])
    return parity_check("request_by_candidate", found_N, *_band(request), tolerance)


def _thresholds(scorer: Scorer) -> Iterator[Check]:
    bundle = scorer.bundle
    for member in bundle.manifest.members:
        if member.kind == "lightgbm":
            with np.load(bundle.path(THRESHOLDS_FILE), allow_pickle=False) as arrays:
                row_MT, expected_M = (
                    arrays[f"{member.file}.rows"],
                    arrays[f"{member.file}.expected"],
                )
            found_M = np.asarray(load_trees(bundle, member).predict(row_MT), np.float64)
            distance = float(np.abs(found_M - expected_M).max())
            yield Check(
                name=f"thresholds.{member.file}", passed=distance == 0, value=distance, limit=0.0,
                note=f"{len(row_MT)} rows on a split or just above it",
            )  # fmt: skip


def _refusals(scorer: Scorer, sample: pl.DataFrame) -> Iterator[Check]:
    """The policy: null is a missing value; NaN and infinity are mistakes and are refused."""
    features = scorer.pipeline.spec.features
    few = sample.head(2)
    for name in features.dense:
        if name in few.columns:
            for value in (float("nan"), float("inf")):
                raw = few.with_columns(pl.lit(value).alias(name))
                yield _refused(f"refuses_{value}.{name}", lambda raw=raw: scorer.score(raw))
    examples = scorer.pipeline.transform(few)
    if examples.dense_NC.shape[1]:
        nan = replace(examples, dense_NC=np.full_like(examples.dense_NC, np.nan))
        yield _refused("refuses_nan.arrays", lambda: scorer.score_examples(nan, scorer.vectors))
    if examples.sparse_NF.shape[1]:
        high = replace(examples, sparse_NF=examples.sparse_NF + max(examples.vocabulary_sizes))
        yield _refused(
            "refuses_ids_beyond_tables", lambda: scorer.score_examples(high, scorer.vectors)
        )
    if scorer.vectors is not None:
        other: Vectors = replace(scorer.vectors, fingerprint="of another encoder")
        yield _refused("refuses_other_vectors", lambda: scorer.score_examples(examples, other))


def _refused(name: str, call: Callable[[], object]) -> Check:
    try:
        call()
    except ValueError as error:
        return Check(name=name, passed=True, note=str(error))
    return Check(name=name, passed=False, note="was scored, but must be refused")


def _latency(scorer: Scorer, sample: pl.DataFrame) -> Iterator[Check]:
    """Times of whole requests, raw values to scores; nothing is demanded of them."""
    raw = sample.drop(CASE, GOLDEN_SCORE, LOW, HIGH)
    for candidates in LATENCY_CANDIDATES:
        request = one_request(raw, scorer.pipeline.product_ids_, candidates)
        times_ms = []
        for _ in range(_WARM_UP + _REPEATS):
            began = time.perf_counter()
            scorer.score(request)
            times_ms.append((time.perf_counter() - began) * 1e3)
        for percent in (50, 99):
            value = float(np.percentile(times_ms[_WARM_UP:], percent))
            yield Check(
                name=f"latency_ms.p{percent}_{candidates}", passed=True, value=value,
                note="raw request to scores on this machine, one thread",
            )  # fmt: skip


def _band(rows: pl.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return rows[LOW].to_numpy(), rows[HIGH].to_numpy()


def _certificate(tolerance: float, checks: list[Check]) -> Certificate:
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "polars": pl.__version__,
    }
    return Certificate(
        tolerance=tolerance,
        machine=f"{platform.system()} {platform.machine()}",
        versions=versions,
        checks=tuple(checks),
    )
