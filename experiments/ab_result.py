"""What an A/B test says: its lifts, its decision, its tables, and its form on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from rich.table import Table

from experiments.always_valid import Look
from experiments.assignment import SRM_THRESHOLD
from experiments.distortions import DistortionRow
from experiments.interference import BudgetReport
from experiments.lift import Lift
from experiments.power import PowerPlan
from experiments.preregistration import Preregistration

Decision = Literal["ship", "do not ship", "undecided", "void"]


@dataclass(frozen=True, kw_only=True)
class AbResult:
    """A finished A/B test; everything a report draws is plain data in here."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    lifts: dict[str, Lift]
    """The lift of each metric, by its name, behind the calibration gate if there is one."""
    undefined: dict[str, str] = field(default_factory=dict)
    """Figures that could not be computed, and why (no purchase in an arm, say)."""
    n_requests: int
    """Requests, each ranked by both models."""
    n_users: int
    """Users of both arms."""
    users_control: int
    """Users in the control arm."""
    users_treatment: int
    """Users in the treatment arm."""
    srm_p_value: float
    """Of the sample-ratio check."""
    confidence: float
    """Of each lift's interval, one metric at a time."""
    salt: str
    """Names the assignment."""
    currency: str = ""
    """Of revenue and value, ISO 4217; empty where the world does not say."""
    cuped: dict[str, Lift] = field(default_factory=dict)
    """The same lifts adjusted by the users' own pre-period."""
    variance_reduction: dict[str, float] = field(default_factory=dict)
    """Share of each lift's variance that the adjustment takes away."""
    raw: dict[str, Lift] = field(default_factory=dict)
    """The same lifts with the models' scores as they are; empty where there was no gate."""
    looks: dict[str, tuple[Look, ...]] = field(default_factory=dict)
    """Each metric at every look, with always-valid intervals."""
    power: dict[str, PowerPlan] = field(default_factory=dict)
    """What the pre-period said could be found."""
    distortions: tuple[DistortionRow, ...] = ()
    """What bending each arm's scores would do, with its order untouched."""
    budgets: BudgetReport | None = None
    """Users split against budgets split, where advertisers' budgets bind."""
    registration: Preregistration | None = None
    """What was to be decided how; None where nothing was registered."""
    registration_sha256: str | None = None
    """Of the record, taken before the first impression."""

    @property
    def srm_failed(self) -> bool:
        """Whether the arms' sizes are too unequal for chance; then believe no lift."""
        return self.srm_p_value < SRM_THRESHOLD

    @property
    def decision(self) -> Decision | None:
        """What the registered rule decides; None where none was registered."""
        rule = self.registration
        if rule is None:
            return None
        if self.srm_failed:
            return "void"
        if rule.test == "always_valid":
            for look in self.looks.get(rule.metric, ()):
                if look.low > 0 or look.high < 0:
                    return "ship" if look.low > 0 else "do not ship"
            return "undecided"
        lift = (self.cuped if rule.test == "cuped" else self.lifts).get(rule.metric)
        if lift is None or lift.p_value >= rule.alpha:
            return "undecided"
        return "ship" if lift.lift > 0 else "do not ship"

    def verdict(self) -> str:
        """Say in a sentence what the treatment does to each metric, and what was decided."""
        if self.srm_failed:
            return (
                f"The split is broken: {self.users_control:,} users in control and "
                f"{self.users_treatment:,} in treatment (sample-ratio p = {self.srm_p_value:.2g}). "
                "No lift of this test should be believed."
            )
        parts = []
        for lift in self.lifts.values():
            how = (
                "raises" if lift.low > 0 else "lowers" if lift.high < 0 else "does not clearly move"
            )
            parts.append(f"{how} {lift.name} ({_percent(lift)})")
        return f"The treatment {'; '.join(parts)}."

    def decided(self) -> str:
        """Say what the registered rule decides, and by what; empty where none was registered."""
        rule = self.registration
        if rule is None or self.registration_sha256 is None:
            return ""
        return (
            f"Decision: {self.decision}, by {rule.metric} ({rule.test}, two-sided level "
            f"{rule.alpha:g}), registered before the first impression as "
            f"{self.registration_sha256[:16]}."
        )

    def to_metrics(self) -> dict[str, float]:
        """Return every figure under ``"ab.METRIC.FIGURE"``, flat; undefined ones are left out."""
        out: dict[str, float] = {}
        for name, lift in self.lifts.items():
            out |= _flat(f"ab.{name}", lift)
        for name, lift in self.cuped.items():
            out |= _flat(f"ab.{name}.cuped", lift)
            out[f"ab.{name}.cuped.variance_reduction"] = self.variance_reduction[name]
        for name, lift in self.raw.items():
            out |= _flat(f"ab.{name}.raw", lift)
        for name, plan in self.power.items():
            out[f"ab.{name}.minimum_detectable"] = plan.minimum_detectable
        for name, looks in self.looks.items():
            if looks:
                out[f"ab.{name}.always_valid_p_value"] = looks[-1].p_value
                out[f"ab.{name}.always_valid_low"] = looks[-1].low
                out[f"ab.{name}.always_valid_high"] = looks[-1].high
        if self.budgets is not None:
            out |= self.budgets.to_metrics()
        return out | {
            "ab.requests": float(self.n_requests),
            "ab.users": float(self.n_users),
            "ab.users_control": float(self.users_control),
            "ab.users_treatment": float(self.users_treatment),
            "ab.srm_p_value": self.srm_p_value,
        }

    def to_json(self) -> str:
        """Return the result as JSON; ``from_json`` gives back an equal one.

        Raises:
            ValueError: If a figure is NaN or infinite.
        """
        return json.dumps(_ADAPTER.dump_python(self, mode="json"), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> AbResult:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: If the text is not JSON, or fields are missing or unknown.
        """
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise ValueError(
                f"not an A/B result of this version of adtower ({error}); simulate again"
            ) from error

    def table(self) -> Table:
        """Return a rich table, one row a metric, the truth beside the estimate."""
        table = Table(title=f"A/B over {self.n_users:,} users, {self.n_requests:,} requests")
        table.add_column("metric")
        for header in ("control", "treatment", f"lift ({self.confidence:.0%})", "true lift"):
            table.add_column(header, justify="right")
        if self.power:
            table.add_column("detectable", justify="right")
        for name, lift in self.lifts.items():
            cells = [name, f"{lift.control:.4f}", f"{lift.treatment:.4f}", _cell(lift)]
            cells.append("" if lift.true is None else f"{lift.true:+.1%}")
            if name in self.power:
                cells.append(f"{self.power[name].minimum_detectable:.1%}")
            table.add_row(*cells)
        for name, why in self.undefined.items():
            table.add_row(name, "", "", f"undefined: {why}", "")
        return table

    def other_estimates(self) -> Table:
        """Return a rich table of the same lifts by CUPED, at any time, and with raw scores."""
        table = Table(title="The same lifts otherwise")
        table.add_column("metric")
        for header in ("CUPED", "less variance", "any time", "as scored", "true as scored"):
            table.add_column(header, justify="right")
        for name in self.lifts:
            adjusted, raw = self.cuped.get(name), self.raw.get(name)
            looks = self.looks.get(name)
            last = looks[-1] if looks else None
            table.add_row(
                name,
                _cell(adjusted),
                f"{self.variance_reduction[name]:.1%}" if adjusted else "",
                "" if last is None else rf"{last.lift:+.1%} \[{last.low:+.1%}, {last.high:+.1%}]",
                _cell(raw),
                "" if raw is None or raw.true is None else f"{raw.true:+.1%}",
            )
        return table

    def distortion_table(self) -> Table:
        """Return a rich table of what bent scores would do, with and without the gate."""
        names = [name for name in ("ctr", "rpm", "cpc", "welfare") if name in self.lifts]
        title = "The same order, other scores: true lift over the arm itself (behind the gate)"
        table = Table("arm", "scores", *names, title=title)
        for row in self.distortions:
            cells = [f"{row.raw[n]:+.1%} ({row.gated[n]:+.1%})" for n in names]
            table.add_row(row.arm, row.distortion, *cells)
        return table


_ADAPTER = TypeAdapter(AbResult)


def _flat(prefix: str, lift: Lift) -> dict[str, float]:
    figures = {k: v for k, v in asdict(lift).items() if k != "name" and v is not None}
    return {f"{prefix}.{key}": float(value) for key, value in figures.items()}


def _cell(lift: Lift | None) -> str:
    return "" if lift is None else _percent(lift).replace("[", r"\[")


def _percent(lift: Lift) -> str:
    return f"{lift.lift:+.1%} [{lift.low:+.1%}, {lift.high:+.1%}]"
