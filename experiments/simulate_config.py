"""Everything a simulated A/B test can be told, beyond what a whole run needs to know of it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from experiments.ab_counts import METRICS
from experiments.always_valid import LOOKS
from experiments.config import AbConfig
from experiments.marketplace.budgets import Pacing
from experiments.preregistration import Test


class SimulateConfig(AbConfig):
    """A simulated A/B test: arms, decision rule, gate and budgets."""

    metric: str = "ctr"
    """The metric that decides; it is registered before the first impression."""
    test: Test = "delta"
    """What decides: the interval at the end (delta), the same adjusted by the users' past (cuped),
    or the first always-valid interval that excludes zero."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Of all intervals; one minus it is the level of the decision."""
    looks: int = Field(default=LOOKS, ge=0, le=1000)
    """Looks at the running experiment, with always-valid intervals; 0 for none."""
    seed: int | None = Field(default=None, ge=0)
    """Of requests and clicks; by default the run's own."""
    calibration_requests: int = Field(default=6_000, ge=0)
    """Requests in random order that each arm's scores are recalibrated on, by their order alone; 0
    ranks and prices by the scores as they are."""
    pre_period: bool = True
    """Serve as many requests again beforehand: for power, CUPED and always-valid intervals."""
    distortions: bool = True
    """Show what same-order distortions of each arm's scores would do."""
    swap: bool = False
    """Give the treatment the control's users and the other way round."""
    market: Path | None = None
    """Parameters file of `adtower data fit-market`. What acts when requests are served is taken
    from it (auction, looks, purchases); bids and users are those of the world."""
    budget_share: float | None = Field(default=None, gt=0)
    """Budgets as a share of what advertisers would spend without any; below 1 they bind."""
    budgets: Path | None = None
    """Budgets themselves: parquet or CSV with product_id, budget and, if given, currency."""
    pacing: Pacing = "throttle"
    """How advertisers make budgets last; needs budgets."""

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError(f"metric is {metric!r}; {', '.join(METRICS)} are known")
        return metric

    @model_validator(mode="after")
    def _can_decide(self) -> SimulateConfig:
        if self.budget_share is not None and self.budgets is not None:
            raise ValueError("give budget_share or a file of budgets, not both")
        if self.test != "delta" and not self.pre_period:
            raise ValueError(f"test={self.test!r} needs the pre-period; leave pre_period on")
        if self.test == "always_valid" and not self.looks:
            raise ValueError("test='always_valid' with looks=0: there is nothing to look at")
        return self
