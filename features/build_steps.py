"""The steps of a feature build, each a function of one unit of the log or one partition of users.

A step reads files, writes files and returns a few figures. What it wrote appears whole or not at
all, and is not made again when a build is repeated. No step's result depends on how the log was
cut into partitions: counts add up, samples go by row number, and rows find their place by a key.

Shape letters: N rows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.arrays import ARRAYS, FEATURES, PARTS
from features.build_checks import refuse_repeated_rows, refuse_wrong_columns, refuse_wrong_rows
from features.columns import canonical
from features.dataset import Dataset
from features.feature_spec import OUTCOMES, SIDE_TABLE_KEYS
from features.file_sum import file_sha256
from features.history import purchases_of
from features.leak_guards import key_rates, refuse_outcomes_before_their_cause, rows_like_rates
from features.leaks import RATED_IDS, numbers_of_the_log
from features.pipeline import FeaturePipeline
from features.stable_hash import NULL_HASH, hash_numbers, hash_values, in_sample
from features.target_statistics import merge_counts

PLAN_FILE, SPLIT_FILE, RESULT_FILE = "plan.json", "split.json", "result.json"
TARGETS_FILE = "targets.parquet"

ROW, USER, REQUEST = "_row", "_user", "_request"
"""Columns that a shuffled log has beside its own: row number, and hashes of user and request."""


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """What all steps of a build go by."""

    data: str
    """The dataset's folder."""
    partitions: int
    """Parts that users are dealt into by their hash."""
    seed: int
    """Of the order of the training rows, and of the sample that scales are fitted on."""
    sample_rows: int
    """Training rows that dense columns are scaled by, about; all if there are fewer."""
    min_count: int
    """See ``Vocabulary``."""
    units: tuple[tuple[str, str, int, int, int], ...]
    """Parts of files that are read at once: table, file, first and last row group, first row."""

    def save_(self, folder: Path) -> None:
        """Write the plan where every step finds it."""
        (folder / PLAN_FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> BuildPlan:
        """Return the plan that ``save_`` wrote."""
        data = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
        return cls(**{**data, "units": tuple(tuple(unit) for unit in data["units"])})


def shuffle_unit(scratch: str, unit: int) -> dict[str, Any]:
    """Deal the rows of one unit of impressions or events to the partitions of their users."""
    folder, plan = Path(scratch), BuildPlan.load(Path(scratch))
    table, uri, first_group, last_group, first_row = plan.units[unit]
    dataset = open_dataset(plan.data)
    pipeline = FeaturePipeline(dataset.spec)

    def work(draft: Path) -> dict[str, Any]:
        try:
            frame = _read_unit(uri, _wanted_columns(dataset, table), first_group, last_group)
            if table == "events":
                refuse_wrong_columns(table, frame)
                frame = canonical(table, frame)
                refuse_wrong_rows(table, frame, dataset)
                frame = frame.filter(pl.col("kind") == "purchase")
                hash_N = hash_values(frame["user_id"])
                if "request_id" in frame.columns:
                    request = pl.Series(REQUEST, hash_values(frame["request_id"]))
                    frame = frame.with_columns(request).drop("request_id")
                _write_parts(frame.drop("kind"), hash_N, plan.partitions, draft)
                return {}
            # All of a log's own columns: labels outside 0 and 1 are found here.
            refuse_wrong_columns(table, frame)
            frame = pipeline.checked(frame)
            refuse_wrong_rows(table, frame, dataset)
        except ValueError as error:
            raise ValueError(f"{uri}, rows counted from {first_row}: {error}") from error
        user_N, request_N = hash_values(frame["user_id"]), hash_values(frame["request_id"])
        row_N = np.arange(first_row, first_row + len(frame))
        frame = frame.drop("request_id").with_columns(
            pl.Series(ROW, row_N), pl.Series(USER, user_N), pl.Series(REQUEST, request_N)
        )
        time = pl.col("time").cast(pl.Int64)
        frame.group_by(REQUEST).agg(
            time.min().alias("first"), time.max().alias("last"), pl.len().alias("rows")
        ).write_parquet(draft / "requests.parquet")
        hash_N = np.where(user_N == NULL_HASH, request_N, user_N)
        _write_parts(frame, hash_N, plan.partitions, draft)
        return {"rows": len(frame)}

    return once(folder / "shuffled" / f"{table}-{unit:05d}", work)


def count_partition(scratch: str, partition: int) -> dict[str, Any]:
    """Count values, clicks by key and sampled rows among the training rows of a partition."""
    folder, plan = Path(scratch), BuildPlan.load(Path(scratch))
    dataset = open_dataset(plan.data)

    def work(draft: Path) -> dict[str, Any]:
        frame = read_partition(folder, plan, "impressions", partition)
        refuse_repeated_rows(frame, request=REQUEST, row=ROW)
        part_N = parts_of(frame, folder)
        train = frame.filter(pl.Series(part_N == 0))
        pipeline = FeaturePipeline(dataset.spec, min_count=plan.min_count)
        pipeline.learn_catalogue(dataset, train)
        for table, key in SIDE_TABLE_KEYS.items():
            if not dataset.has(table):
                ids = train.select(key).drop_nulls().unique()
                ids.write_parquet(draft / f"{table}.parquet")
        for place, counts in enumerate(pipeline.count_values(train).values()):
            counts.write_parquet(draft / f"values_{place}.parquet")
        if dataset.spec.features.target_statistics:
            for place, counts in enumerate(pipeline.count_targets(train)):
                counts.write_parquet(draft / f"targets_{place}.parquet")
        held_out = frame.filter(pl.Series(part_N > 0))
        rows = split_of(folder)["rows"]
        for name, drawn_of, total in (
            ("sample", train, rows[0]),
            ("held_out", held_out, sum(rows[1:])),
        ):
            sampled(drawn_of, total, plan).write_parquet(draft / f"{name}.parquet")
        if numbers_of_the_log(frame, dataset.spec):
            for key in RATED_IDS:
                key_rates(frame, key, part_N == 0).write_parquet(draft / rates_file(key))
        if dataset.has("events"):
            purchases = read_partition(folder, plan, "events", partition)
            if REQUEST in purchases.columns:
                refuse_outcomes_before_their_cause(frame, purchases, request=REQUEST)
                purchases = purchases.drop(REQUEST)
        else:
            purchases = purchases_of(None, frame)
        purchases.write_parquet(draft / "purchases.parquet")
        return {
            "rows": np.bincount(part_N, minlength=3).tolist(),
            "clicks": np.bincount(part_N, frame["clicked"], minlength=3).astype(int).tolist(),
        }

    return once(folder / "counted" / f"{partition:05d}", work)


def compare_with_rates(scratch: str, partition: int) -> dict[str, Any]:
    """Count a partition's rows in which a dense column is the click rate of an id, by id."""
    folder, plan = Path(scratch), BuildPlan.load(Path(scratch))
    dataset = open_dataset(plan.data)

    def work(draft: Path) -> dict[str, Any]:
        frame = read_partition(folder, plan, "impressions", partition)
        numbers, train_N = numbers_of_the_log(frame, dataset.spec), parts_of(frame, folder) == 0
        rates = {key: pl.read_parquet(folder / rates_file(key)) for key in RATED_IDS}
        return {
            key: rows_like_rates(frame, key, numbers, rates[key], train_N).tolist()
            for key in RATED_IDS
        }

    return once(folder / "compared" / f"{partition:05d}", work)


def rates_file(key: str) -> str:
    """Name of the file with ``key_rates`` of an id."""
    return f"rates_{key}.parquet"


def transform_partition(scratch: str, partition: int) -> dict[str, Any]:
    """Turn the rows of a partition into arrays, ordered by the key of their final place."""
    folder, plan = Path(scratch), BuildPlan.load(Path(scratch))

    def work(draft: Path) -> dict[str, Any]:
        frame = read_partition(folder, plan, "impressions", partition)
        purchases = pl.read_parquet(folder / "counted" / f"{partition:05d}" / "purchases.parquet")
        pipeline = fitted_pipeline(str(folder / FEATURES))
        pipeline.learn_purchases(purchases)
        examples = pipeline.transform(frame)
        row_N = frame[ROW].to_numpy()
        user_N = frame[USER].to_numpy()
        codes = {
            # A row without a user is one of its own.
            "user_N": np.where(user_N == NULL_HASH, hash_numbers(row_N), user_N).view(np.int64),
            "request_N": frame[REQUEST].to_numpy().view(np.int64),
        }
        part_N = parts_of(frame, folder)
        for place, part in enumerate(PARTS):
            rows = np.flatnonzero(part_N == place)
            key = final_key(row_N[rows], part, plan.seed)
            order = np.argsort(key)
            (draft / part).mkdir()
            np.save(draft / part / "key.npy", key[order])
            for name in ARRAYS:
                array = codes.get(name, getattr(examples, name))
                if array is not None:
                    np.save(draft / part / f"{name}.npy", array[rows[order]])
        return {}

    return once(folder / "transformed" / f"{partition:05d}", work)


def merge_targets(scratch: str, place: int) -> dict[str, Any]:
    """Add up what all partitions counted for one key of the target statistics."""
    folder = Path(scratch)

    def work(draft: Path) -> dict[str, Any]:
        files = sorted((folder / "counted").glob(f"*/targets_{place}.parquet"))
        merge_counts(pl.read_parquet(file) for file in files).write_parquet(draft / TARGETS_FILE)
        return {}

    return once(folder / "targets" / f"{place:05d}", work)


def write_block(
    scratch: str, part: str, block: int, first_place: int, bounds: list[list[int]]
) -> dict[str, Any]:
    """Merge one range of keys of all partitions into its place in the arrays of a part.

    Args:
        scratch: Of the build.
        part: train, validation or test.
        block: Its number, for the mark that it is done.
        first_place: Row of the arrays where the block begins.
        bounds: First and last row of the range in every partition.
    """
    folder = Path(scratch)

    def work(draft: Path) -> dict[str, Any]:
        sources = [
            (folder / "transformed" / f"{partition:05d}" / part, start, stop)
            for partition, (start, stop) in enumerate(bounds)
            if stop > start
        ]
        if not sources:
            return {}

        def merged(name: str) -> NDArray[Any]:
            return np.concatenate(
                [
                    np.load(s / f"{name}.npy", mmap_mode="r")[start:stop]
                    for s, start, stop in sources
                ]
            )

        order = np.argsort(merged("key"))
        for target in sorted((folder / "arrays" / part).glob("*.npy")):
            array = np.load(target, mmap_mode="r+")
            array[first_place : first_place + len(order)] = merged(target.stem)[order]
        return {}

    return once(folder / "blocks" / f"{part}-{block:05d}", work)


def sum_file(path: str) -> dict[str, Any]:
    """Return the SHA-256 of a file."""
    return {"sha256": file_sha256(Path(path))}


def final_key(row_N: NDArray[np.integer], part: str, seed: int) -> NDArray[np.uint64]:
    """Return what rows of a part are ordered by: by lot for training, else as in the log."""
    return hash_numbers(row_N, seed=seed) if part == "train" else row_N.astype(np.uint64)


def parts_of(frame: pl.DataFrame, folder: Path) -> NDArray[np.int64]:
    """Return 0 for rows of training, 1 for validation and 2 for test; a request stays whole."""
    split = split_of(folder)
    start_us_N = frame["time"].cast(pl.Int64).to_numpy()
    astride = dict(split["astride"])
    if astride:
        first = frame[REQUEST].replace_strict(
            list(astride), list(astride.values()), default=None, return_dtype=pl.Int64
        )
        start_us_N = first.fill_null(pl.Series(start_us_N)).to_numpy()
    return np.searchsorted(np.array(split["boundaries_us"]), start_us_N, side="right")


def sampled(rows: pl.DataFrame, total: int, plan: BuildPlan) -> pl.DataFrame:
    """Return a partition's share of some ``plan.sample_rows`` rows, drawn by their numbers."""
    row_N = rows[ROW].to_numpy()
    drawn_N = in_sample(row_N, rows=plan.sample_rows, total=total, seed=plan.seed + 1)
    return rows.filter(pl.Series(drawn_N))


def read_partition(folder: Path, plan: BuildPlan, table: str, partition: int) -> pl.DataFrame:
    """Return a partition's rows of a shuffled table, in the order of the log."""
    files = [
        folder / "shuffled" / f"{table}-{unit:05d}" / f"{partition:05d}.arrow"
        for unit, (of, *_) in enumerate(plan.units)
        if of == table
    ]
    return pl.concat([pl.read_ipc(file) for file in files], rechunk=True)


def once(folder: Path, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Do a piece of work into a folder that appears whole; done before, it is not done again."""
    result = folder / RESULT_FILE
    if not result.is_file():
        draft = folder.with_name(f".{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        figures = work(draft)
        (draft / RESULT_FILE).write_text(json.dumps(figures), encoding="utf-8")
        draft.rename(folder)
    return json.loads(result.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def open_dataset(folder: str) -> Dataset:
    """Open a dataset once a process: its side tables serve every partition."""
    return Dataset.open(folder)


@lru_cache(maxsize=1)
def fitted_pipeline(folder: str) -> FeaturePipeline:
    """Load a pipeline once a process."""
    return FeaturePipeline.load(folder)


@lru_cache(maxsize=1)
def _split_file(folder: str, _changed_ns: int) -> dict[str, Any]:
    return json.loads((Path(folder) / SPLIT_FILE).read_text(encoding="utf-8"))


def split_of(folder: Path) -> dict[str, Any]:
    """Return boundaries, rows of each part, and requests that lie astride a boundary."""
    return _split_file(str(folder), (folder / SPLIT_FILE).stat().st_mtime_ns)


def _read_unit(uri: str, columns: list[str], first: int, last: int) -> pl.DataFrame:
    with fsspec.open(uri, "rb") as file:
        table = pq.ParquetFile(file).read_row_groups(list(range(first, last)), columns=columns)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _wanted_columns(dataset: Dataset, table: str) -> list[str]:
    if table == "events":
        wanted = ("user_id", "product_id", "time", "kind", "request_id")
        return [name for name in wanted if name in dataset.column_names(table)]
    needed = FeaturePipeline(dataset.spec).required_columns
    known = dataset.column_names(table)
    wanted = dict.fromkeys((*needed, "request_id", *OUTCOMES, "position", "sample_weight"))
    return [name for name in wanted if name in known]


def _write_parts(
    frame: pl.DataFrame, hash_N: NDArray[np.uint64], partitions: int, folder: Path
) -> None:
    part_N = (hash_N % np.uint64(partitions)).astype(np.int64)
    order_N = np.argsort(part_N, kind="stable")
    frame = frame[order_N]
    ends = np.cumsum(np.bincount(part_N, minlength=partitions)).tolist()
    for partition, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        frame[start:end].write_ipc(folder / f"{partition:05d}.arrow")
