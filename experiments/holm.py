"""Holm's rule: many comparisons at once, with intervals that agree with the tests.

Shape letters: M members of a family of comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ranking.intervals import Estimate


@dataclass(frozen=True, kw_only=True)
class HolmResult:
    """One member of a family after Holm's adjustment."""

    value: float
    """The estimate."""
    low: float
    """Lower end of its interval at its own level."""
    high: float
    """Upper end of it."""
    p_value: float
    """Adjusted; compare with 1 - confidence."""
    rejected: bool
    """Whether the difference is claimed; exactly then the interval excludes zero."""

    def turned(self) -> HolmResult:
        """Return the same comparison seen from the other side."""
        return HolmResult(
            value=-self.value,
            low=-self.high,
            high=-self.low,
            p_value=self.p_value,
            rejected=self.rejected,
        )


def holm(estimates: Sequence[Estimate], confidence: float = 0.95) -> list[HolmResult]:
    """Adjust a family of estimates for being many, by Holm's step-down rule.

    With p-values ascending, the k-th of M is rejected if it and all before it pass
    p ≤ α / (M - k + 1). Its interval has the level 1 - α / (M - k + 1); from the first that fails
    on, all use that one's level, at which none of them can exclude zero (theirs are larger
    p-values). So an interval excludes zero exactly where Holm rejects.

    The tests hold the chance of one false claim in the family at α. The intervals show those tests;
    their joint coverage is not guaranteed beyond that.

    Args:
        estimates: The family, in any order; may be empty.
        confidence: 1 - α.

    Returns:
        One result an estimate, in the order given.

    Raises:
        ValueError: If ``confidence`` is not between 0 and 1.

    Source:
        Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Statist. 6.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, as 0.95")
    alpha = 1 - confidence
    p_M = np.array([estimate.p_value for estimate in estimates])
    results: dict[int, HolmResult] = {}
    largest_adjusted, divisor, failed = 0.0, len(estimates), False
    for place, index in enumerate(np.argsort(p_M, kind="stable")):
        steps = len(estimates) - place
        largest_adjusted = max(largest_adjusted, min(1.0, float(steps * p_M[index])))
        divisor = divisor if failed else steps
        failed = failed or bool(p_M[index] > alpha / steps)
        low, high = estimates[index].interval(1 - alpha / divisor)
        results[int(index)] = HolmResult(
            value=estimates[index].value,
            low=low,
            high=high,
            p_value=largest_adjusted,
            rejected=not failed,
        )
    return [results[index] for index in range(len(estimates))]
