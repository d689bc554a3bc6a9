"""What a dataset says about itself: the records behind ``dataset.toml``.

A dataset is a folder with parquet tables and a ``dataset.toml`` naming them and saying which
columns are features. A feature is written as a plain name (a column of the impressions), as
``products.x`` or ``queries.x`` (a column of a side table, joined by id) or as ``time.hour`` and
``time.weekday`` (derived from the impression's time, UTC).
"""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

TableName = Literal["products", "queries", "relevance", "impressions", "events"]
TABLE_NAMES: tuple[TableName, ...] = get_args(TableName)

SPEC_FILE = "dataset.toml"

SIDE_TABLE_KEYS = {"products": "product_id", "queries": "query_id"}
"""The tables whose columns can be features, and the key that joins them to impressions."""

TIME_PARTS = ("hour", "weekday")
"""What ``time.`` can be followed by: hour 0 to 23, weekday 1 (Monday) to 7."""

OUTCOMES = ("clicked", "purchased")
"""Known only after the impression, so never a feature."""


class TableFiles(BaseModel):
    """Where each table lies: a parquet file, or a folder of parquet files.

    Relative paths start at the dataset folder; an fsspec URI (``s3://``, ``gs://`` and so on) is
    taken as it stands.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    products: str | None = None
    """What is sold: product_id, title and attributes."""
    queries: str | None = None
    """What was searched: query_id, query."""
    relevance: str | None = None
    """Judged pairs: query_id, product_id, label 0, 1 or 2, source."""
    impressions: str | None = None
    """What was shown and clicked, one row a product shown."""
    events: str | None = None
    """What users did (purchase, click, cart): feeds the histories."""


class FeatureNames(BaseModel):
    """Which columns the click model reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sparse: tuple[str, ...] = ("user_id", "query_id", "product_id")
    """Categorical features: text, whole numbers or booleans."""
    dense: tuple[str, ...] = ()
    """Numeric features; null means missing."""

    @model_validator(mode="after")
    def _usable(self) -> FeatureNames:
        names = self.sparse + self.dense
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"named more than once in sparse and dense: {', '.join(twice)}")
        for name in names:
            _refuse_unusable_feature(name)
        return self

    def of_table(self, table: str) -> tuple[str, ...]:
        """Return the columns of a side table that are features, without the ``products.`` part."""
        prefix = f"{table}."
        return tuple(
            name.removeprefix(prefix)
            for name in self.sparse + self.dense
            if name.startswith(prefix)
        )

    def of_impressions(self) -> tuple[str, ...]:
        """Return the features that are columns of the impressions themselves."""
        return tuple(name for name in self.sparse + self.dense if "." not in name)


class SplitRule(BaseModel):
    """How impressions fall into training, validation and test: by time, test last.

    Give both start times, or let the fractions choose them. A request is never split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the impressions between training and test."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of the impressions at the end of time."""
    validation_start: datetime | None = None
    """First moment of validation, UTC; needs ``test_start``."""
    test_start: datetime | None = None
    """First moment of the test rows, UTC; needs ``validation_start``."""

    @field_validator("validation_start", "test_start")
    @classmethod
    def _utc(cls, moment: datetime | None) -> datetime | None:
        if moment is None:
            return None
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> SplitRule:
        if (self.validation_start is None) != (self.test_start is None):
            raise ValueError("give validation_start and test_start together, or neither")
        if self.validation_start and self.test_start and self.validation_start >= self.test_start:
            raise ValueError(
                f"validation_start {self.validation_start.isoformat()} must lie before "
                f"test_start {self.test_start.isoformat()}"
            )
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction {self.validation_fraction} and test_fraction "
                f"{self.test_fraction} leave nothing to train on; their sum must be below 1"
            )
        return self


class HistoryWindow(BaseModel):
    """Which of a user's purchases describe an impression."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_days: int = Field(default=84, ge=1)
    """How far back a purchase counts; 84 days is the paper's."""
    max_length: int = Field(default=16, ge=1)
    """The newest purchases kept."""


class DatasetSpec(BaseModel):
    """The whole of ``dataset.toml``. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    """What reports call this dataset."""
    simulated: bool = False
    """True where the clicks come from a simulator; reports then say so."""
    tables: TableFiles = Field(default_factory=TableFiles)
    features: FeatureNames = Field(default_factory=FeatureNames)
    split: SplitRule = Field(default_factory=SplitRule)
    history: HistoryWindow = Field(default_factory=HistoryWindow)


def load_spec(path: str | Path) -> DatasetSpec:
    """Read a ``dataset.toml``.

    Raises:
        ValueError: If the file is absent, is not TOML, or says something that cannot work.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; a dataset is a folder with parquet tables and a {SPEC_FILE}"
        )
    return parse_spec(path.read_text(encoding="utf-8"), str(path))


def parse_spec(text: str, where: str = SPEC_FILE) -> DatasetSpec:
    """Read the text of a ``dataset.toml``; ``where`` names it in errors.

    Raises:
        ValueError: If the text is not TOML, or says something that cannot work.
    """
    try:
        return DatasetSpec.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise ValueError(f"{where}: {_in_words(error)}") from error


def write_spec(spec: DatasetSpec, path: str | Path) -> None:
    """Write a spec as TOML; ``load_spec`` reads it back equal."""
    Path(path).write_text(format_spec(spec), encoding="utf-8")


def format_spec(spec: DatasetSpec) -> str:
    """Return a spec as the text of a ``dataset.toml``; what is None is left out."""
    fields = spec.model_dump(mode="json", exclude_none=True)
    tables = {key: value for key, value in fields.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in fields.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    # JSON's strings, numbers, booleans and lists of them are TOML's too.
    return json.dumps(value, ensure_ascii=False)


def _refuse_unusable_feature(name: str) -> None:
    table, dot, column = name.rpartition(".")
    if name in OUTCOMES:
        raise ValueError(f"feature {name!r} is an outcome of the impression: it leaks the label")
    if not dot:
        return
    if table == "time":
        if column not in TIME_PARTS:
            raise ValueError(f"feature {name!r}: time has {' and '.join(TIME_PARTS)}")
    elif table not in SIDE_TABLE_KEYS:
        raise ValueError(
            f"feature {name!r}: the part before the dot must be one of "
            f"{', '.join((*SIDE_TABLE_KEYS, 'time'))}; columns of the impressions take no dot"
        )
    elif column == "image":
        raise ValueError(f"feature {name!r}: images enter through embeddings, not as features")


def _in_words(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            parts.append(f"{where} is not a known key (misspelt?)")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            parts.append(f"{where}: {message}" if where else message)
    return "; ".join(parts)
