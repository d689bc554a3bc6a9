"""Score a parquet file of any size in parts, so that memory stays bounded and nothing is redone.

Finished parts lie in a hidden folder beside the result; an interrupted job goes on after the last
of them. The result appears whole or not at all.

Shape letters: N rows of a part.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ranking.score import Scorer

PART_ROWS = 65_536
SCORE_COLUMN = "p_click"
KEY_COLUMNS = ("request_id", "product_id")
"""Repeated beside the score, where the table has them."""

_JOB_FILE = "job.json"


@dataclass(frozen=True, kw_only=True)
class BatchScores:
    """What a batch job wrote."""

    path: Path
    rows: int
    mean_p_click: float
    resumed_rows: int
    """Rows that an earlier, interrupted job had scored already."""


def score_parquet(
    scorer: Scorer,
    table: str | Path,
    out: str | Path,
    *,
    part_rows: int = PART_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> BatchScores:
    """Score every row of a parquet file, in its order.

    Args:
        scorer: The bundle.
        table: Impressions with the columns of ``FeaturePipeline.required_columns``; a column
            ``query`` is read too, if the bundle can encode texts.
        out: Parquet to write: request_id and product_id, where the table has them, and p_click.
            An existing file is replaced at the end.
        part_rows: Rows in memory at a time.
        progress: Called with (rows done, rows in all).

    Raises:
        ValueError: If the file is missing, is not parquet, has no rows, lacks a column, or holds
            what it may not; the message names the first row of the part it is in.
    """
    table, out = Path(table), Path(out)
    if part_rows < 1:
        raise ValueError(f"part_rows is {part_rows}; must be at least 1")
    if not table.is_file():
        raise ValueError(f"{table} does not exist; a parquet file of impressions is expected")
    try:
        rows = int(pl.scan_parquet(table).select(pl.len()).collect().item())
        names = pl.scan_parquet(table).collect_schema().names()
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{table} cannot be read as parquet: {error}") from error
    if rows == 0:
        raise ValueError(f"{table} has no rows")
    keys = [name for name in KEY_COLUMNS if name in names]
    wanted = {*scorer.pipeline.required_columns, *keys, "query"}
    source = pl.scan_parquet(table).select([name for name in names if name in wanted])
    parts = out.with_name(f".{out.name}.parts")
    resumed = _begin_(parts, _job_of(scorer, table, part_rows))
    for number, start in enumerate(range(0, rows, part_rows)):
        path = parts / f"{number:06d}.parquet"
        if not path.exists():
            frame = source.slice(start, part_rows).collect()
            try:
                p_click_N = scorer.score(frame)
            except ValueError as error:
                raise ValueError(f"{table}, rows from {start}: {error}") from error
            scored = frame.select(keys).with_columns(pl.Series(SCORE_COLUMN, p_click_N))
            _write_(path, scored.lazy())
        if progress is not None:
            progress(min(start + part_rows, rows), rows)
    joined = pl.scan_parquet(sorted(parts.glob("*.parquet")))
    _write_(out, joined)
    mean = float(pl.scan_parquet(out).select(pl.col(SCORE_COLUMN).mean()).collect().item())
    shutil.rmtree(parts)
    return BatchScores(
        path=out, rows=rows, mean_p_click=mean, resumed_rows=min(resumed * part_rows, rows)
    )


def _job_of(scorer: Scorer, table: Path, part_rows: int) -> dict[str, str | int]:
    """What makes parts of an earlier job parts of this one."""
    status = table.stat()
    return {
        "bundle": scorer.bundle.fingerprint,
        "table": str(table.resolve()),
        "size_bytes": status.st_size,
        "changed_ns": status.st_mtime_ns,
        "part_rows": part_rows,
    }


def _begin_(parts: Path, job: dict[str, str | int]) -> int:
    """Make the folder of parts, empty unless it is of this very job; return its finished parts."""
    record = parts / _JOB_FILE
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) == job:
        return len(list(parts.glob("*.parquet")))
    if record.is_file():
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    # Written first, so that no part is ever without the job it belongs to.
    record.write_text(json.dumps(job), encoding="utf-8")
    return 0


def _write_(path: Path, frame: pl.LazyFrame) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    frame.sink_parquet(unfinished)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)
