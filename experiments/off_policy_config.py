"""What the columns of a log with propensities mean, and when an estimate is refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SupportLimits(BaseModel):
    """Below these an estimate is refused; they are limits of support, not of quality."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_effective_rows: float = Field(default=500.0, ge=1)
    """Effective sample size of the weights, in rows."""
    min_effective_share: float = Field(default=0.01, ge=0, le=1)
    """The same as a share of the rows."""
    max_weight_share: float = Field(default=0.05, gt=0, le=1)
    """Largest share of all weight that one row may carry."""
    max_unsupported: float = Field(default=0.01, ge=0, le=1)
    """Share of the target policy's choices that the log never took in that context."""
    min_rewarded_rows: int = Field(default=20, ge=1)
    """Rows with a reward and a weight above 0: with fewer no interval means anything."""
    max_mean_weight_error: float = Field(default=5.0, gt=0)
    """The mean weight is 1 in expectation; it may be off by so many of its standard errors."""


class OffPolicyConfig(BaseModel):
    """Which columns mean what, and when an estimate is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: str = "product_id"
    """Column of what was chosen."""
    propensity: str = "propensity"
    """Column of the chance with which the logging policy chose it."""
    reward: str = "clicked"
    """Column of what it earned."""
    context: tuple[str, ...] = ()
    """Columns on which both policies depend, such as position and campaign."""
    cluster: str | None = None
    """Column of the unit of chance for the intervals, such as user_id; rows if None."""
    largest_weight: float = Field(default=10.0, gt=0)
    """Where ``clipped`` cuts the weights."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    limits: SupportLimits = SupportLimits()
    """Of support; below them the estimate is refused."""
