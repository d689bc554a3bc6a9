"""A request as a table, and what comes back.

A request becomes the same table of impressions that offline scoring reads, so one code path
computes the features of both. Whoever only scores tables does not import pydantic, which
``ranking.request`` checks requests with.

Shape letters: K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from features.feature_spec import FeatureNames

if TYPE_CHECKING:
    from ranking.request import ScoreRequest

Scalar = str | int | float | bool | None
"""A value of a feature column; None is missing."""

KEYS = ("request_id", "time", "user_id", "query_id", "query", "product_id")
"""Columns that a request names by fields of their own."""

QueryVector = Literal["unused", "stored", "cached", "encoded", "missing"]
"""Where a request's query vector came from; "missing" scores without one."""


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """What a request had that the bundle did not know."""

    unknown_user: bool
    """There is a user_id and training gave it no row of its own."""
    unknown_query: bool
    """There is a query and it is not of the bundle's catalogue."""
    unknown_products: tuple[str, ...]
    """Candidates outside the bundle's catalogue."""
    products_without_vector: tuple[str, ...]
    """Candidates of the catalogue that have no vector; empty for a model without vectors."""
    query_vector: QueryVector
    history_length: int
    """Purchases in the window that described the user."""


@dataclass(frozen=True, kw_only=True)
class ScoredRequest:
    """The scores of one request."""

    p_click_K: NDArray[np.float64]
    """Of each candidate, in the order they came."""
    order_K: NDArray[np.int64]
    """Places of the candidates from the most to the least likely click; ties as they came."""
    diagnostics: Diagnostics


def request_frame(request: ScoreRequest, features: FeatureNames) -> pl.DataFrame:
    """Return a request as impressions, one row a candidate.

    Args:
        request: What is asked.
        features: The features of the pipeline that will read the table.

    Raises:
        ValueError: If a column is no feature, is neither in the request nor in every candidate,
            or has values of a kind that its feature cannot take.
    """
    rows = len(request.candidates)
    wanted = [name for name in features.of_impressions() if name not in KEYS]
    for where, columns in _all_columns(request):
        unknown = [name for name in columns if name not in wanted]
        if unknown:
            raise ValueError(
                f"{where} has the column {unknown[0]!r}, which is no feature of this bundle; "
                f"its columns are {', '.join(wanted) or 'none'}"
            )
    frame = {
        "product_id": pl.Series([c.product_id for c in request.candidates], dtype=pl.String),
        "time": pl.Series([request.time], dtype=pl.Datetime("us", "UTC")).new_from_index(0, rows),
    }
    for name in ("user_id", "query_id", "query"):
        value = getattr(request, name)
        frame[name] = pl.Series([value], dtype=pl.String).new_from_index(0, rows)
    for name in wanted:
        frame[name] = _column(name, request, dense=name in features.dense)
    return pl.DataFrame(frame)


def _column(name: str, request: ScoreRequest, *, dense: bool) -> pl.Series:
    values: list[Scalar] = []
    for place, candidate in enumerate(request.candidates):
        columns = candidate.columns if name in candidate.columns else request.columns
        if name not in columns:
            raise ValueError(
                f"candidates.{place} lacks the column {name!r}, and so do the request's columns; "
                "give it null where it is missing"
            )
        value = columns[name]
        if isinstance(value, str if dense else float):
            allowed = "a number" if dense else "text, a whole number or a boolean"
            kind = "dense" if dense else "sparse"
            raise ValueError(
                f"column {name!r} of candidates.{place} is {value!r:.80}; a {kind} feature must be "
                f"{allowed}"
            )
        values.append(value)
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1:
        values = [None if v is None else float(v) if dense else _as_text(v) for v in values]
    return pl.Series(name, values)


def _as_text(value: Scalar) -> str:
    """As ``features.sparse.as_text`` writes it, so that 3 and "3" are one value."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _all_columns(request: ScoreRequest) -> Sequence[tuple[str, dict[str, Any]]]:
    own = [("the request", request.columns)] if request.columns else []
    return own + [
        (f"candidates.{place}", candidate.columns)
        for place, candidate in enumerate(request.candidates)
        if candidate.columns
    ]
