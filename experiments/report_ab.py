"""The A/B test as a report tells it: its rule, its gate, its figures, its other readings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from experiments.ab_figures import distortion_figure, looks_figure
from experiments.ab_result import AbResult
from experiments.assignment import SRM_THRESHOLD
from experiments.forest import Interval, LiftRow, ab_forest
from experiments.lift import Lift
from experiments.report_content import ReportContent

LIFT_NAMES = {
    "ctr": "click-through rate",
    "cvr": "conversion rate (purchases per click)",
    "rpm": "revenue per 1,000 impressions",
    "cpc": "price per click",
    "welfare": "advertiser value per 1,000 impressions",
    "relevance": "mean relevance shown",
    "calibration": "predicted over observed clicks",
}
SHORT_NAMES = {
    "ctr": "click-through rate",
    "cvr": "conversion rate",
    "rpm": "revenue per mille",
    "cpc": "price per click",
    "welfare": "advertiser value",
    "relevance": "relevance shown",
    "calibration": "predicted / observed",
}
TESTS = {
    "delta": "the users' interval at the end",
    "cuped": "the users' interval at the end, adjusted by their own past (CUPED)",
    "always_valid": "the first look whose always-valid interval excludes zero",
}
SHARES = ("ctr", "cvr")
"""Measures that are shown in per cent."""


@dataclass(frozen=True, kw_only=True)
class DrawnFigure:
    """A figure that a run's records suffice for."""

    name: str
    title: str
    caption: str
    draw: Callable[[], bytes]
    """Called only where the run stored no figure of that name."""


@dataclass(frozen=True, kw_only=True)
class AbSection:
    """What the template shows of one experiment."""

    result: AbResult
    control: str
    treatment: str
    rule: list[tuple[str, str]]
    """The registered decision, line by line; empty where none was registered."""
    rows: list[dict[str, Any]]
    """One a measure, with what was estimated, what is true, and what could be found."""
    other_readings: bool
    """Whether any row has a CUPED, an always-valid or an ungated reading."""
    bent: list[str]
    """Measures of the table of distortions."""
    srm_threshold: float = SRM_THRESHOLD


def arms(content: ReportContent) -> tuple[str, str]:
    """Names of control and treatment: as registered, else from the settings."""
    rule = content.ab.registration if content.ab is not None else None
    if rule is not None:
        return rule.control, rule.treatment
    ab = content.config.get("ab")
    ab = ab if isinstance(ab, dict) else {}
    return str(ab.get("control", "control")), str(ab.get("treatment", "treatment"))


def ab_section(content: ReportContent) -> AbSection | None:
    """Gather what is shown of the run's own experiment; None where there was none."""
    ab = content.ab
    if ab is None:
        return None
    control, treatment = arms(content)
    return AbSection(
        result=ab,
        control=control,
        treatment=treatment,
        rule=_rule(ab),
        rows=[_row(ab, name) for name in ab.lifts],
        other_readings=bool(ab.cuped or ab.raw or ab.looks),
        bent=[name for name in ab.lifts if any(name in row.raw for row in ab.distortions)],
    )


def ab_figures(content: ReportContent) -> list[DrawnFigure]:
    """The forest of lifts, the looks over time and the panel of distortions, to be drawn."""
    ab = content.ab
    if ab is None or not ab.lifts:
        return []
    control, treatment = arms(content)
    kind = "simulated " * content.simulated
    figures = [
        DrawnFigure(
            name="ab",
            title=f"Lifts of the {kind}A/B test with their intervals",
            caption="Filled marks: the interval excludes zero. The band holds lifts too small to "
            "be found in eight of ten such experiments; the dashed line is the truth, which no "
            "estimate sees. Bars may leave the panel; their ends stand beside it.",
            draw=lambda: ab_forest(
                [_forest_row(ab, name) for name in ab.lifts],
                control=control,
                treatment=treatment,
                confidence=ab.confidence,
            ),
        )
    ]
    if any(ab.looks.values()):
        true = {name: lift.true for name, lift in ab.lifts.items() if lift.true is not None}
        figures.append(
            DrawnFigure(
                name="ab_looks",
                title=f"The {kind}A/B test as it went on",
                caption="The usual interval is right at the end alone; the always-valid one at "
                "every look.",
                draw=lambda: looks_figure(ab.looks, SHORT_NAMES, true, confidence=ab.confidence),
            )
        )
    if ab.distortions:
        figures.append(
            DrawnFigure(
                name="ab_distortions",
                title="The same order of candidates, other scores",
                caption="True lift of each arm over itself when its scores are bent and its order, "
                "and so its AUC, stays. Whatever is not zero is miscalibration sold as lift; "
                "behind the gate nothing should be left of it.",
                draw=lambda: distortion_figure(ab.distortions, SHORT_NAMES),
            )
        )
    return figures


def _rule(ab: AbResult) -> list[tuple[str, str]]:
    rule = ab.registration
    if rule is None:
        return []
    looks = f", {rule.looks} looks" if rule.looks else ""
    lines = [
        ("decides", f"{LIFT_NAMES.get(rule.metric, rule.metric)}, by {TESTS[rule.test]}{looks}"),
        ("two-sided level", f"{rule.alpha:g}"),
        ("stops after", f"{rule.requests:,} requests"),
        (
            "could find",
            "not known beforehand"
            if rule.minimum_detectable is None
            else f"a lift of {rule.minimum_detectable:.1%}, in eight of ten such experiments",
        ),
        (
            "scores recalibrated on",
            f"{rule.calibration_requests:,} requests in random order"
            if rule.calibration_requests
            else "nothing: scores as they are",
        ),
        ("decision", str(ab.decision)),
    ]
    if ab.registration_sha256 is not None:
        lines.append(("SHA-256 of the rule, taken first", ab.registration_sha256))
    return lines


def _row(ab: AbResult, name: str) -> dict[str, Any]:
    lift, plan = ab.lifts[name], ab.power.get(name)
    looks = ab.looks.get(name, ())
    return {
        "name": name,
        "label": LIFT_NAMES.get(name, name),
        "share": name in SHARES,
        "decides": ab.registration is not None and ab.registration.metric == name,
        "lift": lift,
        "detectable": None if plan is None else plan.minimum_detectable,
        "chance": None if plan is None or lift.true is None else plan.power_at(lift.true),
        "cuped": ab.cuped.get(name),
        "less": ab.variance_reduction.get(name),
        "last": looks[-1] if looks else None,
        "raw": ab.raw.get(name),
    }


def _forest_row(ab: AbResult, name: str) -> LiftRow:
    lift, cuped, looks = ab.lifts[name], ab.cuped.get(name), ab.looks.get(name, ())
    plan = ab.power.get(name)
    last = looks[-1] if looks else None
    return LiftRow(
        name=SHORT_NAMES.get(name, name),
        lift=_interval(lift),
        true=lift.true,
        cuped=None if cuped is None else _interval(cuped),
        always_valid=None
        if last is None
        else Interval(value=last.lift, low=last.low, high=last.high),
        detectable=None if plan is None else plan.minimum_detectable,
    )


def _interval(lift: Lift) -> Interval:
    return Interval(value=lift.lift, low=lift.low, high=lift.high)
