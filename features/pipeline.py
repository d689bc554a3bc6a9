"""Impressions to arrays: fitted on training rows, saved as data, the same code at scoring.

Shape letters: N impressions, P products and Q queries of the catalogue, F sparse features,
C dense columns.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.bags import Bag
from features.catalogue import FILES as CATALOGUE_FILES
from features.catalogue import Catalogue
from features.columns import TABLE_COLUMNS, as_frame, canonical, column_violations
from features.cosine_columns import CosineColumns
from features.dense import DenseTransform
from features.embedding_join import Vectors
from features.examples import Examples
from features.feature_spec import OUTCOMES, SIDE_TABLE_KEYS, FeatureNames, FeatureSpec
from features.hashed import HashedValues
from features.history import PurchaseHistory, purchases_of
from features.similarity import PREFIX, Similarities, load_vectors, save_vectors_
from features.sparse import FEW, ValueIndex, Vocabulary, value_counts
from features.target_rates import TargetRates
from features.violation import refuse_errors

if TYPE_CHECKING:
    # Only fitting reads a dataset, with pydantic and storage libraries; scoring does without.
    from features.dataset import Dataset
    from features.schema import DatasetSpec

FORMAT = 1
TRANSFORMS_FILE, EVENTS_FILE = "transforms.json", "events.parquet"
_NO_STATISTICS = FeatureNames(sparse=())
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

    def fit(self, dataset: Dataset, train: pl.DataFrame, *, vectors: Vectors | None = None) -> Self:
        """Learn vocabularies, scales, target statistics, the catalogue and the histories.

        Args:
            dataset: Gives the side tables and the events. Without events, purchases come from
                its impressions marked purchased, each used only strictly after its time.
            train: Training impressions, as ``Dataset.split`` returns them.
            vectors: In the order of the catalogue; needed where ``similarity_bins`` is set.

        Raises:
            ValueError: If there are no rows, a feature's column is missing or has a wrong type,
                a dense value is NaN or infinite, or vectors are needed and absent.
        """
        train = self.checked(as_frame(train))
        if train.is_empty():
            raise ValueError("the training impressions have no rows")
        self.learn_catalogue(dataset, train)
        events = dataset.table("events") if dataset.has("events") else None
        log = dataset.table("impressions") if dataset.has("impressions") else None
        self.learn_purchases(purchases_of(events, log))
        self.learn_vectors(vectors)
        self.learn_values(self.count_values(train))
        if self.spec.features.target_statistics:
            self.learn_rates([self.count_targets(train)])
        return self.learn_scales(train)

    def learn_catalogue(self, dataset: Dataset, train: pl.DataFrame) -> None:
        """Keep the side tables' feature columns, and the row of each product and query.

        Args:
            dataset: Gives the side tables.
            train: Training rows; only the ids of what has no side table are read.
        """
        self._catalogue = Catalogue.of(dataset, self.spec.features, train)
        self._similarities: Similarities | None = None
        self._cosines: CosineColumns | None = None
        self._codes: dict[str, NDArray[Any]] = {}
        self._rates = TargetRates(_NO_STATISTICS)

    def learn_purchases(self, purchases: pl.DataFrame) -> None:
        """Keep the purchases that histories come from, as ``purchases_of`` returns them."""
        self._purchases = purchases
        products = self._catalogue.index["products"]
        self._history = PurchaseHistory(self.spec.history).fit(purchases, products)

    def learn_vectors(self, vectors: Vectors | None) -> None:
        """Keep the vectors that products are compared by; None where none are.

        Raises:
            ValueError: If ``similarity_bins`` asks for vectors and there are none, or the
                catalogue is another one.
        """
        bins = self.spec.features.similarity_bins
        if not bins:
            return
        if vectors is None:
            raise ValueError(
                f"similarity_bins is {bins}, and no vectors were given; compute them with "
                "`adtower embed` and name them, or take similarity_bins out of [features]"
            )
        shape = (len(vectors.product_PD), len(vectors.query_QD))
        if shape != (len(self.product_ids_), len(self.query_ids_)):
            raise ValueError(
                f"there are vectors of {shape[0]} products and {shape[1]} queries, and the "
                f"catalogue has {len(self.product_ids_)} and {len(self.query_ids_)}; join them in "
                "its order (join_vectors)"
            )
        self._similarities = Similarities(vectors, bins=bins)

    def count_values(self, rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
        """Count the values of sparse features and bags in some training rows, by feature."""
        catalogue_rows = self._catalogue.rows_of(rows)

        def column(name: str) -> pl.Series:
            return self._catalogue.column(name, rows, catalogue_rows)

        features = self.spec.features
        counts = {name: value_counts(column(name)) for name in features.sparse}
        return counts | {
            name: self._new_bag(name).member_counts(column(name)) for name in features.bags
        }

    def learn_values(self, counts: dict[str, pl.DataFrame]) -> None:
        """Learn vocabularies from ``count_values`` of the training rows."""
        hashed = self.spec.features.hashed
        self._vocabularies: dict[str, Vocabulary | HashedValues] = {
            name: HashedValues(buckets=hashed[name]).fit_counts(counts[name])
            if name in hashed
            else Vocabulary(min_count=self.min_count).fit_counts(counts[name])
            for name in self.spec.features.sparse
        }
        self._bags = {
            name: self._new_bag(name).fit_counts(counts[name]) for name in self.spec.features.bags
        }

    def count_targets(self, rows: pl.DataFrame) -> list[pl.DataFrame]:
        """Count clicks and purchases of some training rows for the target statistics."""
        hashes = self._key_hashes(rows, self._catalogue.rows_of(rows))
        outcomes = {
            name: rows[name].fill_null(0).to_numpy() for name in OUTCOMES if name in rows.columns
        }
        if "clicked" not in outcomes:
            raise ValueError(
                "target_statistics count clicks, and the training impressions have no column "
                f"'clicked'; they have {', '.join(rows.columns)}"
            )
        time_us_N = rows["time"].cast(pl.Int64).to_numpy()
        return TargetRates(self.spec.features).count(hashes, time_us_N, outcomes)

    def learn_rates(self, parts: Sequence[Sequence[pl.DataFrame]]) -> None:
        """Learn the target statistics from ``count_targets`` of all parts of the training rows."""
        self._rates = TargetRates(self.spec.features).fit_counts(parts)

    def learn_scales(self, train: pl.DataFrame) -> Self:
        """Learn how dense columns are scaled, from training rows or a sample of them; the last."""
        rows = self._catalogue.rows_of(train)
        self._dense = {
            name: DenseTransform(name, scaling=self.spec.features.scaling.get(name)).fit(
                self._catalogue.column(name, train, rows)
            )
            for name in self.spec.features.dense
        }
        derived = self._derived(train, rows)
        self._derived_dense = {
            name: DenseTransform(name).fit(values) for name, values in derived.items()
        }
        if self._similarities is not None:
            histories = self._histories(train)
            self._cosines = CosineColumns.fit(
                self._similarities, rows["products"], rows["queries"], histories
            )
        self._prepare()
        return self

    def compared_by(self, vectors: Vectors, train: Examples, *, bins: int) -> FeaturePipeline:
        """Return this pipeline with cosines of some vectors, as ``similarity_bins`` asks for.

        All else is shared and not fitted again.

        Args:
            vectors: In the order of the catalogue.
            train: What this pipeline, which has no cosines yet, made of the training rows.
            bins: Of the histogram.

        Raises:
            ValueError: As ``learn_vectors``.
        """
        assert self._cosines is None, "cosines are there already"
        compared = copy.copy(self)
        features = replace(self.spec.features, similarity_bins=bins)
        compared.spec = FeatureSpec(features=features, history=self.spec.history)
        compared.learn_vectors(vectors)
        assert compared._similarities is not None
        compared._cosines = CosineColumns.fit(
            compared._similarities, train.product_N, train.query_N, train.history_NL
        )
        return compared

    def without_vectors(self) -> FeaturePipeline:
        """Return this pipeline without the columns that come from vectors; all else is shared."""
        plain = copy.copy(self)
        features = replace(self.spec.features, similarity_bins=0)
        plain.spec = FeatureSpec(features=features, history=self.spec.history)
        plain._similarities = plain._cosines = None
        return plain

    def continue_from(self, earlier: FeaturePipeline) -> None:
        """Go on from a pipeline fitted before: known values keep their rows, and scales stay.

        Raises:
            ValueError: If the two have other features, so that columns would not mean the same.
        """
        if self.spec.features != earlier.spec.features:
            raise ValueError(
                f"the earlier run has the features {earlier.spec.features}, and this one "
                f"{self.spec.features}; a model goes on only with the features it knows"
            )
        for name, values in self._vocabularies.items():
            before = earlier._vocabularies[name]
            if isinstance(values, Vocabulary) and isinstance(before, Vocabulary):
                values.continue_from(before)
        for name, bag in self._bags.items():
            bag.vocabulary_.continue_from(earlier._bags[name].vocabulary_)
        self._dense, self._derived_dense = earlier._dense, earlier._derived_dense
        if self._cosines is not None and earlier._cosines is not None:
            similarities, scales = self._cosines.similarities, earlier._cosines.transforms
            self._cosines = CosineColumns(similarities, scales)
        self._prepare()

    def refuse_unless_continuing(self, earlier: FeaturePipeline) -> None:
        """Refuse a model of ``earlier`` on columns of this pipeline, unless they mean the same.

        Raises:
            ValueError: If this pipeline is not the outcome of ``continue_from(earlier)``.
        """
        continued = copy.copy(self)
        continued._vocabularies = copy.deepcopy(self._vocabularies)
        continued._bags, continued._codes = copy.deepcopy(self._bags), {}
        continued.continue_from(earlier)
        if continued._learned() != self._learned():
            raise ValueError(
                "these features number or scale values otherwise than those of the earlier model; "
                "build them to go on from those (`adtower features build --start-from`)"
            )

    def _learned(self) -> dict[str, Any]:
        """What decides the numbers that a model is given, as data."""
        learned = {
            "sparse": {name: v.to_dict() for name, v in self._vocabularies.items()},
            "dense": {name: dense.to_dict() for name, dense in self._dense.items()},
        }
        if self._bags:
            learned["bags"] = {name: bag.to_dict() for name, bag in self._bags.items()}
        cosines = {} if self._cosines is None else self._cosines.transforms
        if derived := {**self._derived_dense, **cosines}:
            learned["derived"] = {name: dense.to_dict() for name, dense in derived.items()}
        return learned

    @property
    def product_ids_(self) -> list[str]:
        """The catalogue's products, in the row order that ``Examples.product_N`` counts in."""
        return self._catalogue.index["products"].values

    @property
    def query_ids_(self) -> list[str]:
        """The catalogue's queries, in the row order that ``Examples.query_N`` counts in."""
        return self._catalogue.index["queries"].values

    @property
    def sparse_names(self) -> tuple[str, ...]:
        """Sparse columns, those of bags behind the others, in column order."""
        slots = (name for bag in self._bags.values() for name in bag.output_names)
        return (*self.spec.features.sparse, *slots)

    @property
    def vocabulary_sizes(self) -> tuple[int, ...]:
        """Rows of each sparse feature's table, out-of-vocabulary included."""
        sizes = (self._vocabularies[name].size for name in self.spec.features.sparse)
        slots = (bag.vocabulary_.size for bag in self._bags.values() for _ in bag.output_names)
        return (*sizes, *slots)

    @property
    def collisions(self) -> dict[str, float]:
        """Share of the training values that share a row with another, by hashed feature."""
        return {
            name: hashed.collision_share_
            for name, hashed in self._vocabularies.items()
            if isinstance(hashed, HashedValues)
        }

    @property
    def dense_names(self) -> tuple[str, ...]:
        """Dense columns, the masks of missing values (``NAME.missing``) included."""
        cosines = () if self._cosines is None else self._cosines.names
        return (*self._names_without_cosines(), *cosines)

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
        return self.with_cosines(self.without_cosines(impressions))

    def with_cosines(self, examples: Examples, vectors: Vectors | None = None) -> Examples:
        """Return what ``without_cosines`` made with the cosines, where there are any.

        Args:
            examples: Catalogue rows and histories as the model is to see them.
            vectors: As ``CosineColumns.added_to``.
        """
        return examples if self._cosines is None else self._cosines.added_to(examples, vectors)

    @property
    def cosines_fingerprint(self) -> str | None:
        """Names the vectors that products are compared by; None where none are."""
        return None if self._cosines is None else self._cosines.similarities.vectors.fingerprint

    def without_cosines(self, impressions: pl.DataFrame) -> Examples:
        """As ``transform``, but for the columns that come from vectors."""
        frame = self.checked(as_frame(impressions))
        rows = self._catalogue.rows_of(frame)
        sparse = [
            self._sparse_columns(name, frame, rows) for name in (*self._vocabularies, *self._bags)
        ]
        dense = [self._dense_columns(name, frame, rows) for name in self.spec.features.dense]
        derived = self._derived(frame, rows)
        dense += [self._derived_dense[name].transform(values) for name, values in derived.items()]
        return Examples(
            sparse_names=self.sparse_names,
            sparse_NF=_concatenate(sparse, len(frame), np.int32),
            vocabulary_sizes=self.vocabulary_sizes,
            dense_names=self._names_without_cosines(),
            dense_NC=_concatenate(dense, len(frame), np.float32),
            product_N=rows["products"],
            query_N=rows["queries"],
            history_NL=self._histories(frame),
            user_N=_codes(frame, "user_id"),
            request_N=_codes(frame, "request_id"),
            time_us_N=frame["time"].cast(pl.Int64).to_numpy(),
            label_N=_flag(frame, "clicked"),
            purchased_N=_flag(frame, "purchased"),
            position_N=_position(frame),
            weight_N=_flag(frame, "sample_weight"),
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
            **self._learned(),
        }
        if self._rates.outcome_names:
            transforms["outcomes"] = self._rates.outcome_names
        text = json.dumps(transforms, ensure_ascii=False)
        (folder / TRANSFORMS_FILE).write_text(text, encoding="utf-8")
        self._catalogue.save_(folder)
        self._purchases.write_parquet(folder / EVENTS_FILE)
        self._rates.save_(folder)
        if self._similarities is not None:
            save_vectors_(self._similarities.vectors, folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Return the pipeline that ``save_`` wrote.

        Raises:
            ValueError: If a file is missing or was written in another format, or the specification
                is not one of features.
        """
        folder = Path(folder)
        names = (TRANSFORMS_FILE, *CATALOGUE_FILES, EVENTS_FILE)
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
        pipeline._catalogue, pipeline._codes = Catalogue.load(folder), {}
        pipeline.learn_purchases(pl.read_parquet(folder / EVENTS_FILE))
        pipeline._similarities = pipeline._cosines = None
        if spec.features.similarity_bins:
            pipeline.learn_vectors(load_vectors(folder))
        pipeline._vocabularies = {
            name: _sparse_from_dict(data["sparse"][name]) for name in spec.features.sparse
        }
        pipeline._bags = {name: Bag.from_dict(data["bags"][name]) for name in spec.features.bags}
        pipeline._rates = TargetRates.load(spec.features, folder, data.get("outcomes", ()))
        pipeline._dense = {
            name: DenseTransform.from_dict(data["dense"][name])
            for name in pipeline.spec.features.dense
        }
        derived = {
            name: DenseTransform.from_dict(dense) for name, dense in data.get("derived", {}).items()
        }
        cosines = {name: dense for name, dense in derived.items() if name.startswith(PREFIX)}
        pipeline._derived_dense = {n: dense for n, dense in derived.items() if n not in cosines}
        if pipeline._similarities is not None:
            pipeline._cosines = CosineColumns(pipeline._similarities, cosines)
        pipeline._prepare()
        return pipeline

    def _prepare(self) -> None:
        """Transform what side tables hold once, so that it is looked up from here on."""
        transforms = {**self._vocabularies, **self._bags, **self._dense}
        for name, transform in transforms.items():
            table, _, column = name.partition(".")
            if table not in SIDE_TABLE_KEYS or not column:
                continue
            # One row more than the catalogue: row -1 answers for what the catalogue lacks. Rows
            # that training never showed are looked at too, so a NaN among them is found now.
            code = transform.transform(self._catalogue.values(name))
            self._codes[name] = code[:, None] if code.ndim == 1 else code

    def checked(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return impressions in the contract's types, with every column that is needed.

        Raises:
            ValueError: As ``transform``.
        """
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

    def _histories(self, frame: pl.DataFrame) -> NDArray[np.int32]:
        return self._history.transform(frame["user_id"], frame["time"].cast(pl.Int64).to_numpy())

    def _key_hashes(
        self, frame: pl.DataFrame, rows: dict[str, NDArray[np.int32]]
    ) -> dict[str, NDArray[np.uint64]]:
        """The hashes of the columns that keys of target statistics consist of."""
        names = self.spec.features.statistics_columns
        return {name: self._catalogue.hashes(name, frame, rows) for name in names}

    def _derived(
        self, frame: pl.DataFrame, rows: dict[str, NDArray[np.int32]]
    ) -> dict[str, NDArray[np.float64]]:
        """Target statistics before scaling; NaN is missing."""
        if not self.spec.features.target_statistics:
            return {}
        time_us_N = frame["time"].cast(pl.Int64).to_numpy()
        return self._rates.columns(self._key_hashes(frame, rows), time_us_N)

    def _names_without_cosines(self) -> tuple[str, ...]:
        transforms = (*self._dense.values(), *self._derived_dense.values())
        return tuple(name for dense in transforms for name in dense.output_names)

    def _new_bag(self, name: str) -> Bag:
        return Bag(name, slots=self.spec.features.bags[name], min_count=self.min_count)

    def _sparse_columns(
        self, name: str, frame: pl.DataFrame, rows: dict[str, NDArray[np.int32]]
    ) -> NDArray[np.int32]:
        if name in self._codes:
            return self._codes[name][rows[name.partition(".")[0]]]
        values = self._catalogue.column(name, frame, rows)
        if name in self._bags:
            return self._bags[name].transform(values)
        return self._vocabularies[name].transform(values)[:, None]

    def _dense_columns(
        self, name: str, frame: pl.DataFrame, rows: dict[str, NDArray[np.int32]]
    ) -> NDArray[np.float32]:
        if name in self._codes:
            return self._codes[name][rows[name.partition(".")[0]]]
        return self._dense[name].transform(self._catalogue.column(name, frame, rows))


def _codes(frame: pl.DataFrame, column: str) -> NDArray[np.int64]:
    """0.. in order of appearance; a null, or every row without the column, is one of its own."""
    if column not in frame.columns:
        return np.arange(len(frame), dtype=np.int64)
    values = frame[column]
    if len(values) < FEW:
        shown = list(dict.fromkeys(values.to_list()))
    else:
        shown = values.unique(maintain_order=True).to_list()
    distinct = ValueIndex([value for value in shown if value is not None])
    code_N = distinct.rows_of(values).astype(np.int64)
    stranger_N = code_N < 0
    code_N[stranger_N] = len(distinct) + np.arange(stranger_N.sum())
    return code_N


def _flag(frame: pl.DataFrame, column: str) -> NDArray[np.float32] | None:
    if column not in frame.columns:
        return None
    return _without_nulls(frame[column]).cast(pl.Float32).to_numpy()


def _position(frame: pl.DataFrame) -> NDArray[np.int32] | None:
    if "position" not in frame.columns:
        return None
    return _without_nulls(frame["position"]).cast(pl.Int32).to_numpy()


def _without_nulls(values: pl.Series) -> pl.Series:
    return values.fill_null(0) if values.null_count() else values


def _concatenate(columns: list[NDArray[Any]], rows: int, dtype: type) -> NDArray[Any]:
    return np.concatenate(columns, axis=1) if columns else np.zeros((rows, 0), dtype)


def _sparse_from_dict(data: dict[str, Any]) -> Vocabulary | HashedValues:
    return HashedValues.from_dict(data) if "buckets" in data else Vocabulary.from_dict(data)
