"""A test of the A/B test itself: many experiments whose truth is known, and what is said of them.

Each experiment is a new market with new users. The A/A test compares the control with itself, the
A/B test with a better model; both go through the estimators that ``adtower simulate`` uses.

Shape letters: E experiments.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy import stats

from experiments.ab_counts import (
    METRICS,
    Counts,
    by_look,
    by_user,
    defined_metrics,
    merge_arms,
    true_lift,
)
from experiments.ab_measures import (
    assign_users,
    look_often,
    measure,
    plan_metrics,
    variance_reduction,
)
from experiments.always_valid import LOOKS
from experiments.self_test_market import (
    CONTROL_NOISE,
    REQUESTS,
    TREATMENT_NOISE,
    TRUTH_PERIODS,
    SmallMarket,
)

ALPHA = 0.05
USUAL = 1.959964
"""Standard errors of a usual 95% interval."""
FALSE_POSITIVES = (0.035, 0.065)
COVERAGE = (0.935, 0.965)
"""Limits over 2,000 experiments or more: three standard errors around what is claimed."""
FULL = 2000
STORED = Path(__file__).with_name("self_test.json")
"""What ``adtower simulate --selftest --out`` wrote for this version, with 2,000 experiments."""
CUPED_METRIC = "ctr"
"""Its past foretells it most, in the markets of the self-test."""


@dataclass(frozen=True, kw_only=True)
class MetricHonesty:
    """What the figures of one metric are worth."""

    false_positive_rate: float
    """Share of A/A tests with p < 0.05."""
    coverage: float
    """Share of A/B tests whose 95% interval holds the true lift."""
    sequential_false_positive_rate: float
    """Share of A/A tests in which any of 19 always-valid intervals excludes zero."""
    naive_sequential_false_positive_rate: float
    """The same of usual intervals, looked at 19 times: what the sequence is for."""
    power: float
    """Share of A/B tests with p < 0.05."""
    predicted_power: float
    """Mean of what their pre-periods predicted for the true lift."""
    p_uniformity: float
    """Kolmogorov-Smirnov p-value of the A/A tests' p-values against the uniform."""
    cuped_false_positive_rate: float
    cuped_coverage: float
    cuped_power: float
    cuped_variance_reduction: float
    """Mean share of the lift's variance that the users' past takes away."""


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """Every metric's honesty over many experiments."""

    experiments: int
    """Of either kind."""
    metrics: dict[str, MetricHonesty]

    def to_metrics(self) -> dict[str, float]:
        """Return ``METRIC.FIGURE``, flat; figures of CUPED under ``METRIC.cuped.FIGURE``."""
        out = {
            f"{name}.{key.replace('cuped_', 'cuped.', 1)}": value
            for name, honesty in self.metrics.items()
            for key, value in asdict(honesty).items()
        }
        useful = self.metrics[CUPED_METRIC].cuped_variance_reduction
        return out | {"cuped.variance_reduction": useful, "experiments": float(self.experiments)}

    def to_json(self) -> str:
        """Return the figures as JSON; ``from_json`` gives back an equal record."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SelfTest:
        """Read what ``to_json`` wrote."""
        data = json.loads(text)
        metrics = {name: MetricHonesty(**figures) for name, figures in data["metrics"].items()}
        return cls(experiments=data["experiments"], metrics=metrics)

    @classmethod
    def stored(cls) -> SelfTest | None:
        """Return the figures that come with this version, for reports; None where none do."""
        return cls.from_json(STORED.read_text(encoding="utf-8")) if STORED.is_file() else None

    def failures(self) -> list[str]:
        """Return what is outside its limits, in words; empty if the test is honest."""
        # Fewer experiments tell less: chance alone must not call a sound test dishonest.
        wider = max(1.0, math.sqrt(FULL / self.experiments))

        def limits_of(limits: tuple[float, float]) -> tuple[float, float]:
            centre, half = (limits[0] + limits[1]) / 2, (limits[1] - limits[0]) / 2
            return centre - wider * half, centre + wider * half

        false_positives, coverage = limits_of(FALSE_POSITIVES), limits_of(COVERAGE)
        most = ALPHA + false_positives[1] - FALSE_POSITIVES[1]
        found = []
        for name, honesty in self.metrics.items():
            for figure, limits in (
                ("false_positive_rate", false_positives),
                ("cuped_false_positive_rate", false_positives),
                ("coverage", coverage),
                ("cuped_coverage", coverage),
                ("sequential_false_positive_rate", (0.0, most)),
            ):
                value = getattr(honesty, figure)
                if not limits[0] <= value <= limits[1]:
                    found.append(
                        f"{name} {figure} is {value:.3f}, not {limits[0]:.3f} to {limits[1]:.3f}"
                    )
        useful = self.metrics[CUPED_METRIC].cuped_variance_reduction
        if useful < 0.3:
            found.append(f"CUPED takes {useful:.0%} of the variance of {CUPED_METRIC}, not 30%")
        return found

    def verdict(self) -> str:
        """Say in a sentence whether the test is honest."""
        failures = self.failures()
        if failures:
            return f"Not honest over {self.experiments:,} experiments: {'; '.join(failures)}."
        return (
            f"Honest over {self.experiments:,} A/A and {self.experiments:,} A/B tests: every "
            "metric's false positives, coverage and sequential false positives are within limits."
        )

    def table(self) -> Table:
        """Return a rich table, one row a metric."""
        columns = {
            "false positives": "false_positive_rate",
            "coverage": "coverage",
            "any of 19 looks": "sequential_false_positive_rate",
            "naive looks": "naive_sequential_false_positive_rate",
            "power": "power",
            "predicted": "predicted_power",
            "p uniform": "p_uniformity",
            "CUPED false pos.": "cuped_false_positive_rate",
            "coverage ": "cuped_coverage",
            "power ": "cuped_power",
            "variance less": "cuped_variance_reduction",
        }
        table = Table("metric", *columns, title=f"Self-test, {self.experiments:,} experiments")
        for name, honesty in self.metrics.items():
            table.add_row(name, *(f"{getattr(honesty, c):.3f}" for c in columns.values()))
        return table


def run_self_test(
    experiments: int = 2000,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> SelfTest:
    """Run that many A/A and A/B tests and say how honest their figures are.

    Args:
        experiments: At least 20; 2,000 tell 5% from 6.5% with three standard errors.
        seed: The same seed gives the same figures.
        progress: Told how many are done.

    Raises:
        ValueError: If there are fewer than 20 experiments.
    """
    if experiments < 20:
        raise ValueError(
            f"experiments is {experiments}; at least 20 are needed to tell anything of a rate"
        )
    columns: dict[str, list[dict[str, float]]] = {name: [] for name in METRICS}
    for number in range(experiments):
        for name, figures in _experiment(seed * 1_000_003 + number).items():
            columns[name].append(figures)
        if progress is not None:
            progress(number + 1)
    return SelfTest(
        experiments=experiments,
        metrics={
            name: _summarise({key: np.array([row[key] for row in rows]) for key in rows[0]})
            for name, rows in columns.items()
            if rows
        },
    )


def _experiment(seed: int) -> dict[str, dict[str, float]]:
    """One A/A and one A/B test on the same users and requests, metric by metric."""
    market = SmallMarket.draw(seed)
    before, during = (market.world.draw_requests(REQUESTS, period) for period in (1, 2))
    user_U, user_R = np.unique(during.user_R, return_inverse=True)
    treated_U = assign_users(market.world.state.user_id_U[user_U].tolist(), f"self-test {seed}")
    everybody = len(market.world.state.user_id_U)
    _, past_R = market.serve(before, CONTROL_NOISE, market.draws(1))
    earlier_U = {k: v[user_U] for k, v in by_user(past_R, before.user_R, everybody).items()}
    plans = plan_metrics(earlier_U, alpha=ALPHA)
    draws = market.draws(2)
    _, seen_c = market.serve(during, CONTROL_NOISE, draws)
    _, seen_t = market.serve(during, TREATMENT_NOISE, draws)
    true = _true_lifts(market)
    nothing = dict.fromkeys(METRICS, 0.0)

    same_U = by_user(seen_c, user_R, len(user_U))
    mixed_U = by_user(merge_arms(seen_c, seen_t, treated_U[user_R]), user_R, len(user_U))
    aa, _ = measure(same_U, treated_U, true=nothing)
    aa_cuped, _ = measure(same_U, treated_U, true=nothing, earlier_U=earlier_U)
    ab, _ = measure(mixed_U, treated_U, true=true)
    ab_cuped, _ = measure(mixed_U, treated_U, true=true, earlier_U=earlier_U)
    seen_LU = by_look(seen_c, user_R, len(user_U), LOOKS)
    looks = look_often(seen_LU, treated_U, plans, alpha=ALPHA)
    return {
        name: {
            "p": aa[name].p_value,
            "covered": ab[name].low <= true[name] <= ab[name].high,
            "found": ab[name].p_value < ALPHA,
            "predicted": plans[name].power_at(true[name]),
            "stopped": any(look.low > 0 or look.high < 0 for look in looks[name]),
            "stopped_naively": any(
                abs(math.log1p(look.lift)) > USUAL * look.error for look in looks[name]
            ),
            "cuped_p": aa_cuped[name].p_value,
            "cuped_covered": ab_cuped[name].low <= true[name] <= ab_cuped[name].high,
            "cuped_found": ab_cuped[name].p_value < ALPHA,
            "cuped_less": variance_reduction(ab[name], ab_cuped[name]),
        }
        for name in METRICS
        if name in aa_cuped and name in ab_cuped and name in plans
    }


def _true_lifts(market: SmallMarket) -> dict[str, float]:
    """Every metric's lift in expectation, over requests of the same users that no test saw.

    An interval speaks of the traffic that an experiment's requests were drawn from. Held against
    the lift of those very requests it would cover too often wherever requests differ in how much
    they gain (Neyman 1923: the variance of a randomised comparison is then overstated).
    """
    numbers = range(3, 3 + TRUTH_PERIODS)
    periods = [market.world.draw_requests(REQUESTS, number) for number in numbers]
    control, treatment = (
        _joined([market.expect(requests, noise) for requests in periods])
        for noise in (CONTROL_NOISE, TREATMENT_NOISE)
    )
    return {n: true_lift(n, control, treatment) for n in defined_metrics(control, treatment)}


def _joined(parts: list[Counts]) -> Counts:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _summarise(column: dict[str, NDArray]) -> MetricHonesty:
    return MetricHonesty(
        false_positive_rate=float((column["p"] < ALPHA).mean()),
        coverage=float(column["covered"].mean()),
        sequential_false_positive_rate=float(column["stopped"].mean()),
        naive_sequential_false_positive_rate=float(column["stopped_naively"].mean()),
        power=float(column["found"].mean()),
        predicted_power=float(column["predicted"].mean()),
        p_uniformity=float(stats.kstest(column["p"], "uniform").pvalue),
        cuped_false_positive_rate=float((column["cuped_p"] < ALPHA).mean()),
        cuped_coverage=float(column["cuped_covered"].mean()),
        cuped_power=float(column["cuped_found"].mean()),
        cuped_variance_reduction=float(column["cuped_less"].mean()),
    )
