"""Several click models trained at once, within a budget of threads and memory.

Each training runs in a process of its own with a fixed number of threads, so a model is the same to
the bit however many are trained beside it. The impressions and the vectors are computed once, by
the caller or by a feature build, and mapped into every process.

A process that its parent leaves behind ends itself, so that a run that was killed can be repeated
at once.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from experiments.built_features import BuiltFeatures
from experiments.config import RunConfig
from experiments.run_folder import RunFolder
from experiments.training import Parts, Trained, compared_parts, features_at, train_once
from experiments.variants import Variant, VectorSource
from features.array_record import map_record, write_record
from features.arrays import FeatureArrays
from features.embedding_join import Vectors
from features.examples import Examples
from features.pipeline import FeaturePipeline

SHARED = "shared_arrays"
"""Folder of a run that holds the arrays while processes train, and is removed afterwards."""
PROCESS_BYTES = 700_000_000
"""What a process needs before it holds any data: torch, torchrec, lightgbm and polars."""
WORTH_ROWS = 500_000
"""Training rows, summed over the models, from which on starting processes saves time."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")


@dataclass(frozen=True, kw_only=True)
class Training:
    """One model to be trained."""

    variant: Variant
    seed: int


def plan_workers(
    trainings: int,
    parts: Parts,
    vectors: Sequence[Vectors],
    config: RunConfig,
    *,
    more_columns: int = 0,
    available_bytes: int | None = None,
) -> int:
    """Return how many models to train at once.

    Without ``config.workers`` as many as the cores and the memory bear, or one where the work is
    so small that starting processes costs more than it saves.

    Args:
        trainings: Models to be trained.
        parts: The impressions; each process maps them and holds a copy at worst.
        vectors: Every kind that a model is given.
        config: Its ``workers``, ``threads`` and ``memory_gb`` are the budget.
        more_columns: Dense columns that a model may be given beside those of ``parts``.
        available_bytes: Memory that is free now; by default the system is asked.

    Raises:
        ValueError: If not even one training fits into ``memory_gb``.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    need = training_bytes(parts, vectors, config)
    # Once as they are computed and once behind the others.
    rows = sum(len(getattr(parts, field.name)) for field in fields(parts))
    need += 2 * rows * more_columns * np.dtype(np.float32).itemsize
    budget = available_bytes if available_bytes is not None else _available_bytes()
    if config.memory_gb is not None:
        budget = int(config.memory_gb * 1e9)
        if need > budget:
            raise ValueError(
                f"memory_gb is {config.memory_gb:g}, but one training of these impressions needs "
                f"about {need / 1e9:.1f} GB; raise it, or train on fewer rows"
            )
    fitting = max(1, budget // need)
    if config.workers is None:
        if trainings * len(parts.train) < WORTH_ROWS:
            return 1
        return int(max(1, min((cores or 1) // config.threads, fitting, trainings)))
    return int(max(1, min(config.workers, fitting, trainings)))


def training_bytes(parts: Parts, vectors: Sequence[Vectors], config: RunConfig) -> int:
    """Estimate the memory that one training process needs, in bytes, on the safe side."""
    rows = sum(_nbytes(getattr(parts, field.name)) for field in fields(parts))
    largest = max(map(_nbytes, vectors), default=0)
    table_rows = sum(parts.train.vocabulary_sizes)
    tables = table_rows * config.tower.embedding_dim * np.dtype(np.float32).itemsize
    # Rows once mapped and once as tensors; tables as weights, best weights and on their way out.
    return PROCESS_BYTES + 2 * rows + 2 * largest + 4 * tables


def train_in_processes(
    trainings: Sequence[Training],
    parts: Parts,
    vectors: Mapping[VectorSource, Vectors],
    config: RunConfig,
    folder: RunFolder,
    workers: int,
    *,
    on_trained: Callable[[Trained], None],
) -> None:
    """Train models in several processes; each is in the run folder when it is done.

    Args:
        trainings: What to train; what an interrupted run had trained is read, not repeated.
        parts: The impressions, without what vectors add; the run keeps the pipelines that add it.
        vectors: By kind, all that the variants are given.
        config: Settings of the run.
        folder: Where models are kept.
        workers: Processes at once.
        on_trained: Called here with each model when it is done, in the order of finishing.

    Raises:
        RuntimeError: If a process died, most likely for want of memory.
    """
    shared = folder.path / SHARED
    if shared.exists():
        shutil.rmtree(shared)
    shared.mkdir(parents=True)
    if config.features is None:
        for field in fields(parts):
            write_record(getattr(parts, field.name), shared / field.name)
    for source, joined in vectors.items():
        write_record(joined, shared / f"vectors_{source}")
    context = multiprocessing.get_context("spawn")
    with (
        _thread_limits(config.threads),
        ProcessPoolExecutor(
            workers, mp_context=context, initializer=_begin_process, initargs=(os.getpid(),)
        ) as pool,
    ):
        waiting = {
            pool.submit(_train_here, one.variant, one.seed, config, folder): one
            for one in trainings
        }
        try:
            for done in as_completed(waiting):
                on_trained(done.result())
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"a process that trained one of {len(trainings)} click models was killed, as the "
                f"system does when memory runs out; {workers} ran at once. Repeat the command with "
                "a smaller --workers or --memory-gb: finished models are kept"
            ) from error
        finally:
            for one in waiting:
                one.cancel()
    shutil.rmtree(shared)


def _begin_process(parent: int) -> None:
    """End this process when the one that started it is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _train_here(variant: Variant, seed: int, config: RunConfig, folder: RunFolder) -> Trained:
    vectors = None
    if variant.vectors is not None:
        vectors = map_record(Vectors, folder.path / SHARED / f"vectors_{variant.vectors}")
    parts = _parts_here(variant, config, folder)
    return train_once(variant, seed, parts, vectors, config, folder)


def _parts_here(variant: Variant, config: RunConfig, folder: RunFolder) -> Parts:
    """The impressions as a variant is given them, mapped from disk."""
    compared, features = None, folder.path / features_at(variant.vectors)
    if variant.vectors is not None and features.is_dir():
        compared = FeaturePipeline.load(features)
    if config.features is not None:
        built = BuiltFeatures(FeatureArrays.open(config.features))
        return built.parts(compared or built.pipeline)
    shared = folder.path / SHARED
    parts = Parts(**{f.name: map_record(Examples, shared / f.name) for f in fields(Parts)})
    return parts if compared is None else compared_parts(parts, compared)


@contextmanager
def _thread_limits(threads: int) -> Iterator[None]:
    """Let processes started here begin with so many threads; OpenMP reads it when it is loaded."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update({name: str(threads) for name in THREAD_VARIABLES})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _nbytes(record: Examples | Vectors) -> int:
    values = (getattr(record, field.name) for field in fields(record))
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray))


def _available_bytes() -> int:
    """Four fifths of the memory that is free now; unlimited where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return 2**62
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(0.8 * 1024 * int(lines["MemAvailable"].split()[0]))
