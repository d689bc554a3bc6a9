"""Open, split and write datasets: a folder of parquet tables with a ``dataset.toml``.

Tables are read when first asked for, checked for what would make training impossible or wrong,
and handed out in the contract's types (``features.columns``). ``features.check`` looks further.

Shape letters: N rows of the impressions table.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from features.columns import TABLE_COLUMNS, as_frame, canonical, column_violations
from features.schema import (
    SPEC_FILE,
    TABLE_NAMES,
    DatasetSpec,
    TableFiles,
    parse_spec,
    write_spec,
)
from features.split import Split, split_by_time
from features.violation import refuse_errors

TABLE_NEEDS = {
    "products": "product_id, title and what else is known of each product",
    "queries": "query_id, query",
    "relevance": "query_id, product_id, label (0, 1, 2), source",
    "impressions": "request_id, time, user_id, query_id, product_id, position, clicked",
    "events": "user_id, product_id, time, kind",
}


class Dataset:
    """Tables of one catalogue and its log, with the spec that says what they mean.

    Use ``Dataset.open`` for a folder and ``Dataset.from_tables`` for tables in memory.
    """

    def __init__(
        self, spec: DatasetSpec, *, folder: str | None, frames: dict[str, pl.DataFrame]
    ) -> None:
        self.spec = spec
        self.folder = folder
        """Where the dataset lies (path or URI); None for tables in memory."""
        self._raw: dict[str, pl.DataFrame] = dict(frames)
        self._tables: dict[str, pl.DataFrame] = {}
        self._fingerprint: str | None = None

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a dataset folder, local or any fsspec URI. No table is read yet.

        Raises:
            ValueError: If the folder or its ``dataset.toml`` is absent or wrong, or a table that
                it names does not exist.
        """
        where = str(folder).rstrip("/")
        spec_uri = f"{where}/{SPEC_FILE}"
        filesystem, path = url_to_fs(spec_uri)
        if not filesystem.isfile(path):
            raise ValueError(
                f"{spec_uri} does not exist; a dataset is a folder with parquet tables and a "
                f"{SPEC_FILE} that names them"
            )
        spec = parse_spec(filesystem.read_text(path, encoding="utf-8"), spec_uri)
        dataset = cls(spec, folder=where, frames={})
        for name in TABLE_NAMES:
            if dataset.has(name):
                dataset.files(name)
        return dataset

    @classmethod
    def from_tables(cls, spec: DatasetSpec, **tables: Any) -> Self:
        """Make a dataset of polars, pandas or Arrow tables in memory.

        Raises:
            ValueError: If a table's name is unknown or it is not a table.
        """
        _refuse_unknown_tables(tables)
        return cls(
            spec, folder=None, frames={name: as_frame(table) for name, table in tables.items()}
        )

    def has(self, table: str) -> bool:
        """Say whether the dataset has this table."""
        _refuse_unknown_tables([table])
        if self.folder is None:
            return table in self._raw
        return getattr(self.spec.tables, table) is not None

    def require(self, *tables: str, needed_for: str) -> None:
        """Refuse to go on without some tables.

        Raises:
            ValueError: Naming the missing tables and what needs them.
        """
        missing = [table for table in tables if not self.has(table)]
        if missing:
            listed = "; ".join(f"{table} ({TABLE_NEEDS[table]})" for table in missing)
            raise ValueError(
                f"{needed_for} needs {_enumerate(missing)}, which dataset {self.spec.name!r} does "
                f"not have: {listed}. Add the file and name it under [tables] in {SPEC_FILE}"
            )

    def table(self, name: str) -> pl.DataFrame:
        """Return a table in the contract's types, read and checked once.

        Raises:
            ValueError: If the table is absent or empty, lacks a column, or has a wrong type, a
                value outside the allowed set or (products, queries) an id twice. All such
                problems of the table are named together.
        """
        if name not in self._tables:
            raw = self.raw_table(name)
            if raw.is_empty():
                raise ValueError(f"table {name} of dataset {self.spec.name!r} has no rows")
            refuse_errors(column_violations(name, raw))
            self._tables[name] = canonical(name, raw)
        return self._tables[name]

    def raw_table(self, name: str) -> pl.DataFrame:
        """Return a table as it was given, unchecked; ``features.check`` starts here.

        Raises:
            ValueError: If the dataset does not have the table, or it is not parquet.
        """
        self.require(name, needed_for="this step")
        if name not in self._raw:
            self._raw[name] = _read_parquet(self.files(name))
        return self._raw[name]

    def column_names(self, name: str) -> list[str]:
        """Return a table's columns without reading its rows.

        Raises:
            ValueError: If the dataset does not have the table, or it is not parquet.
        """
        self.require(name, needed_for="this step")
        if name in self._raw:
            return self._raw[name].columns
        return _read_columns(self.files(name)[0])

    def rows(self, name: str) -> int:
        """Return how many rows a table has, without reading them.

        Raises:
            ValueError: If the dataset does not have the table, or it is not parquet.
        """
        self.require(name, needed_for="this step")
        if name in self._raw:
            return len(self._raw[name])
        rows = 0
        for uri in self.files(name):
            with _opened_parquet(uri) as file:
                rows += file.metadata.num_rows
        return rows

    def parts_of(self, name: str) -> Iterator[pl.DataFrame]:
        """Yield a table that was checked before, in the contract's types, a row group at a time.

        Raises:
            ValueError: If the dataset does not have the table, or it is not parquet.
        """
        self.require(name, needed_for="this step")
        if name in self._raw:
            yield canonical(name, self._raw[name])
            return
        for uri in self.files(name):
            with _opened_parquet(uri) as file:
                for group in range(file.num_row_groups):
                    yield canonical(name, pl.DataFrame(file.read_row_group(group)))

    def without_log(self) -> Dataset:
        """Return the dataset without impressions and events."""
        gone = ("impressions", "events")
        tables = self.spec.tables.model_copy(update=dict.fromkeys(gone))
        frames = {name: frame for name, frame in self._raw.items() if name not in gone}
        return Dataset(
            self.spec.model_copy(update={"tables": tables}), folder=self.folder, frames=frames
        )

    def files(self, name: str) -> list[str]:
        """Return the parquet files of a table, in order; none for a table in memory.

        Raises:
            ValueError: If a file that the spec names does not exist.
        """
        named = getattr(self.spec.tables, name)
        if self.folder is None or named is None:
            return []
        uri = self.locate(named)
        filesystem, path = url_to_fs(uri)
        if filesystem.isfile(path):
            return [uri]
        parts = filesystem.glob(f"{path}/**/*.parquet") if filesystem.isdir(path) else []
        if not parts:
            raise ValueError(
                f"table {name} is missing: {SPEC_FILE} names {named!r} but there is no such file "
                f"or folder of parquet files at {uri}"
            )
        return [filesystem.unstrip_protocol(str(part)) for part in sorted(map(str, parts))]

    def locate(self, path: str) -> str:
        """Return a path or URI of the dataset (a table, an image) from where we stand."""
        absolute = "://" in path or Path(path).is_absolute() or self.folder is None
        return path if absolute else f"{self.folder}/{path}"

    def split(self) -> Split:
        """Cut the impressions by time into training, validation and test.

        Raises:
            ValueError: If a part would be empty or would hold only clicks or only non-clicks.
        """
        return split_by_time(self.table("impressions"), self.spec.split)

    def fingerprint(self) -> str:
        """Return the SHA-256 of all table files (or of the tables in memory), as hex digits."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for name in TABLE_NAMES:
                if not self.has(name):
                    continue
                digest.update(name.encode())
                if self.folder is None:
                    digest.update(self._raw[name].write_ipc(None).getvalue())
                for uri in self.files(name):
                    with fsspec.open(uri, "rb") as file:
                        digest.update(hashlib.file_digest(file, "sha256").digest())  # type: ignore[arg-type]
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def write_dataset(
    folder: str | Path, spec: DatasetSpec, *, overwrite: bool = False, **tables: Any
) -> Path:
    """Write a new dataset folder: everything, or nothing if it is interrupted.

    Args:
        folder: Where; must not exist, unless ``overwrite``, which replaces it whole.
        spec: What the dataset says of itself; its ``tables`` are set to the files written.
        overwrite: Replace the dataset that is there.
        **tables: Polars, pandas or Arrow tables by name (``products=...``).

    Raises:
        ValueError: If the folder exists (with ``overwrite``: and is no dataset), no table is
            given, or a name is unknown.
    """
    _refuse_unknown_tables(tables)
    folder = Path(folder)
    if not tables:
        raise ValueError("write_dataset was given no table")
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} exists already; choose another folder or pass overwrite")
    if folder.exists() and not (folder / SPEC_FILE).is_file() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files and no {SPEC_FILE}; it is not overwritten")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        named = TableFiles(**{name: f"{name}.parquet" for name in tables})
        for name, table in tables.items():
            as_frame(table).write_parquet(draft / f"{name}.parquet", compression="zstd")
        write_spec(spec.model_copy(update={"tables": named}), draft / SPEC_FILE)
        draft.chmod(0o755)
        _put_in_place(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def write_into_dataset(folder: str | Path, spec: DatasetSpec, **tables: Any) -> Path:
    """Add tables to a dataset folder, or replace some of its tables; the others stay.

    Each file appears whole, and ``dataset.toml`` last, so a reader never meets half a table.

    Args:
        folder: An existing dataset folder.
        spec: The new ``dataset.toml``; its ``tables`` are the old ones and those written.
        **tables: Polars, pandas or Arrow tables by name.

    Raises:
        ValueError: If the folder is no dataset, or a name is unknown.
    """
    _refuse_unknown_tables(tables)
    folder = Path(folder)
    old = Dataset.open(folder).spec.tables
    named = old.model_copy(update={name: f"{name}.parquet" for name in tables})
    draft = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
    try:
        for name, table in tables.items():
            as_frame(table).write_parquet(draft / f"{name}.parquet", compression="zstd")
        write_spec(spec.model_copy(update={"tables": named}), draft / SPEC_FILE)
        for file in (*(f"{name}.parquet" for name in tables), SPEC_FILE):
            (draft / file).replace(folder / file)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _put_in_place(draft: Path, folder: Path) -> None:
    """Give a finished draft its name; what bore the name before goes only once that worked."""
    if not folder.exists():
        draft.rename(folder)
        return
    old = draft.with_name(f"{draft.name}-old")
    folder.rename(old)
    try:
        draft.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _read_parquet(uris: list[str]) -> pl.DataFrame:
    frames = []
    for uri in uris:
        try:
            with fsspec.open(uri, "rb") as file:
                frames.append(pl.read_parquet(file))  # type: ignore[arg-type]
        except (pl.exceptions.PolarsError, OSError) as error:
            raise ValueError(f"{uri} cannot be read as parquet: {error}") from error
    try:
        return frames[0] if len(frames) == 1 else pl.concat(frames, how="vertical")
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"the parts of {uris[0]} do not fit together: {error}") from error


def _read_columns(uri: str) -> list[str]:
    try:
        with fsspec.open(uri, "rb") as file:
            return list(pl.read_parquet_schema(file))  # type: ignore[arg-type]
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(f"{uri} cannot be read as parquet: {error}") from error


@contextmanager
def _opened_parquet(uri: str) -> Iterator[pq.ParquetFile]:
    try:
        with fsspec.open(uri, "rb") as file:
            yield pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{uri} cannot be read as parquet: {error}") from error


def _refuse_unknown_tables(tables: Any) -> None:
    unknown = sorted(set(tables) - set(TABLE_COLUMNS))
    if unknown:
        raise ValueError(f"unknown table {_enumerate(unknown)}; there are {', '.join(TABLE_NAMES)}")


def _enumerate(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
