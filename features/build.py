"""All features of a log of any size, as shuffled arrays on disk.

The log is read in units of some row groups, dealt to partitions of users, counted, fitted,
transformed and merged, with no more in memory than a unit, a partition or a table of counts. The
arrays are the same to the byte whatever the number of partitions and workers. An interrupted build
goes on when it is repeated.

Shape letters: N rows.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pyarrow.parquet as pq

from features.arrays import ARRAYS, DECISIVE, FEATURES, FORMAT, MANIFEST_FILE, PARTS, FeatureArrays
from features.build_checks import refuse_telling_features
from features.build_steps import (
    RESULT_FILE,
    ROW,
    SPLIT_FILE,
    TARGETS_FILE,
    BuildPlan,
    compare_with_rates,
    count_partition,
    merge_targets,
    once,
    rates_file,
    shuffle_unit,
    sum_file,
    transform_partition,
    write_block,
)
from features.dataset import Dataset
from features.embedding_join import VectorTable, join_vectors
from features.feature_spec import SIDE_TABLE_KEYS
from features.leak_guards import (
    SplitPart,
    add_rates,
    rates_that_saw_their_rows,
    refuse_mixed_times,
)
from features.leaks import RATED_IDS, numbers_of_the_log, rate_violations
from features.partitions import Task, Workers
from features.pipeline import TRANSFORMS_FILE, FeaturePipeline
from features.split import EPOCH
from features.target_rates import with_parents
from features.violation import refuse_errors

UNIT_ROWS, PARTITION_ROWS, BLOCK_ROWS = 500_000, 500_000, 1_000_000
"""Rows read, transformed and merged at once: what bounds the memory."""

SAMPLE_ROWS = 200_000
"""Training rows that dense columns are scaled by: a mean is known to 0.22% of a deviation."""

BYTES_A_ROW = 900
"""Disk that a row takes at most while features are built, with some tens of columns."""

Report = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what was done."""


def build_features(
    data: str | Path,
    out: str | Path,
    *,
    partitions: int | None = None,
    workers: str = "local:2",
    seed: int = 0,
    min_count: int = 2,
    sample_rows: int = SAMPLE_ROWS,
    vectors: tuple[VectorTable, VectorTable] | None = None,
    start_from: str | Path | None = None,
    report: Report | None = None,
) -> FeatureArrays:
    """Fit all features of a dataset on its training rows and write every row's arrays.

    Args:
        data: A dataset folder with impressions.
        out: Where the arrays, the fitted pipeline (``features/``) and the manifest go.
        partitions: Parts that users are dealt into; by default some 500,000 rows each. Changes
            memory and time, never a byte of the result.
        workers: See ``Workers``.
        seed: Of the order of the training rows.
        min_count: See ``Vocabulary``.
        sample_rows: Training rows that dense columns are scaled by, about.
        vectors: Product and query vectors, where ``similarity_bins`` asks for them.
        start_from: Folder of earlier features (``RUN/features``), whose known values keep their
            rows and whose scales stay, so that a model of theirs can go on.
        report: Told of the steps.

    Raises:
        ValueError: If the dataset is wrong (the message names file, column and row), ``out`` holds
            something else, or the disk is full.
    """
    out, dataset = Path(out), Dataset.open(data)
    report = report or (lambda *_: None)
    dataset.require("impressions", needed_for="building features")
    if partitions is not None and partitions < 1:
        raise ValueError(f"partitions is {partitions}; must be 1 or more")
    if out.exists() and any(out.iterdir()) and not _is_ours(out):
        raise ValueError(f"{out} holds other files; choose a folder of its own for built features")
    units = tuple(_units(dataset))
    rows = dataset.rows("impressions")
    if not rows:
        raise ValueError("the impressions have no rows")
    plan = BuildPlan(
        data=str(data),
        partitions=partitions or max(1, -(-rows // PARTITION_ROWS)),
        seed=seed,
        sample_rows=sample_rows,
        min_count=min_count,
        units=units,
    )
    earlier = None if start_from is None else FeaturePipeline.load(start_from)
    fingerprint = _fingerprint(dataset, plan, vectors, start_from)
    manifest = out / MANIFEST_FILE
    if manifest.is_file() and json.loads(manifest.read_text())["build"] == fingerprint:
        return FeatureArrays.open(out)
    scratch = out / f".build-{fingerprint[:16]}"
    with _space_wanted(out, rows, resumed=scratch.exists()):
        out.mkdir(parents=True, exist_ok=True)
        for stale in out.glob(".build-*"):
            if stale != scratch:
                shutil.rmtree(stale)
        scratch.mkdir(exist_ok=True)
        plan.save_(scratch)
        with Workers(workers) as hands:
            _build(scratch, plan, dataset, vectors, earlier, hands, report)
            _publish(scratch, out, plan, fingerprint, dataset, hands)
            report(1, 1, "publishing")
    return FeatureArrays.open(out)


def _build(
    scratch: Path,
    plan: BuildPlan,
    dataset: Dataset,
    vectors: tuple[VectorTable, VectorTable] | None,
    earlier: FeaturePipeline | None,
    workers: Workers,
    report: Report,
) -> None:
    where, parts = str(scratch), range(plan.partitions)

    def run(name: str, step: Task, tasks: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        results = []
        for done, result in enumerate(workers.run(step, tasks), start=1):
            report(done, len(tasks), name)
            results.append(result)
        return results

    run("dealing rows to partitions", shuffle_unit, [(where, u) for u in range(len(plan.units))])
    if not (scratch / SPLIT_FILE).is_file():
        split = _split(scratch, plan, dataset)
        draft = scratch / f".{SPLIT_FILE}"
        draft.write_text(json.dumps(split), encoding="utf-8")
        draft.rename(scratch / SPLIT_FILE)
    report(1, 1, "splitting by time")
    counted = run("counting", count_partition, [(where, p) for p in parts])
    _refuse_one_class(counted)
    train, held_out = (
        pl.concat(_counted(scratch, plan, f"{name}.parquet")).sort(ROW)
        for name in ("sample", "held_out")
    )
    refuse_telling_features(train, held_out, dataset)
    numbers = numbers_of_the_log(train, dataset.spec)
    if numbers:
        rates = {key: _add_rates(scratch, plan, key) for key in RATED_IDS}
        like = run("looking for leaks", compare_with_rates, [(where, p) for p in parts])
        _refuse_rates(rates, like, numbers)
    keys = with_parents(dataset.spec.features.statistics_keys)
    run("adding up target statistics", merge_targets, [(where, k) for k in range(len(keys))])
    once(scratch / FEATURES, lambda draft: _fit(draft, scratch, plan, dataset, vectors, earlier))
    report(1, 1, "fitting")
    run("transforming", transform_partition, [(where, p) for p in parts])
    run("merging", write_block, list(_blocks(scratch, plan)))


def _split(scratch: Path, plan: BuildPlan, dataset: Dataset) -> dict[str, Any]:
    """Where training ends and testing begins, as ``split_by_time`` has it, from requests alone."""
    files = [
        scratch / "shuffled" / f"impressions-{unit:05d}" / "requests.parquet"
        for unit, (table, *_) in enumerate(plan.units)
        if table == "impressions"
    ]
    parts = pl.concat([pl.read_parquet(file) for file in files])
    requests = parts.group_by("_request").agg(
        pl.col("first").min(), pl.col("last").max(), pl.col("rows").sum()
    )
    rule = dataset.spec.split
    if rule.validation_start is not None and rule.test_start is not None:
        boundaries = [
            (moment - EPOCH).days * 86_400_000_000
            + (moment - EPOCH).seconds * 1_000_000
            + (moment - EPOCH).microseconds
            for moment in (rule.validation_start, rule.test_start)
        ]
    else:
        by_start = requests.select("first", "rows").sort("first")
        until_N = by_start["rows"].cum_sum().to_numpy()
        total = int(until_N[-1])
        shares = (1 - rule.test_fraction - rule.validation_fraction, 1 - rule.test_fraction)
        places = [min(round(total * share), total - 1) for share in shares]
        boundaries = by_start["first"].to_numpy()[np.searchsorted(until_N, places, "right")]
        boundaries = boundaries.tolist()
    astride = requests.filter(
        pl.any_horizontal(
            (pl.col("first") < boundary) & (pl.col("last") >= boundary) for boundary in boundaries
        )
    )
    part_N = np.searchsorted(boundaries, requests["first"].to_numpy(), side="right")
    return {
        "boundaries_us": boundaries,
        "astride": sorted(astride.select("_request", "first").rows()),
        "rows": np.bincount(part_N, requests["rows"], minlength=3).astype(int).tolist(),
    }


def _add_rates(scratch: Path, plan: BuildPlan, key: str) -> pl.DataFrame:
    """Put the click rates of an id where every partition finds them."""
    rates = add_rates(_counted(scratch, plan, rates_file(key)), key)
    rates.write_parquet(scratch / rates_file(key))
    return rates


def _refuse_rates(
    rates: dict[str, pl.DataFrame], like: Sequence[dict[str, Any]], numbers: Sequence[str]
) -> None:
    """Refuse dense columns that are click rates over the very rows that they describe."""
    key_of: dict[str, str] = {}
    for key in RATED_IDS:
        counts = np.sum([partition[key] for partition in like], axis=0)
        for name in rates_that_saw_their_rows(rates[key], counts, numbers):
            key_of.setdefault(name, key)
    refuse_errors(rate_violations(key_of))


def _counted(scratch: Path, plan: BuildPlan, file: str) -> list[pl.DataFrame]:
    """A file that every partition counted."""
    folders = (scratch / "counted" / f"{partition:05d}" for partition in range(plan.partitions))
    return [pl.read_parquet(folder / file) for folder in folders]


def _fit(
    draft: Path,
    scratch: Path,
    plan: BuildPlan,
    dataset: Dataset,
    vectors: tuple[VectorTable, VectorTable] | None,
    earlier: FeaturePipeline | None,
) -> dict[str, Any]:
    """Fit the pipeline from what the partitions counted, and save it."""

    def read(name: str) -> list[pl.DataFrame]:
        return _counted(scratch, plan, f"{name}.parquet")

    sample = pl.concat(read("sample")).sort(ROW)
    seen = sample
    for table, key in SIDE_TABLE_KEYS.items():
        if not dataset.has(table):
            # The catalogue is what training showed, and the sample is but a part of it.
            ids = pl.concat(read(table)).unique()
            seen = pl.concat([seen, ids], how="diagonal") if len(ids) else seen
            assert key in seen.columns
    pipeline = FeaturePipeline(dataset.spec, min_count=plan.min_count)
    pipeline.learn_catalogue(dataset, seen)
    # Equal purchases aside, one order: histories and the saved table must not depend on the parts.
    pipeline.learn_purchases(pl.concat(read("purchases")).sort("user_id", "time", "product_id"))
    if vectors is not None:
        pipeline.learn_vectors(join_vectors(*vectors, pipeline.product_ids_, pipeline.query_ids_))
    else:
        pipeline.learn_vectors(None)
    features = dataset.spec.features
    names = (*features.sparse, *features.bags)
    pipeline.learn_values(
        {name: pl.concat(read(f"values_{place}")) for place, name in enumerate(names)}
    )
    if features.target_statistics:
        files = sorted((scratch / "targets").glob(f"*/{TARGETS_FILE}"))
        pipeline.learn_rates([[pl.read_parquet(file) for file in files]])
    pipeline.learn_scales(sample)
    if earlier is not None:
        pipeline.continue_from(earlier)
    pipeline.save_(draft)
    return {
        "sparse_names": pipeline.sparse_names,
        "vocabulary_sizes": pipeline.vocabulary_sizes,
        "dense_names": pipeline.dense_names,
        "history_length": pipeline.spec.history.max_length,
        "collision_share": pipeline.collisions,
    }


def _blocks(scratch: Path, plan: BuildPlan) -> Iterator[tuple[Any, ...]]:
    """Make the empty arrays, and cut every one into ranges of keys."""
    folders = [scratch / "transformed" / f"{p:05d}" for p in range(plan.partitions)]
    split = json.loads((scratch / SPLIT_FILE).read_text(encoding="utf-8"))
    for part, rows in zip(PARTS, split["rows"], strict=True):
        keys = [np.load(folder / part / "key.npy", mmap_mode="r") for folder in folders]
        blocks = max(1, -(-rows // BLOCK_ROWS))
        top = max((int(key[-1]) for key in keys if len(key)), default=0)
        edges = [top * block // blocks + 1 for block in range(1, blocks)]
        cuts = [
            [0, *np.searchsorted(key, np.array(edges, np.uint64)).tolist(), len(key)]
            for key in keys
        ]
        starts = np.cumsum([0, *(sum(c[b + 1] - c[b] for c in cuts) for b in range(blocks))])
        (scratch / "arrays" / part).mkdir(parents=True, exist_ok=True)
        for name in ARRAYS:
            sources = [folder / part / f"{name}.npy" for folder in folders]
            if not sources[0].is_file():
                continue
            target = scratch / "arrays" / part / f"{name}.npy"
            if not target.is_file():
                like = np.load(sources[0], mmap_mode="r")
                np.lib.format.open_memmap(
                    target, mode="w+", dtype=like.dtype, shape=(rows, *like.shape[1:])
                )
        for block in range(blocks):
            bounds = [[cut[block], cut[block + 1]] for cut in cuts]
            yield str(scratch), part, block, int(starts[block]), bounds


def _publish(
    scratch: Path,
    out: Path,
    plan: BuildPlan,
    fingerprint: str,
    dataset: Dataset,
    workers: Workers,
) -> None:
    """Check the arrays, and put them in place; the manifest last, so half a build is none."""
    split = json.loads((scratch / SPLIT_FILE).read_text(encoding="utf-8"))
    fitted = json.loads((scratch / FEATURES / RESULT_FILE).read_text(encoding="utf-8"))
    arrays = scratch / "arrays"
    looked_at = ("time_us_N", "request_N", "user_N")
    refuse_mixed_times(
        {
            part: SplitPart(
                **{n: np.load(arrays / part / f"{n}.npy", mmap_mode="r") for n in looked_at}
            )
            for part in PARTS
        }
    )
    files = {
        **{str(file.relative_to(arrays)): file for file in sorted(arrays.rglob("*.npy"))},
        **{f"{FEATURES}/{file.name}": file for file in sorted((scratch / FEATURES).iterdir())},
    }
    del files[f"{FEATURES}/{RESULT_FILE}"]
    done = workers.run(sum_file, [(str(file),) for file in files.values()])
    sums = {name: result["sha256"] for name, result in zip(files, done, strict=True)}
    features = {name: value for name, value in sums.items() if name.startswith(FEATURES)}
    manifest = {
        "format": FORMAT,
        "build": fingerprint,
        "data": dataset.fingerprint(),
        "spec": dataset.spec.model_dump(mode="json", include=set(DECISIVE)),
        "min_count": plan.min_count,
        "features": hashlib.sha256(json.dumps(features, sort_keys=True).encode()).hexdigest(),
        "seed": plan.seed,
        "rows": dict(zip(PARTS, split["rows"], strict=True)),
        "boundaries_us": split["boundaries_us"],
        **fitted,
        "sha256": sums,
    }
    draft = scratch / MANIFEST_FILE
    draft.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    (out / MANIFEST_FILE).unlink(missing_ok=True)
    for name, source in ((FEATURES, scratch / FEATURES), *((p, arrays / p) for p in PARTS)):
        shutil.rmtree(out / name, ignore_errors=True)
        shutil.copytree(source, out / name, copy_function=os.link)
    (out / FEATURES / RESULT_FILE).unlink()
    draft.rename(out / MANIFEST_FILE)
    shutil.rmtree(scratch)


def _units(dataset: Dataset) -> Iterator[tuple[str, str, int, int, int]]:
    """Cut the files of the log into runs of row groups of some 500,000 rows."""
    for table in ("impressions", "events"):
        first_row = 0
        for uri in dataset.files(table) if dataset.has(table) else []:
            with fsspec.open(uri, "rb") as file:
                meta = pq.ParquetFile(file).metadata
                rows = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
            group = 0
            while group < len(rows):
                stop, taken = group + 1, rows[group]
                while stop < len(rows) and taken + rows[stop] <= UNIT_ROWS:
                    taken, stop = taken + rows[stop], stop + 1
                yield table, uri, group, stop, first_row
                group, first_row = stop, first_row + taken


def _refuse_one_class(counted: Sequence[dict[str, Any]]) -> None:
    rows, clicks = (np.sum([c[name] for c in counted], axis=0) for name in ("rows", "clicks"))
    for part, of, clicked in zip(PARTS, rows, clicks, strict=True):
        if clicked in (0, of):
            raise ValueError(
                f"impressions.clicked is one class in all {of} rows of the {part} part: nothing "
                "can be learned or measured; is the split where you want it?"
            )


def _fingerprint(
    dataset: Dataset,
    plan: BuildPlan,
    vectors: tuple[VectorTable, VectorTable] | None,
    start_from: str | Path | None,
) -> str:
    said = asdict(plan) | {
        "format": FORMAT,
        "tables": dataset.fingerprint(),
        "spec": dataset.spec.model_dump(mode="json"),
        "vectors": [table.fingerprint for table in vectors or ()],
    }
    if start_from is not None:
        said["start_from"] = sum_file(str(Path(start_from) / TRANSFORMS_FILE))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _is_ours(out: Path) -> bool:
    return (out / MANIFEST_FILE).is_file() or any(out.glob(".build-*"))


@contextmanager
def _space_wanted(out: Path, rows: int, *, resumed: bool) -> Iterator[None]:
    """Say it in words when the disk is too small, before the work or when it fills up."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free, wanted = shutil.disk_usage(there).free, rows * BYTES_A_ROW
    advice = (
        f"building features of {rows} rows takes up to {wanted / 1e9:.1f} GB beside the data; make "
        "room or choose another folder, and repeat the command: it goes on where it stopped"
    )
    if free < wanted and not resumed:
        raise ValueError(f"{out} has {free / 1e9:.1f} GB free: {advice}")
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if full:
            raise ValueError(f"the disk of {out} is full: {advice}") from error
        raise
