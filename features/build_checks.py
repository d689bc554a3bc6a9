"""What ``check_dataset`` refuses in a log, looked for while a log of any size is read in parts.

Parts of files show what is wrong with a row, partitions of users what is there twice, and samples
and sums over all of them what a feature knows of the click it describes.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from features.check import dangling_ids, odd_times
from features.columns import TABLE_COLUMNS, column_violations
from features.dataset import Dataset
from features.dense import finite_numbers
from features.feature_spec import SIDE_TABLE_KEYS
from features.leaks import leak_violations, near_perfect_features
from features.violation import Violation, first_where, refuse_errors


def refuse_wrong_columns(table: str, frame: pl.DataFrame) -> None:
    """Refuse missing columns, wrong types, and values outside the allowed set.

    Args:
        table: impressions or events.
        frame: As read, perhaps without columns that nobody needs.

    Raises:
        ValueError: Naming every such column.
    """
    known = TABLE_COLUMNS[table]
    names = {column.name for column in known if column.required or column.name in frame.columns}
    refuse_errors(column_violations(table, frame, names=names))


def refuse_wrong_rows(table: str, frame: pl.DataFrame, dataset: Dataset) -> None:
    """Refuse rows that are wrong by themselves: unknown ids, odd times, facts from the future.

    Args:
        table: impressions or events.
        frame: Rows of it in the contract's types.
        dataset: Gives the side tables and the features.

    Raises:
        ValueError: Naming column and row, or if a dense value is NaN or infinite.
    """
    if table == "impressions":
        for name in dataset.spec.features.dense:
            if "." not in name:
                finite_numbers(frame[name], name)
    tables = {table: frame, **_side_tables(dataset)}
    found = [*dangling_ids(tables), *odd_times(tables), *leak_violations(tables, dataset.spec)]
    refuse_errors(found)


def refuse_repeated_rows(frame: pl.DataFrame, *, request: str, row: str) -> None:
    """Refuse a product that a request shows twice in one position.

    Args:
        frame: Whole requests.
        request: Column that names the request, by id or by hash.
        row: Column with the rows' numbers in the log.

    Raises:
        ValueError: Naming the row.
    """
    key = (request, "product_id", "position")
    place, count = first_where(~frame.select(pl.struct(key).is_first_distinct()).to_series())
    if not count:
        return
    product, position = (frame[name][place] for name in key[1:])
    refuse_errors(
        [
            Violation(
                table="impressions",
                column="request_id",
                row=frame[row][place],
                count=count,
                problem="an earlier row has the same request_id, "
                f"product_id={product!r}, position={position!r}",
                advice="these together must be unique; was a file read twice?",
            )
        ]
    )


def refuse_telling_features(train: pl.DataFrame, held_out: pl.DataFrame, dataset: Dataset) -> None:
    """Refuse features that predict clicks almost perfectly.

    Args:
        train, held_out: Samples of training rows and of later ones, in the contract's types.
        dataset: Gives the side tables and the features.

    Raises:
        ValueError: Naming the features.
    """
    rows = pl.concat([train, held_out])
    tables = {"impressions": rows, **_side_tables(dataset)}
    is_train_N = np.arange(len(rows)) < len(train)
    refuse_errors(near_perfect_features(tables, dataset.spec, is_train_N))


def _side_tables(dataset: Dataset) -> dict[str, pl.DataFrame]:
    return {name: dataset.table(name) for name in SIDE_TABLE_KEYS if dataset.has(name)}
