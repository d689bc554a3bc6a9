"""Embed a table of any size to a vector store: planned once, made shard by shard, merged."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import polars as pl
import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field

from embeddings import checkpoint
from embeddings.index_shards import (
    IndexPlan,
    What,
    begin_,
    bytes_needed,
    disk_full,
    embed_shard,
    finished_shards,
    load_for,
    load_once,
    read_shards,
    source_digest,
)
from embeddings.model import Mode
from embeddings.parquet_rows import ParquetRows
from embeddings.store import Manifest
from embeddings.store_parts import refuse_repeats_across, write_parts_
from experiments.progress import Progress, Report, Silent
from features.dataset import Dataset
from features.partitions import Workers
from features.schema import SPEC_FILE

BARRIER_TIMEOUT = timedelta(days=30)
"""A rank may wait for the slowest shards of the others."""

POLL_SECONDS = 0.5

KEPT_PRIMITIVES = "32"
"""Compiled matrix products that oneDNN keeps, by itself 1,024 of them: batches have hundreds of
shapes, and each that is kept holds memory."""


class IndexConfig(BaseModel):
    """What is embedded, and by whom."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: What = "products"
    """products: product vectors; queries: any texts, by the query encoder."""
    mode: Mode = "multimodal"
    """What of a product is looked at."""
    stage: int = Field(default=2, ge=1, le=2)
    """The stage that the model must have gone through."""
    id_column: str | None = None
    """By default product_id or query_id."""
    text_column: str | None = None
    """Text of a query; by default query."""
    shard_rows: int = Field(default=2048, ge=1)
    """Rows of a shard: what a worker holds in memory, and what an interruption costs at most."""
    workers: str = "local:1"
    """local:N for N processes here; ray or ray:N for Ray Data (extra `ray`). Under torchrun the
    ranks share the shards."""
    device: str = "cpu"
    """Of every worker, such as cuda."""
    threads: int = Field(default=1, ge=1)
    """Of one worker. Other threads may round sums otherwise, so they are part of the plan."""
    redo_changed: bool = False
    """Embed finished shards again whose rows have changed since; otherwise that is an error."""
    keep_shards: bool = False
    """Keep the shards after the merge, so that a changed table costs its changed shards alone."""


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """What one call did."""

    store: Path
    manifest: Manifest
    rows: int
    """Rows of the store."""
    made_rows: int
    """Rows of the shards that were not there yet when the call began."""
    seconds: float
    """For these shards, merge aside."""

    def to_metrics(self) -> dict[str, float]:
        """Flat figures."""
        rate = self.made_rows / self.seconds if self.made_rows else 0.0
        return {
            "rows": float(self.rows),
            "made_rows": float(self.made_rows),
            "seconds": self.seconds,
            "rows_per_s": rate,
            "dim": float(self.manifest.dim),
        }


def index_catalogue(
    model_folder: str | Path,
    source: str | Path,
    out: str | Path,
    config: IndexConfig | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Indexed | None:
    """Embed a parquet table to a store, in memory of a shard whatever its size.

    The store has the same bytes whatever the workers. An interrupted call goes on from its
    finished shards, which lie beside ``out``, when it is repeated.

    Args:
        model_folder: A model, or the run that trained it.
        source: A parquet file, a folder of them, or a dataset.
        out: Folder of the store.
        config: Settings; the defaults if None.
        overwrite: Begin anew, whatever shards are there, and replace a store at ``out``.
        progress: Told of shards done, rows per second and time left.

    Returns:
        What was made; None on a rank of torchrun that is not the first.

    Raises:
        ValueError: If the model is of another stage, a column is missing, an id is null or comes
            twice, rows of a finished shard changed, or ``out`` holds something else.
        OSError: If the disk is or becomes too full.
    """
    config, out = config or IndexConfig(), Path(out)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KEPT_PRIMITIVES)
    work = out.with_name(f"{out.name}.shards")
    with _ranks() as (rank, world):
        if rank == 0:
            if (out / "manifest.json").is_file() and not (overwrite or work.is_dir()):
                raise ValueError(f"{out} exists already; give overwrite to make it anew")
            if overwrite:
                shutil.rmtree(work, ignore_errors=True)
            plan = plan_index(model_folder, source, config)
            begin_(work, plan)
            _refuse_what_cannot_end_well(plan, work)
        _wait(world)
        plan = IndexPlan.model_validate_json((work / "plan.json").read_bytes())
        began = time.monotonic()
        tasks = [
            (str(work), shard, config.redo_changed) for shard in range(rank, plan.shards, world)
        ]
        told = Silent() if rank or progress is None else progress
        with (
            told.stage("embedding") as report,
            _watched(work, plan, report),
            Workers(config.workers) as workers,
        ):
            done = list(workers.run(embed_shard, tasks))
        made_rows = _sum(sum(task["rows"] for task in done if task["made"]), world)
        seconds = time.monotonic() - began
        if rank:
            return None
        manifest = _merge_(work, plan, out)
        if not config.keep_shards:
            shutil.rmtree(work)
        return Indexed(
            store=out, manifest=manifest, rows=plan.count, made_rows=made_rows, seconds=seconds
        )


def plan_index(model_folder: str | Path, source: str | Path, config: IndexConfig) -> IndexPlan:
    """Settle everything that the bytes depend on.

    Raises:
        ValueError: As ``index_catalogue``.
    """
    folder = find_model(model_folder, config.stage)
    load_once.cache_clear()
    model, fingerprint = load_once(str(folder), config.device)
    rows, image_root = _find_rows(source, config.what)
    shape = model.architecture
    if config.what == "queries":
        id_column = config.id_column or "query_id"
        columns = (id_column, config.text_column or "query")
        rows.require(columns)
    else:
        id_column = config.id_column or "product_id"
        if config.text_column is not None:
            raise ValueError(
                f"text_column={config.text_column!r} is for queries; the columns of a product's "
                f"text are the model's: {list(shape.text_columns)}"
            )
        there = rows.columns()
        text = [name for name in shape.text_columns if name in there and config.mode != "image"]
        image = ["image"] if config.mode != "text" and "image" in there else []
        columns = (id_column, *text, *image)
        rows.require(columns)
        if len(columns) == 1:
            raise ValueError(
                f"{rows.files[0]} has neither of what mode={config.mode!r} looks at: image, "
                f"{', '.join(shape.text_columns)}; it has {there}"
            )
    return IndexPlan(
        files=rows.files,
        count=rows.count,
        what=config.what,
        mode=config.mode if config.what == "products" else "text",
        id_column=id_column,
        columns=columns,
        image_root=str(image_root),
        model_folder=str(folder),
        model_fingerprint=fingerprint,
        dim=model.dim,
        shard_rows=config.shard_rows,
        precision="bfloat16" if model.precision.dtype == torch.bfloat16 else "float32",
        device=config.device,
        threads=config.threads,
        torch_version=torch.__version__,
    )


def find_model(folder: str | Path, stage: int) -> Path:
    """The model in a folder, or that of a run after a stage.

    Raises:
        ValueError: If there is none, or it went through another stage.
    """
    folder = Path(folder)
    inside = folder / "embeddings" / f"model_stage{stage}"
    found = inside if inside.is_dir() else folder
    record = checkpoint.read_record(found)
    if record is None:
        raise ValueError(
            f"{folder} is neither a model nor a run with embeddings/model_stage{stage}; name a "
            "folder that `adtower embed` or `adtower run` made"
        )
    if record["stage"] != stage:
        raise ValueError(
            f"{found} holds a model after stage {record['stage']}, but stage={stage} is asked for; "
            "name the model's folder of that stage, or the stage of this model"
        )
    return found.resolve()


def _find_rows(source: str | Path, what: What) -> tuple[ParquetRows, Path]:
    """The rows of a source, and where relative image paths start."""
    path = Path(source)
    if (path / SPEC_FILE).is_file():
        dataset = Dataset.open(path)
        dataset.require(what, needed_for=f"embedding {what}")
        return ParquetRows(tuple(dataset.files(what))), path.resolve()
    rows = ParquetRows.at(path)
    return rows, (path if path.is_dir() else path.parent).resolve()


def _refuse_what_cannot_end_well(plan: IndexPlan, work: Path) -> None:
    """Look for ids that come twice and for room on the disk before hours of embedding."""
    rows = ParquetRows(plan.files)

    def ids() -> Iterator[list[str]]:
        first = 0
        for batch in rows.batches([plan.id_column]):
            id_N = batch[plan.id_column]
            if id_N.null_count():
                row = first + int(id_N.is_null().arg_max() or 0)
                raise ValueError(f"{plan.id_column} is null in row {row}; every row needs an id")
            yield id_N.cast(pl.String).to_list()
            first += len(batch)

    refuse_repeats_across(ids(), ids())
    if bytes_needed(work, plan) > shutil.disk_usage(work).free:
        raise disk_full(work, plan)


def _merge_(work: Path, plan: IndexPlan, out: Path) -> Manifest:
    model = load_for(plan.model_folder, plan.model_fingerprint, plan.device, plan.precision)
    shape = model.architecture
    products = plan.what == "products"
    kind = f"product/{plan.mode}" if products else "query/text"
    try:
        return write_parts_(
            out,
            read_shards(work, plan),
            count=plan.count,
            dim=plan.dim,
            kind=kind,
            encoder_fingerprint=plan.model_fingerprint,
            data_fingerprint=source_digest(work, plan),
            preprocessing={
                "tokenizer": checkpoint.fingerprint({}, model.tokenizer.to_str()),
                "max_tokens": shape.max_text_tokens if products else shape.max_query_tokens,
                "pooling": shape.text.pool,
                "normalisation": "unit length",
                "columns": list(plan.columns[1:]),
            },
            computation=plan.model_dump(
                mode="json",
                include={
                    "shard_rows", "batch_tokens", "precision", "device", "threads", "torch_version"
                },
            ),
        )  # fmt: skip
    except OSError as error:
        if error.errno == disk_full(work, plan).errno:
            raise disk_full(work, plan) from error
        raise


@contextmanager
def _ranks() -> Iterator[tuple[int, int]]:
    """This process among those of torchrun, and how many they are; 0 of 1 without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world < 2:
        yield 0, 1
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("gloo", timeout=BARRIER_TIMEOUT)
    try:
        yield dist.get_rank(), world
    finally:
        dist.destroy_process_group()


def _wait(world: int) -> None:
    if world > 1:
        dist.barrier()


def _sum(value: int, world: int) -> int:
    """The sum over ranks; all have finished when it is there."""
    total = torch.tensor([value])
    if world > 1:
        dist.all_reduce(total)
    return int(total)


@contextmanager
def _watched(work: Path, plan: IndexPlan, report: Report) -> Iterator[None]:
    """Count the finished shards from aside, whoever makes them, and report them."""
    began, before = time.monotonic(), finished_shards(work, plan)
    over = threading.Event()

    def tell() -> None:
        done = finished_shards(work, plan)
        rows = min((done - before) * plan.shard_rows, plan.count)
        rate = rows / max(time.monotonic() - began, 1e-9)
        left = (plan.shards - done) * plan.shard_rows / rate if rate else float("inf")
        report(done, plan.shards, f"{rate:,.0f} rows/s, {left:,.0f} s left")

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            tell()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        tell()
