"""Files of relevance labels from beside a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from features.file_sum import file_sha256

NEEDED = ("query_id", "product_id", "label", "source")


def labels_digests(files: Sequence[Path]) -> list[str]:
    """SHA-256 of each file, which makes a run with it another run than one without.

    Raises:
        ValueError: If one is not there, or no table of labels.
    """
    for file in files:
        refuse_other_files(file)
    return [file_sha256(file) for file in files]


def refuse_other_files(file: Path) -> None:
    """Refuse a file that is not there, or holds no labels.

    Raises:
        ValueError: Naming it.
    """
    if not file.is_file():
        raise ValueError(
            f"labels={str(file)!r}: there is no such file; `adtower label judge` and `label llm` "
            "write relevance.parquet"
        )
    try:
        columns = pl.read_parquet_schema(file)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"labels={str(file)!r} is not parquet: {error}") from None
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise ValueError(
            f"labels={str(file)!r} lacks the columns {', '.join(missing)}; it has "
            f"{', '.join(columns)}"
        )
