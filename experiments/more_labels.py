"""Relevance labels from beside a dataset: what a judge or a language model said of its pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from embeddings.relevance_split import split_relevance
from embeddings.soft_labels import CHANCE_COLUMNS
from experiments.label_files import refuse_other_files


def with_more_labels(
    train_pairs: pl.DataFrame, files: Sequence[Path], queries: pl.DataFrame
) -> pl.DataFrame:
    """Put the labels of files behind a dataset's own training pairs.

    Pairs of held-out queries are left out, and those that an annotator left without a label. A
    pair that is there twice has the mean of both, see ``Judgements``.

    Args:
        train_pairs: query_id, product_id, label, [source], [p0, p1, p2].
        files: Parquet as ``adtower label`` writes it: the same columns, source among them.
        queries: query_id, query.

    Returns:
        The same columns, p0, p1 and p2 null where only the label is known.

    Raises:
        ValueError: If a file is missing or lacks a column, or names an unknown query.
    """
    tables = [_in_common(train_pairs)]
    for file in files:
        refuse_other_files(file)
        found = _in_common(pl.read_parquet(file))
        tables.append(split_relevance(found.filter(pl.col("label").is_not_null()), queries)[0])
    return pl.concat(tables)


def _in_common(pairs: pl.DataFrame) -> pl.DataFrame:
    """The columns that training reads, in one order and of one type."""
    given = set(pairs.columns)
    return pairs.select(
        pl.col("query_id", "product_id").cast(pl.String),
        pl.col("label").cast(pl.Int8),
        pl.col("source").cast(pl.String) if "source" in given else pl.lit("human").alias("source"),
        *(
            (pl.col(name) if name in given else pl.lit(None).alias(name)).cast(pl.Float64)
            for name in CHANCE_COLUMNS
        ),
    )
