"""What an A/B test says: its lifts, its verdict, its table, and its form on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from rich.table import Table

from experiments.assignment import SRM_THRESHOLD
from experiments.lift import Lift


@dataclass(frozen=True, kw_only=True)
class AbResult:
    """A finished A/B test."""

    lifts: dict[str, Lift]
    """The lift of each metric, by its name."""
    undefined: dict[str, str] = field(default_factory=dict)
    """Metrics that could not be compared, and why (no purchase in an arm, say)."""
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

    @property
    def srm_failed(self) -> bool:
        """Whether the arms' sizes are too unequal for chance; then believe no lift."""
        return self.srm_p_value < SRM_THRESHOLD

    def verdict(self) -> str:
        """Say in a sentence what the treatment does to each metric."""
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

    def to_metrics(self) -> dict[str, float]:
        """Return every figure under ``"ab.METRIC.FIGURE"``, flat; undefined ones are left out."""
        out: dict[str, float] = {}
        for name, lift in self.lifts.items():
            figures = {k: v for k, v in asdict(lift).items() if k != "name" and v is not None}
            out |= {f"ab.{name}.{key}": float(value) for key, value in figures.items()}
        return out | {
            "ab.requests": float(self.n_requests),
            "ab.users": float(self.n_users),
            "ab.users_control": float(self.users_control),
            "ab.users_treatment": float(self.users_treatment),
            "ab.srm_p_value": self.srm_p_value,
        }

    def to_json(self) -> str:
        """Return the result as JSON; ``from_json`` gives back an equal one."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> AbResult:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: If the text is not JSON, or fields are missing or unknown.
        """
        data = json.loads(text)
        try:
            lifts = {name: Lift(**lift) for name, lift in data.pop("lifts").items()}
            return cls(lifts=lifts, **data)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"not an A/B result of this version of adtower ({error}); simulate again"
            ) from error

    def table(self) -> Table:
        """Return a rich table, one row a metric, the truth beside the estimate."""
        table = Table(title=f"A/B over {self.n_users:,} users, {self.n_requests:,} requests")
        table.add_column("metric")
        for header in ("control", "treatment", f"lift ({self.confidence:.0%})", "true lift"):
            table.add_column(header, justify="right")
        for name, lift in self.lifts.items():
            table.add_row(
                name,
                f"{lift.control:.4f}",
                f"{lift.treatment:.4f}",
                _percent(lift).replace("[", r"\["),
                "" if lift.true is None else f"{lift.true:+.1%}",
            )
        for name, why in self.undefined.items():
            table.add_row(name, "", "", f"undefined: {why}", "")
        return table


def _percent(lift: Lift) -> str:
    return f"{lift.lift:+.1%} [{lift.low:+.1%}, {lift.high:+.1%}]"
