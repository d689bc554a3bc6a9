"""One thing wrong with a dataset, and how it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One thing wrong with a dataset."""

    table: str
    column: str | None
    """None where the whole table is meant."""
    row: int | None
    """First offending row, from 0; None where no single row is to blame."""
    problem: str
    """What is wrong, with the value."""
    advice: str
    """What is allowed, or the likely cause."""
    count: int = 1
    """Offending rows in all."""
    severity: Literal["error", "warning"] = "error"
    """An error must be mended before training; a warning should be understood."""

    def __str__(self) -> str:
        place = self.table if self.column is None else f"{self.table}.{self.column}"
        if self.row is not None:
            place += f", row {self.row}"
        more = f" ({self.count} rows in all)" if self.count > 1 else ""
        return f"{place}: {self.problem}{more}; {self.advice}"


def refuse_errors(violations: Sequence[Violation]) -> None:
    """Raise one error that names every violation of severity "error"; warnings pass.

    Raises:
        ValueError: If there is any.
    """
    errors = [str(violation) for violation in violations if violation.severity == "error"]
    if errors:
        raise ValueError("\n".join(errors))


def first_where(mask: pl.Series) -> tuple[int, int]:
    """Return the first true row of a boolean series and how many are true; (-1, 0) if none is."""
    if not mask.any():
        return -1, 0
    hit = mask.fill_null(False)
    return int(hit.arg_max() or 0), int(hit.sum())
