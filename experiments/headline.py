"""The first screen of a report: the answer in one sentence, and the figures that carry it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from experiments.comparison import Comparison, VariantResult
from experiments.report_ab import LIFT_NAMES, arms
from experiments.report_content import ReportContent


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure of the first screen."""

    label: str
    value: str
    interval: str
    above_zero: bool
    """Whether the whole interval lies above zero."""
    truth: str = ""
    """The true value, where it is known."""


def number(value: float | None, pattern: str) -> str:
    """A figure for a table cell, with a real minus sign; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return pattern.format(value).replace("-", "−")


def best_variant(comparison: Comparison | None) -> VariantResult | None:
    """The variant that the first screen speaks of: the best that ships, else the best candidate."""
    if comparison is None or not comparison.candidates:
        return None
    shipping = [row for row in comparison.candidates if row.ships]
    return (shipping or list(comparison.candidates))[0]


def headline(content: ReportContent) -> str:
    """The answer in one sentence, with both of its intervals."""
    comparison, best = content.comparison, best_variant(content.comparison)
    if comparison is None or best is None:
        return "No verdict: nothing was compared."
    over = _against(comparison.baseline, best.delta_auc, best.delta_auc_low, best.delta_auc_high)
    if comparison.placebo is None or best.delta_placebo is None:
        return f"No verdict is possible without a placebo: the best is {best.name}, {over}."
    placebo = f"{comparison.placebo}, the better placebo"
    over += " and " + _against(
        placebo, best.delta_placebo, best.delta_placebo_low, best.delta_placebo_high
    )
    if best.ships:
        return f"{best.name} is worth shipping: {over}; both intervals lie above zero."
    nothing = f"Nothing is worth shipping: the best, {best.name}, is not clearly above"
    missed = comparison.baseline if not best.above_baseline else "a placebo"
    return f"{nothing} {missed}: {over}."


def verdict_rest(content: ReportContent) -> str:
    """What the comparison adds to its first sentence: other variants, capacity, warnings."""
    if content.comparison is None:
        why = content.notes.left_out.get("comparison", "this run compared no variants")
        return f"The reason: {why}."
    return content.comparison.verdict().partition(". ")[2]


def ab_sentence(content: ReportContent) -> str:
    """What the A/B test says, in words."""
    ab = content.ab
    if ab is None:
        return ""
    if ab.srm_failed:
        return ab.verdict()
    said: dict[str, list[str]] = {"raises": [], "lowers": [], "does not clearly move": []}
    for name, lift in ab.lifts.items():
        if name == "calibration":
            # No gain of anybody's: it stands in the table.
            continue
        how = "raises" if lift.low > 0 else "lowers" if lift.high < 0 else "does not clearly move"
        said[how].append(f"{LIFT_NAMES.get(name, name)} ({number(lift.lift, '{:+.1%}')})")
    control, treatment = arms(content)
    test = "a simulated A/B test" if content.simulated else "the A/B test"
    parts = [f"{how} {', '.join(names)}" for how, names in said.items() if names]
    return f"In {test} against {control}, {treatment} {'; it '.join(parts)}." if parts else ""


def headroom(content: ReportContent) -> float | None:
    """Share of the way from the baseline's AUC to the oracle's that the best variant goes.

    The oracle without position is the fair goal: no model here is told the slot.
    """
    oracle = content.metrics.get("oracle_without_position.auc", content.metrics.get("oracle.auc"))
    best = best_variant(content.comparison)
    if oracle is None or best is None or content.comparison is None:
        return None
    way = oracle - content.comparison[content.comparison.baseline].auc
    return best.delta_auc / way if way > 0 else None


def tiles(content: ReportContent) -> list[Tile]:
    """The handful of figures of the first screen."""
    shown: list[Tile] = []
    best, comparison = best_variant(content.comparison), content.comparison
    if best is not None and comparison is not None:
        shown.append(
            Tile(
                label=f"AUC, {best.name} against {comparison.baseline}",
                value=number(best.delta_auc, "{:+.4f}"),
                interval=_range(best.delta_auc_low, best.delta_auc_high, "{:+.4f}"),
                above_zero=best.above_baseline,
            )
        )
        if best.delta_placebo is not None:
            shown.append(
                Tile(
                    label=f"AUC, {best.name} against {comparison.placebo}, the better placebo",
                    value=number(best.delta_placebo, "{:+.4f}"),
                    interval=_range(best.delta_placebo_low, best.delta_placebo_high, "{:+.4f}"),
                    above_zero=best.above_placebo,
                )
            )
    for name in ("ctr", "cvr", "rpm"):
        lift = content.ab.lifts.get(name) if content.ab is not None else None
        if lift is not None:
            true = "" if lift.true is None else f"true {number(lift.true, '{:+.1%}')}"
            shown.append(
                Tile(
                    label=f"{'Simulated ' * content.simulated}A/B: {LIFT_NAMES[name]}",
                    value=number(lift.lift, "{:+.1%}"),
                    interval=_range(lift.low, lift.high, "{:+.1%}"),
                    above_zero=lift.low > 0,
                    truth=true,
                )
            )
    return shown


def _against(reference: str, value: float, low: float | None, high: float | None) -> str:
    return f"{number(value, '{:+.4f}')} AUC {_range(low, high, '{:+.4f}')} against {reference}"


def _range(low: float | None, high: float | None, pattern: str) -> str:
    # A line that ends between the two would make them hard to read as one.
    return f"[{number(low, pattern)},\N{NO-BREAK SPACE}{number(high, pattern)}]"
