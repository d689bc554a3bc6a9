"""Rows of parquet files by their number, read without the rest.

Shape letters: N rows that are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 4096
"""Rows decoded at a time."""


@dataclass(frozen=True)
class ParquetRows:
    """The rows of some files one after the other, numbered from 0."""

    files: tuple[str, ...]

    @classmethod
    def at(cls, source: str | Path) -> ParquetRows:
        """The rows of a file, or of all parquet files in a folder in the order of their names.

        Raises:
            ValueError: If there is no such file.
        """
        path = Path(source)
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise ValueError(
                f"{source} is neither a parquet file nor a folder of parquet files; is the path "
                "right?"
            )
        return cls(tuple(map(str, files)))

    @cached_property
    def row_groups(self) -> tuple[tuple[int, ...], ...]:
        """Rows of each row group of each file."""
        return tuple(
            tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            for metadata in (_opened(file).metadata for file in self.files)
        )

    @cached_property
    def count(self) -> int:
        """Rows of all files."""
        return sum(map(sum, self.row_groups))

    def require(self, columns: Sequence[str]) -> None:
        """Refuse files that lack a column.

        Raises:
            ValueError: Naming the file, the column and what there is.
        """
        for file in self.files:
            there = self.columns(file)
            missing = [name for name in columns if name not in there]
            if missing:
                raise ValueError(f"{file} has no column {missing[0]!r}; it has {there}")

    def columns(self, file: str | None = None) -> list[str]:
        """Columns of a file, the first if none is named."""
        return _opened(file or self.files[0]).schema_arrow.names

    def read(self, start: int, stop: int, columns: Sequence[str]) -> pl.DataFrame:
        """The rows ``start`` to ``stop - 1``, in memory for these rows and a row group's page."""
        frames = [
            frame for file, first in zip(self.files, self._first_rows, strict=True)
            for frame in self._of_file(file, start - first, stop - first, columns)
        ]  # fmt: skip
        return pl.concat(frames, how="vertical_relaxed")

    def batches(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """All rows, a few at a time."""
        for file in self.files:
            for batch in _opened(file).iter_batches(BATCH_ROWS, columns=list(columns)):
                yield _frame(batch)

    @cached_property
    def _first_rows(self) -> list[int]:
        firsts = [0]
        for groups in self.row_groups:
            firsts.append(firsts[-1] + sum(groups))
        return firsts[:-1]

    def _of_file(
        self, file: str, start: int, stop: int, columns: Sequence[str]
    ) -> Iterator[pl.DataFrame]:
        groups = self.row_groups[self.files.index(file)]
        start, stop = max(start, 0), min(stop, sum(groups))
        if start >= stop:
            return
        wanted, at, begins = [], 0, 0
        for group, rows in enumerate(groups):
            if at < stop and at + rows > start:
                begins = begins if wanted else at
                wanted.append(group)
            at += rows
        reader = _opened(file)
        for batch in reader.iter_batches(BATCH_ROWS, row_groups=wanted, columns=list(columns)):
            low, high = max(start - begins, 0), min(stop - begins, batch.num_rows)
            if low < high:
                yield _frame(batch.slice(low, high - low))
            begins += batch.num_rows
            if begins >= stop:
                return


def digest_of_rows(rows: pl.DataFrame, image_root: Path | None = None) -> str:
    """SHA-256 of all values, images that are named by a path counting by size and time."""
    digest = hashlib.sha256(json.dumps(rows.columns).encode())
    for column in rows.get_columns():
        if column.dtype == pl.Binary:
            for value in column:
                digest.update(hashlib.sha256(value or b"").digest())
            continue
        digest.update(json.dumps(column.cast(pl.String).to_list()).encode())
        if column.name == "image":
            for value in column:
                path = (image_root or Path()) / (value or "")
                stat = path.stat() if path.is_file() else None
                digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode() if stat else b"-")
    return digest.hexdigest()


def _opened(file: str) -> pq.ParquetFile:
    try:
        # Without pre_buffer a row group is decoded page by page, whatever its size.
        return pq.ParquetFile(file.removeprefix("file://"), pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} cannot be read as parquet: {error}") from error


def _frame(batch: pa.RecordBatch) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame
