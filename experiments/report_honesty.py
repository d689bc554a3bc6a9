"""What the test of the A/B test itself says, as a report shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from experiments.self_test import ALPHA, COVERAGE, FALSE_POSITIVES, FULL

Limits = tuple[float, float]

COLUMNS: tuple[tuple[str, str, Limits | None], ...] = (
    ("false_positive_rate", "false positives", FALSE_POSITIVES),
    ("coverage", "coverage of 95% intervals", COVERAGE),
    ("sequential_false_positive_rate", "false positives at any look, always valid", (0.0, ALPHA)),
    ("naive_sequential_false_positive_rate", "the same, usual interval", None),
    ("power", "power", None),
    ("predicted_power", "power foretold", None),
    ("cuped.false_positive_rate", "CUPED: false positives", FALSE_POSITIVES),
    ("cuped.coverage", "CUPED: coverage", COVERAGE),
    ("cuped.variance_reduction", "CUPED: variance less", None),
)
"""Figure, heading, and between what it should lie over ``FULL`` experiments or more."""


@dataclass(frozen=True, kw_only=True)
class HonestyCell:
    """One figure of one measure."""

    value: float | None
    outside: bool
    """Whether it lies outside its limits."""


@dataclass(frozen=True, kw_only=True)
class Honesty:
    """The table of a self-test."""

    experiments: int
    headings: list[str]
    limits: list[str]
    """Under each heading; empty where there are none."""
    rows: dict[str, list[HonestyCell]]
    """By measure."""

    @property
    def outside(self) -> int:
        """Figures that lie outside their limits."""
        return sum(cell.outside for cells in self.rows.values() for cell in cells)


def honesty(figures: Mapping[str, float]) -> Honesty | None:
    """Turn the flat figures of ``adtower simulate --selftest --json`` into a table.

    Args:
        figures: ``METRIC.FIGURE``, as ``SelfTest.to_metrics`` gives them.

    Returns:
        The table; None where no measure has a false-positive rate.
    """
    end = ".false_positive_rate"
    metrics = [
        key.removesuffix(end)
        for key in figures
        if key.endswith(end) and "." not in key.removesuffix(end)
    ]
    if not metrics:
        return None
    experiments = int(figures.get("experiments", FULL))
    shown = [
        (key, heading, _widened(limits, experiments))
        for key, heading, limits in COLUMNS
        if any(f"{metric}.{key}" in figures for metric in metrics)
    ]
    return Honesty(
        experiments=experiments,
        headings=[heading for _, heading, _ in shown],
        limits=["" if at is None else f"{at[0]:.1%} to {at[1]:.1%}" for *_, at in shown],
        rows={
            metric: [_cell(figures.get(f"{metric}.{key}"), at) for key, _, at in shown]
            for metric in metrics
        },
    )


def _widened(limits: Limits | None, experiments: int) -> Limits | None:
    """The limits for a smaller self-test, which chance alone spreads more."""
    if limits is None or experiments >= FULL:
        return limits
    more = (math.sqrt(FULL / experiments) - 1) * (FALSE_POSITIVES[1] - FALSE_POSITIVES[0]) / 2
    low, high = limits
    return (low - more if low > 0 else low, high + more)


def _cell(value: float | None, limits: Limits | None) -> HonestyCell:
    outside = value is not None and limits is not None and not limits[0] <= value <= limits[1]
    return HonestyCell(value=value, outside=outside)
