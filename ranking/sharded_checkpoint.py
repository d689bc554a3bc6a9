"""Checkpoints of sharded training: each rank writes what it holds, any number of ranks reads it.

A folder with one safetensors file a rank, ``dense.safetensors`` for what all ranks share, and
``manifest.json`` with the place of every shard and the SHA-256 of every file. Nothing is read
before its sum agrees; no pickle, unlike torch.distributed.checkpoint's metadata. What the tables
were at the best check so far travels with them, so that both are of one moment.

A table that was whole and is now split by columns gives each part the whole's momentum, and parts
that become whole again their mean by width: row-wise Adagrad's momentum is a mean over columns, so
both are what it would have been.

Shape letters: S rows of a shard, D columns of a shard.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from embeddings.ranks import Ranks
from embeddings.tensor_file import write_tensors_
from features.file_sum import file_sha256
from ranking.checkpoint import (
    read_manifest,
    read_verified,
    verify_folder,
    write_manifest,
)
from ranking.sharded_tables import Shard, ShardedTables
from ranking.training_checkpoints import before

FORMAT = 3
DENSE = "dense.safetensors"

READ_ROWS = 262_144
"""Rows of a part that are read at a time."""


@dataclass(frozen=True, kw_only=True)
class ReadCheckpoint:
    """What a checkpoint holds beside the shards."""

    dense: dict[str, Tensor]
    """Tensors that all ranks share."""
    best: list[Tensor]
    """What this rank's shards were at the best check, in their order; empty before there is one."""
    record: dict[str, Any]


def write_checkpoint_(
    folder: Path,
    tables: Sequence[ShardedTables],
    dense: Mapping[str, Tensor],
    record: Mapping[str, Any],
    ranks: Ranks,
    best: Sequence[Tensor] | None = None,
) -> None:
    """Write what all ranks hold; a collective call.

    Args:
        folder: On storage that all ranks share; replaced whole if it exists.
        tables: The groups of sharded tables, in an order that does not change.
        dense: Tensors that are equal on every rank; the first rank's are written.
        record: JSON values that travel with them.
        ranks: The open group.
        best: What this rank's shards were at the best check, in their order.

    Raises:
        OSError: If this rank's part could not be written; the checkpoint before remains.
    """
    folder = Path(folder)
    unfinished, previous = folder.with_name(f".{folder.name}.part"), before(folder)
    if ranks.rank == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    ranks.agree(0)
    try:
        own = unfinished / f"rank-{ranks.rank:05d}.safetensors"
        write_tensors_(own, _rank_tensors(tables, best))
        if ranks.rank == 0:
            write_tensors_(unfinished / DENSE, dense)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    # The others' files are complete once they agree.
    ranks.agree(0)
    if ranks.rank == 0:
        write_manifest(
            unfinished,
            format=FORMAT,
            tables=_described(tables),
            ranks=ranks.world,
            record=dict(record),
        )
        shutil.rmtree(previous, ignore_errors=True)
        if folder.exists():
            folder.rename(previous)
        unfinished.rename(folder)
        shutil.rmtree(previous, ignore_errors=True)
    ranks.agree(0)


def _rank_tensors(
    tables: Sequence[ShardedTables], best: Sequence[Tensor] | None
) -> dict[str, Tensor]:
    """What this rank writes, by table, first row and first column."""
    tensors = {}
    for place, (number, shard) in enumerate(_numbered(tables)):
        name = f"table-{number}-{shard.row}-{shard.column}"
        tensors[f"{name}.weight"] = shard.weight_SD
        tensors[f"{name}.momentum"] = shard.momentum_S
        if best is not None:
            tensors[f"{name}.best"] = best[place]
    return tensors


def read_checkpoint_(folder: Path, tables: Sequence[ShardedTables]) -> ReadCheckpoint:
    """Fill this rank's shards from a checkpoint that any number of ranks wrote.

    Raises:
        ValueError: If there is none, a file is damaged, it is of other tables, or it lacks a part.
    """
    folder = _complete(folder)
    manifest = verify_folder(folder)
    found, asked = manifest.get("tables"), _described(tables)
    if manifest.get("format") != FORMAT or found != asked:
        raise ValueError(
            f"{folder} is a checkpoint of format {manifest.get('format')} with tables {found}; "
            f"this run has format {FORMAT} and {asked}. Were the features or their vocabularies "
            "changed?"
        )
    parts = _parts(folder)
    best = []
    with torch.no_grad():
        for number, shard in _numbered(tables):
            best.append(_fill_(shard, parts.get(number, []), folder, number))
    return ReadCheckpoint(
        dense=load(read_verified(folder, DENSE)),
        best=[each for each in best if each is not None],
        record=manifest["record"],
    )


def read_record(folder: Path) -> dict[str, Any]:
    """Return what was written with a checkpoint, without reading or verifying it.

    Raises:
        ValueError: If there is no checkpoint.
    """
    return read_manifest(_complete(folder))["record"]


def same_checkpoint(left: Path, right: Path) -> bool:
    """Whether two checkpoints hold the same bytes in the same files."""
    names = sorted(path.name for path in Path(left).glob("*.safetensors"))
    if names != sorted(path.name for path in Path(right).glob("*.safetensors")):
        return False
    return all(file_sha256(Path(left) / name) == file_sha256(Path(right) / name) for name in names)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What one file holds of a table."""

    file: str
    name: str
    row: int
    column: int
    rows: int
    columns: int
    has_best: bool

    def own(self, top: int, bottom: int) -> slice:
        """Rows of the part that are these rows of the table."""
        return slice(top - self.row, bottom - self.row)


def _parts(folder: Path) -> dict[int, list[_Part]]:
    """What the files hold of each table."""
    parts: dict[int, list[_Part]] = {}
    for path in sorted(folder.glob("rank-*.safetensors")):
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            for key in sorted(names):
                name, kind = key.rsplit(".", 1)
                if kind == "weight":
                    table, row, column = (int(part) for part in name.split("-")[1:])
                    rows, columns = file.get_slice(key).get_shape()
                    part = _Part(
                        file=path.name,
                        name=name,
                        row=row,
                        column=column,
                        rows=rows,
                        columns=columns,
                        has_best=f"{name}.best" in names,
                    )
                    parts.setdefault(table, []).append(part)
    return parts


def _fill_(shard: Shard, parts: Sequence[_Part], folder: Path, number: int) -> Tensor | None:
    """Copy the overlap of every written part with this shard; return its best weights, if any."""
    rows, columns = shard.weight_SD.shape
    best_SD = torch.empty(rows, columns) if any(part.has_best for part in parts) else None
    covered = 0
    shard.momentum_S.zero_()
    for part in parts:
        top, bottom = max(part.row, shard.row), min(part.row + part.rows, shard.row + rows)
        left = max(part.column, shard.column)
        right = min(part.column + part.columns, shard.column + columns)
        if top >= bottom or left >= right:
            continue
        there = slice(left - part.column, right - part.column)
        here = slice(left - shard.column, right - shard.column)
        share = (right - left) / columns
        with safe_open(folder / part.file, "pt") as file:
            for start in range(top, bottom, READ_ROWS):
                stop = min(start + READ_ROWS, bottom)
                written, own = part.own(start, stop), shard.own(start, stop)
                weight = file.get_slice(f"{part.name}.weight")[written, there]
                shard.weight_SD[own, here] = weight.to(shard.weight_SD.device)
                momentum = file.get_slice(f"{part.name}.momentum")[written]
                shard.momentum_S[own] += share * momentum.to(shard.momentum_S.device)
                if best_SD is not None:
                    best_SD[own, here] = file.get_slice(f"{part.name}.best")[written, there]
        covered += (bottom - top) * (right - left)
    if covered != rows * columns:
        raise ValueError(
            f"{folder} holds {covered} of the {rows * columns} numbers of table {number} that "
            "this rank needs; was a rank's file left behind?"
        )
    return best_SD


def _complete(folder: Path) -> Path:
    """The folder, or the one before it where a kill came between two renames."""
    previous = before(folder)
    return previous if previous.exists() and not Path(folder).exists() else Path(folder)


def _numbered(tables: Sequence[ShardedTables]) -> Iterator[tuple[int, Shard]]:
    """This rank's shards, with tables numbered through all groups."""
    first = 0
    for group in tables:
        for shard in group.shards():
            yield first + shard.table, shard
        first += len(group.names)


def _described(tables: Sequence[ShardedTables]) -> list[list[Any]]:
    """Name, rows and columns of every table, as JSON has them."""
    return [
        [name, size, group.width]
        for group in tables
        for name, size in zip(group.names, group.sizes, strict=True)
    ]
