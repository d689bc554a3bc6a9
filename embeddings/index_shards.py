"""A table embedded shard by shard: each a file that is whole or absent, made by any worker.

A shard is a fixed number of rows. What is inside one, its order of batches, its threads and its
arithmetic, depends on the plan alone, so that a shard has the same bytes whoever makes it. Beside
the vectors and ids of a shard lies its record, written last: what it was made from, and checksums.

Shape letters: N rows of a shard, D embedding size.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from embeddings.model import DashClip, Mode
from embeddings.parquet_rows import ParquetRows, digest_of_rows
from embeddings.precision import Precision
from features.kept_memory import keep_freed_memory_

What = Literal["products", "queries"]

PLAN = "plan.json"

BATCH_TOKENS = 1024
"""Tokens of a batch, padding included. Batches of one size leave no holes in memory: 256 texts at a
time took twice as much, and no less time."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class IndexPlan(BaseModel):
    """All that the bytes of every shard depend on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[str, ...]
    """The parquet files, in order."""
    count: int = Field(ge=1)
    """Rows of all files."""
    what: What
    mode: Mode
    """What of a product is looked at; "text" for queries."""
    id_column: str
    columns: tuple[str, ...]
    """All columns that are read, the id first."""
    image_root: str
    """Folder that relative image paths start from."""
    model_folder: str
    model_fingerprint: str
    dim: int
    shard_rows: int = Field(ge=1)
    batch_tokens: int = BATCH_TOKENS
    """Tokens of a batch inside a shard, texts of like length together."""
    precision: Literal["float32", "bfloat16"]
    device: str
    threads: int = Field(ge=1)
    """Of one worker: how a sum is rounded may depend on them."""
    torch_version: str

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.count // self.shard_rows)

    def rows(self, shard: int) -> tuple[int, int]:
        """First row of a shard and the row after its last."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.count)


class ShardRecord(BaseModel):
    """What a finished shard was made from, and what it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: tuple[int, int]
    source_sha256: str
    """Of the values of its rows."""
    vectors_sha256: str
    """Of the .npy file."""
    ids_sha256: str
    """Of the .json file with the ids."""


def begin_(work: Path, plan: IndexPlan) -> None:
    """Write the plan into the folder of shards, or go on with the one that is there.

    Raises:
        ValueError: If the shards there belong to another plan.
    """
    path = work / PLAN
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        now = plan.model_dump(mode="json")
        # Rows may have been added, changed or moved to other files: every shard knows its own.
        may_differ = {"model_folder", "count", "files"}
        differing = sorted(
            name for name in now if name not in may_differ and now[name] != before.get(name)
        )
        if differing:
            name = differing[0]
            raise ValueError(
                f"{work} holds shards of another run: {name} was {before.get(name)!r} and is "
                f"{now[name]!r} now ({', '.join(differing)} differ); name another folder, or give "
                "overwrite to begin anew"
            )
    work.mkdir(parents=True, exist_ok=True)
    write_whole_(path, plan.model_dump_json(indent=1).encode())


def embed_shard(work: str, shard: int, redo_changed: bool) -> dict[str, Any]:
    """Make one shard, unless it is there already; a task for ``features.partitions.Workers``.

    Args:
        work: Folder of shards, with the plan.
        shard: Its number.
        redo_changed: Make a finished shard anew if its rows have changed since.

    Returns:
        Its number, its rows, and whether it had to be made.

    Raises:
        ValueError: If the model is not the plan's, or the rows of a finished shard changed and
            ``redo_changed`` is not set.
        OSError: If the disk is full; what is finished stays.
    """
    folder = Path(work)
    plan = IndexPlan.model_validate_json((folder / PLAN).read_bytes())
    start, stop = plan.rows(shard)
    table = ParquetRows(plan.files).read(start, stop, plan.columns)
    source_sha256 = digest_of_rows(table, Path(plan.image_root))
    record = read_record(folder, shard)
    made = {"shard": shard, "rows": stop - start, "made": True}
    if record is not None and is_sound(folder, shard, record):
        if (record.source_sha256, record.rows) == (source_sha256, (start, stop)):
            return {**made, "made": False}
        if not redo_changed and record.rows == (start, stop):
            raise ValueError(
                f"rows {start} to {stop - 1} of {plan.files[0]} ({len(plan.files)} files) changed "
                f"after shard {shard} was made of them; give redo-changed to embed the changed "
                "shards again, or overwrite to begin anew"
            )
    ids = table[plan.id_column].cast(pl.String).to_list()
    vector_ND = _embed(table, plan)
    buffer = io.BytesIO()
    np.save(buffer, vector_ND)
    contents = {
        "npy": buffer.getvalue(),
        "ids.json": json.dumps(ids, ensure_ascii=False).encode(),
    }
    sha256 = {end: hashlib.sha256(content).hexdigest() for end, content in contents.items()}
    record_path = _path(folder, shard, "record.json")
    try:
        # Without its record a shard does not count, so an old record must not outlive its shard.
        record_path.unlink(missing_ok=True)
        for end, content in contents.items():
            write_whole_(_path(folder, shard, end), content)
        record = ShardRecord(
            rows=(start, stop),
            source_sha256=source_sha256,
            vectors_sha256=sha256["npy"],
            ids_sha256=sha256["ids.json"],
        )
        write_whole_(record_path, record.model_dump_json(indent=1).encode())
    except OSError as error:
        if error.errno in DISK_FULL:
            raise disk_full(folder, plan) from error
        raise
    return made


def disk_full(work: Path, plan: IndexPlan) -> OSError:
    """Say how much is needed, where, and what is free."""
    return OSError(
        errno.ENOSPC,
        f"the disk of {work} is too full: {bytes_needed(work, plan) / 1e6:,.0f} MB are still "
        f"needed for shards and their merged store and {shutil.disk_usage(work).free / 1e6:,.0f} "
        "MB are free; finished shards stay, and the same command goes on from them",
    )


def bytes_needed(work: Path, plan: IndexPlan) -> int:
    """What shards that are missing and the merged store will take on the disk."""
    missing = sum(
        plan.rows(shard)[1] - plan.rows(shard)[0]
        for shard in range(plan.shards)
        if not _path(work, shard, "record.json").is_file()
    )
    return (missing + plan.count) * plan.dim * 4


def finished_shards(work: Path, plan: IndexPlan) -> int:
    """How many have a record."""
    return sum(_path(work, shard, "record.json").is_file() for shard in range(plan.shards))


def read_record(work: Path, shard: int) -> ShardRecord | None:
    """The record of a shard; None if it is not finished."""
    path = _path(work, shard, "record.json")
    return ShardRecord.model_validate_json(path.read_bytes()) if path.is_file() else None


def is_sound(work: Path, shard: int, record: ShardRecord) -> bool:
    """Whether both files of a shard are those of its record."""
    ends = {"npy": record.vectors_sha256, "ids.json": record.ids_sha256}
    for end, expected in ends.items():
        path = _path(work, shard, end)
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            return False
    return True


def read_shards(work: Path, plan: IndexPlan) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """Ids and vectors (N, D) of every shard in order, one in memory at a time.

    Raises:
        ValueError: If a shard is missing or damaged.
    """
    for shard in range(plan.shards):
        record = read_record(work, shard)
        if record is None or not is_sound(work, shard, record):
            raise ValueError(
                f"shard {shard} in {work} is missing or damaged; the same command makes it again"
            )
        ids = json.loads(_path(work, shard, "ids.json").read_bytes())
        yield ids, np.load(_path(work, shard, "npy"), allow_pickle=False)


def source_digest(work: Path, plan: IndexPlan) -> str:
    """SHA-256 over what all shards were made from; names the table that was embedded."""
    digest = hashlib.sha256()
    for shard in range(plan.shards):
        record = read_record(work, shard)
        assert record is not None
        digest.update(record.source_sha256.encode())
    return digest.hexdigest()


def load_for(plan_folder: str, fingerprint: str, device: str, precision: str) -> DashClip:
    """Load a model once a process, with its arithmetic fixed.

    Raises:
        ValueError: If it is not the model of this fingerprint.
    """
    model, found = load_once(plan_folder, device)
    if found != fingerprint:
        load_once.cache_clear()
        model, found = load_once(plan_folder, device)
    if found != fingerprint:
        raise ValueError(
            f"the model in {plan_folder} is {found[:12]}, but {fingerprint[:12]} was planned with; "
            "was it trained again meanwhile?"
        )
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model.use_precision(Precision(dtype=dtype, reason="fixed by the plan"))
    return model


def write_whole_(path: Path, content: bytes) -> None:
    """Write a file so that it is whole or absent."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _embed(table: pl.DataFrame, plan: IndexPlan) -> NDArray[np.float32]:
    model = load_for(plan.model_folder, plan.model_fingerprint, plan.device, plan.precision)
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    keep_freed_memory_()
    try:
        if plan.what == "queries":
            texts = table[plan.columns[1]].fill_null("").to_list()
            return model.embed_queries(texts, batch_tokens=plan.batch_tokens)
        return model.embed_products(
            table.rename({plan.id_column: "product_id"}),
            plan.mode,
            image_root=plan.image_root,
            batch_tokens=plan.batch_tokens,
        )
    finally:
        torch.set_num_threads(threads)
        _give_memory_back()


def _path(work: Path, shard: int, end: str) -> Path:
    return work / f"shard-{shard:06d}.{end}"


@lru_cache(maxsize=1)
def load_once(folder: str, device: str) -> tuple[DashClip, str]:
    """The model in a folder and its fingerprint, kept by this process until it needs another."""
    model = DashClip.load(folder).to(torch.device(device))
    return model, model.fingerprint


def _give_memory_back() -> None:
    """Hand freed memory to the system, so that the next shard starts where this one did.

    glibc keeps what lies between small blocks that are still used: batches of many shapes would
    let a process grow to twice what a shard takes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
