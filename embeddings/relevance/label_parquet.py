"""Labelling a parquet file of pairs with a judge: part by part, resumable, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from embeddings.relevance.judge import Judge

PART_ROWS = 20_000
"""Pairs labelled at a time: what an interruption costs at most."""
RECORD = "parts.json"

Report = Callable[[int, int], None]
"""Called with pairs done and pairs in all."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What became of a file of pairs."""

    path: Path
    """The relevance table: query_id, product_id, label, source, p0, p1, p2, [rating]."""
    rows: int
    not_labelled: Path | None
    """query_id, product_id and why, of pairs without a label; None if every pair has one."""
    not_labelled_rows: int


def label_parquet(
    judge: Judge,
    products: pl.DataFrame,
    queries: pl.DataFrame,
    pairs: str | Path,
    out: str | Path,
    *,
    part_rows: int = PART_ROWS,
    progress: Report | None = None,
) -> Labelled:
    """Label the pairs of a parquet file into a relevance table.

    Pairs whose product has no text or whose query is blank go to ``OUT`` with the suffix
    ``.not_labelled.parquet`` instead. An interrupted call, repeated, labels only what is left.

    Args:
        judge: Labels.
        products: product_id and text columns.
        queries: query_id, query.
        pairs: File with query_id, product_id; read part by part.
        out: File to write; a file there is replaced.
        part_rows: Pairs at a time.
        progress: Called after every part.

    Raises:
        ValueError: If the file is no parquet, lacks a column or has no row, or a pair names an
            unknown query or product; nothing is labelled then.
    """
    pairs, out = Path(pairs), Path(out)
    total = _checked_rows(pairs, products, queries)
    parts = out.with_name(f".{out.name}-parts")
    _open_parts_(parts, judge, products, queries, pairs, part_rows)
    table = pl.scan_parquet(pairs).select("query_id", "product_id")
    for start in range(0, total, part_rows):
        path = parts / f"{start:012d}.parquet"
        if not path.is_file():
            part = table.slice(start, part_rows).collect()
            write_table_(judge.label(products, queries, part), path)
        if progress is not None:
            progress(min(start + part_rows, total), total)
    every = pl.scan_parquet(sorted(parts.glob("*.parquet")))
    rows = _sink_(every.filter(pl.col("label").is_not_null()), out)
    missing = out.with_suffix(".not_labelled.parquet")
    why = pl.lit("the query is blank or the product has no text").alias("why")
    without = every.filter(pl.col("label").is_null()).select("query_id", "product_id", why)
    if rows < total:
        _sink_(without, missing)
    else:
        missing.unlink(missing_ok=True)
    shutil.rmtree(parts)
    return Labelled(
        path=out,
        rows=rows,
        not_labelled=missing if rows < total else None,
        not_labelled_rows=total - rows,
    )


def write_table_(frame: pl.DataFrame, path: Path) -> None:
    """Write a parquet file, whole or not at all; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    frame.write_parquet(unfinished, compression="zstd")
    _publish_(unfinished, path)


def _checked_rows(pairs: Path, products: pl.DataFrame, queries: pl.DataFrame) -> int:
    """Rows of the file, once all of its ids are known to be good."""
    try:
        columns = pl.read_parquet_schema(pairs)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{pairs} cannot be read as parquet: {error}") from error
    for name, known, table in (
        ("query_id", queries, "queries"),
        ("product_id", products, "products"),
    ):
        if name not in columns:
            raise ValueError(f"{pairs} has no column {name}; it has {', '.join(columns)}")
        ids = pl.scan_parquet(pairs).select(pl.col(name).unique())
        unknown = ids.join(known.lazy().select(name), on=name, how="anti").sort(name).collect()
        if len(unknown):
            raise ValueError(
                f"{pairs} names {name} {unknown[name][0]!r}, which the {table} table does not have "
                f"({len(unknown)} such ids in all); are the pairs of another dataset?"
            )
    total = int(pl.scan_parquet(pairs).select(pl.len()).collect().item())
    if not total:
        raise ValueError(f"{pairs} has no row; there is nothing to label")
    return total


def _open_parts_(
    parts: Path,
    judge: Judge,
    products: pl.DataFrame,
    queries: pl.DataFrame,
    pairs: Path,
    part_rows: int,
) -> None:
    """Make the folder of parts, or empty it if it was begun for something else."""
    digest = hashlib.sha256()
    with pairs.open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    for table in (products, queries):
        digest.update(table.hash_rows(seed=0).to_numpy().tobytes())
    wanted = {"judge": judge.fingerprint, "data": digest.hexdigest(), "part_rows": part_rows}
    record = parts / RECORD
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) == wanted:
        return
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    record.write_text(json.dumps(wanted), encoding="utf-8")


def _sink_(frame: pl.LazyFrame, path: Path) -> int:
    """Write a table without holding it, whole or not at all; returns its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    frame.sink_parquet(unfinished, compression="zstd", maintain_order=True)
    _publish_(unfinished, path)
    return int(pl.scan_parquet(path).select(pl.len()).collect().item())


def _publish_(unfinished: Path, path: Path) -> None:
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)
