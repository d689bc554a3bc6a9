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

from features.feature_spec import FeatureNames, HistoryWindow

TableName = Literal["products", "queries", "relevance", "impressions", "events"]
TABLE_NAMES: tuple[TableName, ...] = get_args(TableName)

SPEC_FILE = "dataset.toml"


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
    fields["features"] = spec.features.to_json()
    tables = {key: value for key, value in fields.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in fields.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    # JSON's strings, numbers, booleans and lists of them are TOML's too; its objects are not.
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {_toml(of)}" for key, of in value.items())
        return f"{{ {', '.join(pairs)} }}" if value else "{}"
    return json.dumps(value, ensure_ascii=False)


def _in_words(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            parts.append(f"{where} is not a known key (misspelt?)")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            parts.append(f"{where}: {message}" if where else message)
    return "; ".join(parts)
