"""Checkpoints of sharded training: each rank writes what it holds, any number of ranks reads it.

A folder with one safetensors file a rank, ``dense.safetensors`` for what all ranks share, and
``manifest.json`` with the place of every shard and the SHA-256 of every file. Nothing is read
before its sum agrees; no pickle, unlike torch.distributed.checkpoint's metadata.

A table that was whole and is now split by columns gives each part the whole's momentum, and parts
that become whole again their mean by width: row-wise Adagrad's momentum is a mean over columns, so
both are what it would have been.

Shape letters: S rows of a shard, D columns of a shard.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from embeddings.ranks import Ranks
from ranking.checkpoint import file_sha256, read_verified, verify_folder, write_manifest
from ranking.sharded_tables import Shard, ShardedTables

FORMAT = 2
DENSE = "dense.safetensors"


def write_checkpoint_(
    folder: Path,
    tables: Sequence[ShardedTables],
    dense: Mapping[str, Tensor],
    record: Mapping[str, Any],
    ranks: Ranks,
) -> None:
    """Write what all ranks hold; a collective call.

    Args:
        folder: On storage that all ranks share; replaced whole if it exists.
        tables: The groups of sharded tables, in an order that does not change.
        dense: Tensors that are equal on every rank; the first rank's are written.
        record: JSON values that travel with them.
        ranks: The open group.
    """
    folder = Path(folder)
    unfinished = folder.with_name(f".{folder.name}.part")
    if ranks.rank == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    ranks.agree(0)
    tensors = {}
    for number, shard in _numbered(tables):
        name = f"table-{number}-{shard.row}-{shard.column}"
        tensors[f"{name}.weight"] = shard.weight_SD.detach().cpu().contiguous()
        tensors[f"{name}.momentum"] = shard.momentum_S.detach().cpu().contiguous()
    save_file(tensors, unfinished / f"rank-{ranks.rank:05d}.safetensors")
    if ranks.rank == 0:
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in dense.items()}
        save_file(content, unfinished / DENSE)
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
        previous = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(previous, ignore_errors=True)
        if folder.exists():
            folder.rename(previous)
        unfinished.rename(folder)
        shutil.rmtree(previous, ignore_errors=True)
    ranks.agree(0)


def read_checkpoint_(
    folder: Path, tables: Sequence[ShardedTables]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fill this rank's shards from a checkpoint that any number of ranks wrote.

    Returns:
        The shared tensors and the record.

    Raises:
        ValueError: If there is none, a file is damaged, it is of other tables, or it lacks a part.
    """
    folder = Path(folder)
    previous = folder.with_name(f".{folder.name}.old")
    if not folder.exists() and previous.exists():
        folder = previous
    manifest = verify_folder(folder)
    found, asked = manifest.get("tables"), _described(tables)
    if manifest.get("format") != FORMAT or found != asked:
        raise ValueError(
            f"{folder} is a checkpoint of format {manifest.get('format')} with tables {found}; "
            f"this run has format {FORMAT} and {asked}. Were the features or their vocabularies "
            "changed?"
        )
    parts = _places(folder)
    with torch.no_grad():
        for number, shard in _numbered(tables):
            _fill_(shard, parts.get(number, []), folder, number)
    return load(read_verified(folder, DENSE)), manifest["record"]


def checkpoint_exists(folder: Path) -> bool:
    """Whether there is one to go on from."""
    folder = Path(folder)
    return folder.exists() or folder.with_name(f".{folder.name}.old").exists()


def same_checkpoint(left: Path, right: Path) -> bool:
    """Whether two checkpoints hold the same bytes in the same files."""
    names = sorted(path.name for path in Path(left).glob("*.safetensors"))
    if names != sorted(path.name for path in Path(right).glob("*.safetensors")):
        return False
    return all(file_sha256(Path(left) / name) == file_sha256(Path(right) / name) for name in names)


def _places(folder: Path) -> dict[int, list[tuple[int, int, int, int, str, str]]]:
    """By table: row, column, rows, columns, file and name of every shard in a checkpoint."""
    parts: dict[int, list[tuple[int, int, int, int, str, str]]] = {}
    for path in sorted(folder.glob("rank-*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                name, kind = key.rsplit(".", 1)
                if kind == "weight":
                    table, row, column = (int(part) for part in name.split("-")[1:])
                    rows, columns = file.get_slice(key).get_shape()
                    place = (row, column, rows, columns, path.name, name)
                    parts.setdefault(table, []).append(place)
    return parts


def _fill_(
    shard: Shard, parts: list[tuple[int, int, int, int, str, str]], folder: Path, number: int
) -> None:
    """Copy the overlap of every written shard with this one."""
    rows, columns = shard.weight_SD.shape
    covered = 0
    shard.momentum_S.zero_()
    for row, column, written_rows, written_columns, file_name, name in parts:
        top, bottom = max(row, shard.row), min(row + written_rows, shard.row + rows)
        left = max(column, shard.column)
        right = min(column + written_columns, shard.column + columns)
        if top >= bottom or left >= right:
            continue
        with safe_open(folder / file_name, "pt") as file:
            weight = file.get_slice(f"{name}.weight")[
                top - row : bottom - row, left - column : right - column
            ]
            momentum = file.get_slice(f"{name}.momentum")[top - row : bottom - row]
        own_rows = slice(top - shard.row, bottom - shard.row)
        shard.weight_SD[own_rows, left - shard.column : right - shard.column] = weight.to(
            shard.weight_SD.device
        )
        share = (right - left) / columns
        shard.momentum_S[own_rows] += share * momentum.to(shard.momentum_S.device)
        covered += (bottom - top) * (right - left)
    if covered != rows * columns:
        raise ValueError(
            f"{folder} holds {covered} of the {rows * columns} numbers of table {number} that "
            "this rank needs; was a rank's file left behind?"
        )


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
