"""Impressions to arrays: fitted on training rows, saved as data, the same code at scoring.

Shape letters: N impressions, P products and Q queries of the catalogue, F sparse features,
C dense columns.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.columns import TABLE_COLUMNS, as_frame, canonical, column_violations
from features.dense import DenseTransform
from features.examples import Examples
from features.feature_spec import SIDE_TABLE_KEYS, FeatureSpec
from features.history import PurchaseHistory, purchases_of
from features.sparse import ValueIndex, Vocabulary
from features.violation import refuse_errors

if TYPE_CHECKING:
    # Only fitting reads a dataset, with pydantic and storage libraries; scoring does without.
    from features.dataset import Dataset
    from features.schema import DatasetSpec

FORMAT = 1
TRANSFORMS_FILE = "transforms.json"
ALWAYS_REQUIRED = ("product_id", "query_id", "user_id", "time")


class FeaturePipeline:
    """Turns impressions into ``Examples``.

    Vocabularies and dense transforms are learned from training rows alone. The catalogue (which
    product or query is which row) is the side table where there is one, else the ids of the
    training rows. Columns of side tables are transformed once a catalogue row and looked up.

    Args:
        spec: Says which columns are features, and the history's window.
        min_count: See ``Vocabulary``.
    """

    def __init__(self, spec: DatasetSpec | FeatureSpec, *, min_count: int = 2) -> None:
        if min_count < 1:
            raise ValueError(f"min_count is {min_count}; it must be 1 (keep all) or more")
        self.spec = FeatureSpec(features=spec.features, history=spec.history)
        self.min_count = min_count

    def fit(self, dataset: Dataset, train: pl.DataFrame) -> Self:
        """Learn vocabularies, scales, the catalogue and the purchase histories.

        Args:
            dataset: Gives the side tables and the events. Without events, purchases come from
                its impressions marked purchased, each used only strictly after its time.
            train: Training impressions, as ``Dataset.split`` returns them.

        Raises:
            ValueError: If there are no rows, a feature's column is missing or has a wrong type,
                or a dense value is NaN or infinite.
        """
        train = self._checked(as_frame(train))
        if train.is_empty():
            raise ValueError("the training impressions have no rows")
        self._side_tables = {
            table: _side_table(dataset, table, self.spec.features.of_table(table))
            for table in SIDE_TABLE_KEYS
        }
        self._index = {table: self._catalogue(table, train) for table in SIDE_TABLE_KEYS}
        events = dataset.table("events") if dataset.has("events") else None
        log = dataset.table("impressions") if dataset.has("impressions") else None
        self._purchases = purchases_of(events, log)
        rows = self._catalogue_rows(train)
        self._vocabularies = {
            name: Vocabulary(min_count=self.min_count).fit(self._column(name, train, rows))
            for name in self.spec.features.sparse
        }
        self._dense = {
            name: DenseTransform(name).fit(self._column(name, train, rows))
            for name in self.spec.features.dense
        }
        self._prepare()
        return self

    @property
    def product_ids_(self) -> list[str]:
        """The catalogue's products, in the row order that ``Examples.product_N`` counts in."""
        return self._index["products"].values

    @property
    def query_ids_(self) -> list[str]:
        """The catalogue's queries, in the row order that ``Examples.query_N`` counts in."""
        return self._index["queries"].values

    @property
    def sparse_names(self) -> tuple[str, ...]:
        """Sparse features, in column order."""
        return self.spec.features.sparse

    @property
    def vocabulary_sizes(self) -> tuple[int, ...]:
        """Rows of each sparse feature's table, out-of-vocabulary included."""
        return tuple(self._vocabularies[name].size for name in self.sparse_names)

    @property
    def dense_names(self) -> tuple[str, ...]:
        """Dense columns, the masks of missing values (``NAME.missing``) included."""
        return tuple(name for dense in self._dense.values() for name in dense.output_names)

    @property
    def required_columns(self) -> tuple[str, ...]:
        """The columns that a table of impressions must have to be transformed."""
        return tuple(dict.fromkeys((*ALWAYS_REQUIRED, *self.spec.features.of_impressions())))

    def transform(self, impressions: pl.DataFrame) -> Examples:
        """Turn impressions, one row or many, into arrays.

        ``clicked`` and ``purchased`` may be absent (scoring); ``request_id`` too, and every row is
        then a request of its own. Unknown users, queries, products and values are no error.

        Args:
            impressions: A polars, pandas or Arrow table with ``required_columns``.

        Raises:
            ValueError: If a column is missing or has a wrong type, or a dense value is NaN or
                infinite; the message names column and row.
        """
        frame = self._checked(as_frame(impressions))
        rows = self._catalogue_rows(frame)
        time_us_N = frame["time"].cast(pl.Int64).to_numpy()
        sparse = [self._sparse_column(name, frame, rows) for name in self.sparse_names]
        dense = [self._dense_columns(name, frame, rows) for name in self.spec.features.dense]
        return Examples(
            sparse_names=self.sparse_names,
            sparse_NF=_stack(sparse, len(frame), np.int32),
            vocabulary_sizes=self.vocabulary_sizes,
            dense_names=self.dense_names,
            dense_NC=_concatenate(dense, len(frame)),
            product_N=rows["products"],
            query_N=rows["queries"],
            history_NL=self._history.transform(frame["user_id"], time_us_N),
            user_N=_codes(frame, "user_id"),
            request_N=_codes(frame, "request_id"),
            time_us_N=time_us_N,
            label_N=_flag(frame, "clicked"),
            purchased_N=_flag(frame, "purchased"),
            position_N=_position(frame),
        )

    def save_(self, folder: str | Path) -> None:
        """Write the fitted pipeline as data: ``transforms.json`` and the tables it looks up.

        The side tables carry the id and the feature columns alone, the events the purchases alone.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        transforms = {
            "format": FORMAT,
            "spec": self.spec.to_json(),
            "min_count": self.min_count,
            "sparse": {name: v.to_dict() for name, v in self._vocabularies.items()},
            "dense": {name: dense.to_dict() for name, dense in self._dense.items()},
        }
        text = json.dumps(transforms, ensure_ascii=False, indent=1)
        (folder / TRANSFORMS_FILE).write_text(text, encoding="utf-8")
        for table, ids in (("products", self.product_ids_), ("queries", self.query_ids_)):
            columns = self._side_tables[table]
            keys = pl.Series(SIDE_TABLE_KEYS[table], ids, dtype=pl.String)
            frame = pl.DataFrame([keys]) if columns is None else columns
            frame.write_parquet(folder / f"{table}.parquet")
        self._purchases.write_parquet(folder / "events.parquet")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Return the pipeline that ``save_`` wrote.

        Raises:
            ValueError: If a file is missing or was written in another format, or the specification
                is not one of features.
        """
        folder = Path(folder)
        names = (TRANSFORMS_FILE, "products.parquet", "queries.parquet", "events.parquet")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder} is no saved feature pipeline: {', '.join(missing)} missing")
        data = json.loads((folder / TRANSFORMS_FILE).read_text(encoding="utf-8"))
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise ValueError(
                f"{folder / TRANSFORMS_FILE} has format {found!r}, this version reads "
                f"{FORMAT}; export again"
            )
        try:
            spec = FeatureSpec.from_json(data.get("spec"))
        except ValueError as error:
            raise ValueError(f"{folder / TRANSFORMS_FILE}: {error}") from error
        pipeline = cls(spec, min_count=data["min_count"])
        pipeline._side_tables = {
            table: pl.read_parquet(folder / f"{table}.parquet") for table in SIDE_TABLE_KEYS
        }
        pipeline._index = {
            table: ValueIndex(pipeline._side_tables[table][key].to_list())
            for table, key in SIDE_TABLE_KEYS.items()
        }
        pipeline._purchases = pl.read_parquet(folder / "events.parquet")
        pipeline._vocabularies = {
            name: Vocabulary.from_dict(data["sparse"][name]) for name in pipeline.sparse_names
        }
        pipeline._dense = {
            name: DenseTransform.from_dict(data["dense"][name])
            for name in pipeline.spec.features.dense
        }
        pipeline._prepare()
        return pipeline

    def _prepare(self) -> None:
        """Derive what is fast to look up from what was learned or loaded."""
        self._history = PurchaseHistory(self.spec.history).fit(
            self._purchases, self._index["products"]
        )
        self._codes: dict[str, NDArray[Any]] = {}
        for name in (*self.sparse_names, *self.spec.features.dense):
            table, _, column = name.partition(".")
            if table not in SIDE_TABLE_KEYS or not column:
                continue
            # One row more than the catalogue: row -1 answers for what the catalogue lacks. Rows
            # that training never showed are looked at too, so a NaN among them is found now.
            values = _with_unknown(self._side_column(table, column)).alias(name)
            known = self._vocabularies if name in self._vocabularies else self._dense
            self._codes[name] = known[name].transform(values)

    def _checked(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Impressions in the contract's types, with every column that is needed."""
        missing = [name for name in self.required_columns if name not in frame.columns]
        if missing:
            raise ValueError(
                f"impressions lack the column {', '.join(missing)}; the features of this pipeline "
                f"need {', '.join(self.required_columns)}, and the table has "
                f"{', '.join(frame.columns) or 'no columns'}"
            )
        known = {column.name for column in TABLE_COLUMNS["impressions"]}
        refuse_errors(column_violations("impressions", frame, names=known & set(frame.columns)))
        return canonical("impressions", frame)

    def _catalogue(self, table: str, train: pl.DataFrame) -> ValueIndex:
        columns = self._side_tables[table]
        key = SIDE_TABLE_KEYS[table]
        ids = train[key].drop_nulls().unique().sort() if columns is None else columns[key]
        return ValueIndex(ids.to_list())

    def _catalogue_rows(self, frame: pl.DataFrame) -> dict[str, NDArray[np.int32]]:
        return {
            table: self._index[table].rows_of(frame[key]) for table, key in SIDE_TABLE_KEYS.items()
        }

    def _side_column(self, table: str, column: str) -> pl.Series:
        columns = self._side_tables[table]
        assert columns is not None, table
        return columns[column]

    def _column(
        self, name: str, frame: pl.DataFrame, rows: dict[str, NDArray[np.int32]]
    ) -> pl.Series:
        """The raw values of a feature, one an impression; null where the catalogue lacks the id."""
        table, dot, column = name.partition(".")
        if not dot:
            return frame[name]
        if table == "time":
            part = frame["time"].dt.hour() if column == "hour" else frame["time"].dt.weekday()
            return part.alias(name)
        values = _with_unknown(self._side_column(table, column))
        row_N = rows[table]
        return values.gather(np.where(row_N < 0, len(values) - 1, row_N)).alias(name)

    def _sparse_column(
        self, name: str, frame: pl.DataFrame, rows: dict[str, NDArray[np.int32]]
    ) -> NDArray[np.int32]:
        if name in self._codes:
            return self._codes[name][rows[name.partition(".")[0]]]
        return self._vocabularies[name].transform(self._column(name, frame, rows))

    def _dense_columns(
        self, name: str, frame: pl.DataFrame, rows: dict[str, NDArray[np.int32]]
    ) -> NDArray[np.float32]:
        if name in self._codes:
            return self._codes[name][rows[name.partition(".")[0]]]
        return self._dense[name].transform(self._column(name, frame, rows))


def _side_table(dataset: Dataset, table: str, columns: tuple[str, ...]) -> pl.DataFrame | None:
    """The id and feature columns of a side table; None where the dataset lacks the table."""
    if not dataset.has(table):
        if columns:
            dataset.require(table, needed_for=f"feature {table}.{columns[0]}")
        return None
    frame = dataset.table(table)
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(
            f"feature {table}.{missing[0]}: table {table} has no column {missing[0]!r}; it has "
            f"{', '.join(frame.columns)}"
        )
    return frame.select(list(dict.fromkeys((SIDE_TABLE_KEYS[table], *columns))))


def _with_unknown(values: pl.Series) -> pl.Series:
    return values.extend_constant(None, 1)


def _codes(frame: pl.DataFrame, column: str) -> NDArray[np.int64]:
    """0.. in order of appearance; a null, or every row without the column, is one of its own."""
    if column not in frame.columns:
        return np.arange(len(frame), dtype=np.int64)
    values = frame[column]
    distinct = ValueIndex(values.drop_nulls().unique(maintain_order=True).to_list())
    code_N = distinct.rows_of(values).astype(np.int64)
    stranger_N = code_N < 0
    code_N[stranger_N] = len(distinct) + np.arange(stranger_N.sum())
    return code_N


def _flag(frame: pl.DataFrame, column: str) -> NDArray[np.float32] | None:
    if column not in frame.columns:
        return None
    return frame[column].fill_null(0).cast(pl.Float32).to_numpy()


def _position(frame: pl.DataFrame) -> NDArray[np.int32] | None:
    if "position" not in frame.columns:
        return None
    return frame["position"].fill_null(0).cast(pl.Int32).to_numpy()


def _stack(columns: list[NDArray[Any]], rows: int, dtype: type) -> NDArray[Any]:
    return np.stack(columns, axis=1) if columns else np.zeros((rows, 0), dtype)


def _concatenate(columns: list[NDArray[np.float32]], rows: int) -> NDArray[np.float32]:
    return np.concatenate(columns, axis=1) if columns else np.zeros((rows, 0), np.float32)
