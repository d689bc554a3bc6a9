"""One request to score: who asks, what for, and the candidates, read strictly.

``ranking.request_table`` has its table and what comes back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

MAX_ID_LENGTH = 512
_INT64 = 2**63
_SHOWN_PROBLEMS = 5


class MalformedJsonError(ValueError):
    """The bytes are not JSON at all, rather than JSON of the wrong content."""


def _as_id(value: object) -> object:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if whole else value


def _as_time(value: object) -> object:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        raise ValueError("must be a date and time as text, such as 2024-03-01T12:00:00Z")
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("lies outside the years 1 to 9999") from error


Id = Annotated[str, BeforeValidator(_as_id), Field(min_length=1, max_length=MAX_ID_LENGTH)]
Time = Annotated[datetime, BeforeValidator(_as_time)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Candidate(_Record):
    """A product that may be shown. A request may give its id alone instead."""

    product_id: Id
    columns: dict[str, Any] = Field(default_factory=dict)
    """Feature columns of this candidate, such as a bid; they go before the request's."""

    @field_validator("columns")
    @classmethod
    def _scalars(cls, columns: dict[str, Any]) -> dict[str, Any]:
        return _checked_columns(columns)


class Purchase(_Record):
    """Something that the user bought."""

    product_id: Id
    time: Time
    """UTC where it says no zone."""


class ScoreRequest(_Record):
    """Everything that scoring one request needs."""

    candidates: tuple[Candidate, ...] = Field(min_length=1)
    """Distinct products, in any order; scores come back in this order."""
    request_id: Id | None = None
    """Only repeated in logs."""
    user_id: Id | None = None
    """None for a visitor without an account."""
    purchases: tuple[Purchase, ...] | None = None
    """What the user bought. None takes what the bundle knows; given, it stands instead of that."""
    query_id: Id | None = None
    query: str | None = None
    """The text typed. A text that training knew needs no id; any other is encoded."""
    time: Time = Field(default_factory=lambda: datetime.now(UTC))
    """When it is asked, UTC where it says no zone; now if absent."""
    columns: dict[str, Any] = Field(default_factory=dict)
    """Feature columns that are alike for all candidates: of the user, the page, the device."""

    @field_validator("candidates", mode="before")
    @classmethod
    def _ids_alone(cls, candidates: object) -> object:
        if not isinstance(candidates, list | tuple):
            raise ValueError("must be a list of product ids or of objects with a product_id")
        return [{"product_id": one} if isinstance(one, str | int) else one for one in candidates]

    @field_validator("columns")
    @classmethod
    def _scalars(cls, columns: dict[str, Any]) -> dict[str, Any]:
        return _checked_columns(columns)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen: set[str] = set()
        for place, candidate in enumerate(self.candidates):
            if candidate.product_id in seen:
                raise ValueError(
                    f"candidates.{place}: product {candidate.product_id!r} was there before; "
                    "each candidate is scored once"
                )
            seen.add(candidate.product_id)
        return self

    @property
    def asks(self) -> bool:
        """Whether there is a query at all."""
        return self.query_id is not None or bool(self.query)


def parse_request(body: bytes) -> ScoreRequest:
    """Read a request from JSON.

    Raises:
        MalformedJsonError: If the bytes are not JSON in UTF-8, or are nested too deeply.
        ValueError: If a field is missing, unknown or has a value that is not allowed; the message
            names each field.
    """
    try:
        return ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        raise parse_problem(error) from None


def request_of(fields: Mapping[str, Any]) -> ScoreRequest:
    """Return a request made of plain values, as JSON holds them.

    Raises:
        ValueError: As ``parse_request``.
    """
    try:
        return ScoreRequest.model_validate(dict(fields))
    except ValidationError as error:
        raise parse_problem(error) from None


def _checked_columns(columns: dict[str, Any]) -> dict[str, Any]:
    for name, value in columns.items():
        if not (value is None or isinstance(value, str | int | float)):
            raise ValueError(f"{name}: must be text, a number, a boolean or null")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}: must be finite; a missing value is null")
        if isinstance(value, int) and not -_INT64 <= value < _INT64:
            raise ValueError(f"{name}: must fit into 64 bits")
    return columns


def parse_problem(error: ValidationError) -> ValueError:
    """Return what pydantic found as one error in words, without what was sent."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    if problems[0]["type"] == "json_invalid":
        return MalformedJsonError(problems[0]["msg"])
    parts = []
    for problem in problems[:_SHOWN_PROBLEMS]:
        where = ".".join(str(part)[:80] for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "is not a known field (misspelt?)"
        parts.append(f"{where}: {message}" if where else message)
    more = len(problems) - _SHOWN_PROBLEMS
    return ValueError("; ".join(parts) + (f"; and {more} more" if more > 0 else ""))
