"""How fast features are built, in how much memory, and how both grow with the log.

Shape letters: N impressions.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from features.arrays import FeatureArrays
from features.build import build_features
from features.dataset import write_dataset
from features.schema import SPEC_FILE, DatasetSpec, FeatureNames, TableFiles, write_spec
from ranking.epoch_order import order_of_epoch
from ranking.inputs import ExampleTensors, slices

SIZES = (300_000, 1_000_000, 3_000_000, 10_000_000)
FILE_ROWS = 500_000
ROWS_A_USER, ROWS_A_REQUEST = 10, 4
PRODUCTS, QUERIES, BRANDS, TAGS = 100_000, 100_000, 2_000, 500
VECTOR_DIM = 64
DAYS = 90
BATCH_ROWS, STEPS = 4096, 24

FEATURES = FeatureNames(
    sparse=(
        *("user_id", "query_id", "product_id", "position", "products.brand", "products.category"),
        *("time.hour", "time.weekday"),
    ),
    dense=("bid", "products.price", "products.rating"),
    hashed={"user_id": 200_000},
    bags={"products.tags": 4},
    scaling={"products.rating": "quantile"},
    target_statistics=(
        *("product_id", "query_id", "products.brand"),
        ("query_id", "product_id"),
    ),
    similarity_bins=8,
)
"""One of each kind that can be built, and the four keys that target statistics are asked for."""


def bench_features(
    rows: int, *, workers: str = "local:2", vector_dim: int = VECTOR_DIM
) -> dict[str, float]:
    """Build all features of generated logs of growing size, ten impressions a user.

    Args:
        rows: The largest log; the usual sizes below it are built too.
        workers: See ``features.partitions.Workers``.
        vector_dim: Length of the vectors that products, queries and histories are compared by.

    Returns:
        ``features.SIZE.seconds``, ``.rows_per_second``, ``.processor_seconds``,
        ``.peak_gigabytes`` (of all processes), ``.seconds.STEP``, ``.collision_share`` of users,
        ``.feed_us`` (what a training waits for a batch of 4,096 rows), ``.step_us`` (a step of the
        default network on it) and ``.feed_share`` of the two for every size, and
        ``features.growth_exponent``, the slope of log seconds over log rows from a million rows
        up: 1 is proportional.
    """
    metrics: dict[str, float] = {}
    sizes = sorted({size for size in SIZES if size < rows} | {rows})
    spawn = multiprocessing.get_context("spawn")
    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            # A process of its own, so that a size does not inherit the memory of another.
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                pool.submit(make_log, folder / "data", size).result()
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                figures = pool.submit(measure_build, folder, workers, vector_dim).result()
        for name, value in figures.items():
            metrics[f"features.{size}.{name}"] = value
        metrics[f"features.{size}.rows_per_second"] = size / figures["seconds"]
    large = [size for size in sizes if size >= 1_000_000]
    if len(large) > 1:
        seconds = [metrics[f"features.{size}.seconds"] for size in large]
        metrics["features.growth_exponent"] = float(
            np.polyfit(np.log(large), np.log(seconds), 1)[0]
        )
    return metrics


def make_log(folder: Path, rows: int, *, seed: int = 0) -> None:
    """Write a dataset of ``rows`` impressions in files of half a million.

    Users, queries and products follow a power law; clicks depend on product and position.
    """
    rng = np.random.default_rng(seed)
    price_P = np.round(rng.lognormal(2, 1, PRODUCTS), 2)
    rating_P = np.round(rng.beta(8, 2, PRODUCTS) * 5, 1)
    products = pl.DataFrame(
        {
            "product_id": _names("p", np.arange(PRODUCTS)),
            "title": _names("product ", np.arange(PRODUCTS)),
            "brand": _names("b", _power_law(rng, BRANDS, PRODUCTS)),
            "category": _names("c", rng.integers(0, 40, PRODUCTS)),
            "price": pl.Series(price_P).set(pl.Series(rng.random(PRODUCTS) < 0.05), None),
            "rating": rating_P,
            "tags": pl.DataFrame(rng.integers(0, TAGS, (PRODUCTS, 3)))
            .select(pl.concat_list(pl.all().cast(pl.String)))
            .to_series(),
        }
    )
    queries = pl.DataFrame(
        {
            "query_id": _names("q", np.arange(QUERIES)),
            "query": _names("query ", np.arange(QUERIES)),
        }
    )
    write_dataset(folder, DatasetSpec(name="bench"), products=products, queries=queries)
    spec = DatasetSpec(
        name="bench",
        features=FEATURES,
        tables=TableFiles(
            products="products.parquet", queries="queries.parquet", impressions="impressions"
        ),
    )
    (folder / "impressions").mkdir()
    appeal_P = rng.normal(0, 0.7, PRODUCTS)
    users = max(1, rows // ROWS_A_USER)
    begin = int(datetime(2025, 1, 1, tzinfo=UTC).timestamp() * 1e6)
    for part, start in enumerate(range(0, rows, FILE_ROWS)):
        stop = min(start + FILE_ROWS, rows)
        request_N = np.arange(start, stop) // ROWS_A_REQUEST
        first, requests = request_N[0], request_N[-1] - request_N[0] + 1
        of_request_N = request_N - first
        product_N = _power_law(rng, PRODUCTS, stop - start)
        position_N = np.arange(start, stop) % ROWS_A_REQUEST + 1
        clicked_N = rng.random(stop - start) < 1 / (
            1 + np.exp(2.5 + 0.5 * position_N - appeal_P[product_N])
        )
        time_us_N = begin + (request_N * (DAYS * 86_400e6 * ROWS_A_REQUEST / rows)).astype(np.int64)
        pl.DataFrame(
            {
                "request_id": _names("r", request_N),
                "time": pl.Series(time_us_N).cast(pl.Datetime("us", "UTC")),
                "user_id": _names("u", _power_law(rng, users, requests)[of_request_N]),
                "query_id": _names("q", _power_law(rng, QUERIES, requests)[of_request_N]),
                "product_id": _names("p", product_N),
                "position": position_N,
                "bid": np.round(rng.lognormal(0, 0.5, stop - start), 2),
                "clicked": clicked_N,
                "purchased": clicked_N & (rng.random(stop - start) < 0.3),
            }
        ).write_parquet(
            folder / "impressions" / f"part-{part:04d}.parquet", row_group_size=FILE_ROWS
        )
    write_spec(spec, folder / SPEC_FILE)


def measure_build(folder: Path, workers: str, vector_dim: int) -> dict[str, float]:
    """Build the features of ``folder/data`` and read some batches of them."""
    # Here, or every worker that is started would load torch with it.
    from embeddings.baselines import random_vectors

    ids = {
        table: pl.read_parquet(folder / "data" / f"{table}.parquet")[key].to_list()
        for table, key in (("products", "product_id"), ("queries", "query_id"))
    }
    vectors = (
        random_vectors(ids["products"], vector_dim, 0),
        random_vectors(ids["queries"], vector_dim, 1),
    )
    memory = PeakMemory()
    steps: dict[str, float] = {}
    before = _processor_seconds()
    began = last = time.perf_counter()

    def report(done: int, total: int, step: str) -> None:
        nonlocal last
        now = time.perf_counter()
        steps[step] = steps.get(step, 0.0) + now - last
        last = now

    with memory:
        arrays = build_features(
            folder / "data", folder / "out", workers=workers, vectors=vectors, report=report
        )
        seconds = time.perf_counter() - began
        processor = _processor_seconds() - before
    feed_us = feeding_us(arrays)
    step_us = training_step_us(arrays)
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "peak_gigabytes": memory.peak_bytes / 1e9,
        "feed_us": feed_us,
        **({} if step_us is None else {"step_us": step_us, "feed_share": feed_us / step_us}),
        "collision_share": arrays.manifest["collision_share"]["user_id"],
        **{f"seconds.{step.replace(' ', '_')}": value for step, value in steps.items()},
    }


def feeding_us(arrays: FeatureArrays, *, batches: int = 200) -> float:
    """Return what a training waits for a batch of these rows, its share of the order included."""
    train = arrays.examples("train")
    assert train.label_N is not None
    rows, label_N = ExampleTensors(train, None), torch.tensor(train.label_N)
    began = time.perf_counter()
    order_N = order_of_epoch(label_N, negative_rate=1, seed=0, epoch=0, run_rows=rows.run_rows)
    drawing = (time.perf_counter() - began) / max(1, len(rows) / BATCH_ROWS)
    cuts = slices(len(rows), BATCH_ROWS)
    # The first batch is not timed: it finds the files.
    rows.batch(order_N[cuts[0]])
    began = time.perf_counter()
    for cut in cuts[1 : batches + 1]:
        row_B = order_N[cut]
        _ = rows.batch(row_B), label_N[row_B]
    reading = (time.perf_counter() - began) / max(1, len(cuts[1 : batches + 1]))
    return (drawing + reading) * 1e6


def training_step_us(arrays: FeatureArrays) -> float | None:
    """Return what a training step of the default network takes on these columns.

    None where the training rows are too few for a time that means anything.
    """
    from ranking.tower import TowerRanker
    from ranking.tower_config import TowerConfig

    if arrays.rows("train") < STEPS * BATCH_ROWS:
        return None
    checks: list[tuple[float, int]] = []
    TowerRanker(
        TowerConfig(
            use_vectors=False,
            batch_size=BATCH_ROWS,
            max_epochs=1,
            checks_per_epoch=4,
            patience=1000,
        )
    ).fit(
        arrays.examples("train").take(slice(0, STEPS * BATCH_ROWS)),
        arrays.examples("validation").take(slice(0, BATCH_ROWS)),
        None,
        seed=0,
        progress=lambda step, total, text: checks.append((time.perf_counter(), step)),
    )
    (began, first), (ended, last) = checks[0], checks[-1]
    return (ended - began) / (last - first) * 1e6


class PeakMemory:
    """The most memory that this process and its children had at once, within a ``with`` block.

    Counts proportional set sizes: pages that processes share are counted once.
    """

    def __init__(self, every_seconds: float = 0.25) -> None:
        self.peak_bytes = 0
        self._every_seconds = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            used = sum(_proportional_bytes(process) for process in _family(os.getpid()))
            self.peak_bytes = max(self.peak_bytes, used)
            if self._stop.wait(self._every_seconds):
                return


def _family(process: int) -> list[int]:
    """A process and all that descend from it."""
    family = [process]
    for parent in family:
        try:
            tasks = Path(f"/proc/{parent}/task").iterdir()
            children = " ".join((task / "children").read_text() for task in tasks)
        except OSError:
            continue
        family += [int(child) for child in children.split()]
    return family


def _proportional_bytes(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _processor_seconds() -> float:
    """Of this process and of its children that ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _power_law(rng: np.random.Generator, size: int, rows: int) -> NDArray[np.int64]:
    """Draw numbers below ``size``, the small ones often."""
    return np.minimum((rng.random(rows) ** 2.5 * size).astype(np.int64), size - 1)


def _names(prefix: str, number_N: NDArray[np.integer]) -> pl.Series:
    return pl.select(pl.lit(prefix) + pl.Series(number_N).cast(pl.String)).to_series()
