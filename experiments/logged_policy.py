"""Off-policy evaluation of tables: a log with propensities, and the policy that is asked about.

Shape letters: N logged choices, X contexts, A actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.off_policy import (
    Estimate,
    Support,
    clipped_ips,
    cross_fitted_rewards,
    doubly_robust,
    importance_weights,
    ips,
    snips,
    support_of,
)
from experiments.off_policy_config import OffPolicyConfig

PROBABILITY_TOLERANCE = 1e-3
"""The target's probabilities of a context may sum to 1 within this."""


@dataclass(frozen=True, kw_only=True)
class OffPolicyResult:
    """What the target policy would have earned, and how much of the log says so."""

    estimates: tuple[Estimate, ...]
    support: Support
    logged_reward: float
    """The logging policy's own mean reward."""
    truth: Estimate | None
    """The target policy's mean reward in a log of its own, where there is one."""

    def to_metrics(self) -> dict[str, float]:
        """Return all figures, flat."""
        named = [*self.estimates, *([self.truth] if self.truth else [])]
        figures = {
            f"{estimate.name}.{key}": getattr(estimate, key)
            for estimate in named
            for key in ("value", "low", "high")
        }
        figures |= {
            f"{estimate.name}.difference{part}": getattr(estimate, f"difference{part}")
            for estimate in self.estimates
            for part in ("", "_low", "_high")
        }
        support = {
            f"support.{each.name}": float(getattr(self.support, each.name))
            for each in fields(Support)
        }
        return {**figures, **support, "logged.value": self.logged_reward}


def evaluate_policy(
    log: pl.DataFrame,
    target: pl.DataFrame,
    config: OffPolicyConfig | None = None,
    *,
    target_log: pl.DataFrame | None = None,
) -> OffPolicyResult:
    """Estimate the mean reward that a target policy would have had in place of the logging one.

    Args:
        log: One row a choice: action, propensity, reward, context, [cluster].
        target: The target policy: context, action, probability, one row a choice it may make.
        config: Columns and limits.
        target_log: A log of the target policy itself; its mean reward is shown beside.

    Raises:
        ValueError: If a column is missing or holds what it may not, the target's probabilities do
            not sum to 1 in a context, a context of the log is unknown to the target, or the log
            does not support the target; the message names the limit.
    """
    config = config or OffPolicyConfig()
    keys = [*config.context, config.action]
    _need(log, [*keys, config.propensity, config.reward, *_cluster(config)], "the log")
    _need(target, [*keys, "probability"], "the target policy")
    reward_N = _numbers(log, config.reward)
    chance_N, unsupported, coded = _joined(log, target, config)
    weight_N = importance_weights(chance_N, _numbers(log, config.propensity))
    support = support_of(weight_N, reward_N, unsupported)
    passed = support.violations(config.limits)
    if passed:
        raise ValueError(
            "the log does not support this policy, so nothing is estimated: "
            + "; ".join(passed)
            + ". Log more choices, explore more, or ask about a policy closer to the logged one"
        )
    units_N = None if config.cluster is None else log[config.cluster].to_numpy()
    sure = config.confidence
    expected = cross_fitted_rewards(coded.context_N, coded.action_N, reward_N, coded.target_XA)
    truth = None
    if target_log is not None:
        _need(target_log, [config.reward, *_cluster(config)], "the target policy's log")
        own_N = _numbers(target_log, config.reward)
        units = None if config.cluster is None else target_log[config.cluster].to_numpy()
        alone = ips(np.ones(len(own_N)), own_N, cluster_N=units, confidence=sure)
        truth = Estimate(**{**vars(alone), "name": "target_log"})
    return OffPolicyResult(
        estimates=(
            ips(weight_N, reward_N, cluster_N=units_N, confidence=sure),
            snips(weight_N, reward_N, cluster_N=units_N, confidence=sure),
            clipped_ips(
                weight_N,
                reward_N,
                largest=config.largest_weight,
                cluster_N=units_N,
                confidence=sure,
            ),
            doubly_robust(weight_N, reward_N, *expected, cluster_N=units_N, confidence=sure),
        ),
        support=support,
        logged_reward=float(reward_N.mean()),
        truth=truth,
    )


def policy_of_log(log: pl.DataFrame, config: OffPolicyConfig) -> pl.DataFrame:
    """Read a policy off its own log: how often each action was taken in each context.

    Returns:
        context, action, probability; the probabilities of a context sum to 1.
    """
    keys = [*config.context, config.action]
    _need(log, keys, "the target policy's log")
    counted = log.group_by(keys).len("rows")
    total = pl.col("rows").sum()
    if config.context:
        total = total.over(list(config.context))
    return counted.with_columns(probability=pl.col("rows") / total).drop("rows").sort(keys)


def read_table(path: Path) -> pl.DataFrame:
    """Read a parquet or csv table."""
    if not path.is_file():
        raise ValueError(f"{path} is no file; give a parquet or csv table")
    return pl.read_csv(path) if path.suffix == ".csv" else pl.read_parquet(path)


@dataclass(frozen=True, kw_only=True)
class _Coded:
    context_N: NDArray[np.int64]
    action_N: NDArray[np.int64]
    target_XA: NDArray[np.float64]


def _joined(
    log: pl.DataFrame, target: pl.DataFrame, config: OffPolicyConfig
) -> tuple[NDArray[np.float64], float, _Coded]:
    """The target's chance of each logged action, its unsupported share, and both as codes."""
    context = list(config.context)
    whole = [] if context else [pl.lit(0).alias("_context")]
    by = context or ["_context"]
    target, log = target.with_columns(whole), log.with_columns(whole)
    keys = [*by, config.action]
    twice = target.select(keys).is_duplicated()
    if twice.any():
        row = target.select(keys).filter(twice).row(0)
        raise ValueError(f"the target policy names {dict(zip(keys, row, strict=True))} twice")
    sums = target.group_by(by).agg(pl.col("probability").sum())
    wrong = sums.filter((pl.col("probability") - 1).abs() > PROBABILITY_TOLERANCE)
    if len(wrong):
        where = dict(zip(by, wrong.select(by).row(0), strict=True)) if context else "all rows"
        raise ValueError(
            f"the target policy's probabilities sum to {wrong['probability'][0]:.4f} in {where}; "
            "they must sum to 1 in each context"
        )
    seen = log.select(by).unique()
    unknown = seen.join(sums, on=by, how="anti")
    if len(unknown):
        raise ValueError(
            f"the log has the context {dict(zip(by, unknown.row(0), strict=True))}, for which the "
            f"target policy says nothing ({len(unknown)} of {len(seen)} contexts)"
        )
    contexts = seen.sort(by).with_row_index("_x")
    actions = pl.concat([log[config.action], target[config.action]]).unique().sort()
    action_codes = pl.DataFrame({config.action: actions}).with_row_index("_a")
    rows = (
        log.select(keys)
        .join(contexts, on=by, how="left", maintain_order="left")
        .join(action_codes, on=config.action, how="left", maintain_order="left")
    )
    cells = target.join(contexts, on=by).join(action_codes, on=config.action)
    target_XA = np.zeros((len(contexts), len(actions)))
    target_XA[cells["_x"].to_numpy(), cells["_a"].to_numpy()] = cells["probability"].to_numpy()
    context_N, action_N = (rows[code].to_numpy().astype(np.int64) for code in ("_x", "_a"))
    logged_XA = np.zeros_like(target_XA, dtype=bool)
    logged_XA[context_N, action_N] = True
    missed_X = np.where(logged_XA, 0.0, target_XA).sum(1)
    return (
        target_XA[context_N, action_N],
        float(missed_X[context_N].mean()),
        _Coded(context_N=context_N, action_N=action_N, target_XA=target_XA),
    )


def _need(table: pl.DataFrame, columns: Sequence[str], what: str) -> None:
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(
            f"{what} has no column {missing[0]!r}; it has {', '.join(table.columns)}. Name the "
            "columns with --action, --propensity, --reward, --context, --cluster"
        )
    if not len(table):
        raise ValueError(f"{what} has no rows")


def _cluster(config: OffPolicyConfig) -> list[str]:
    return [] if config.cluster is None else [config.cluster]


def _numbers(table: pl.DataFrame, column: str) -> NDArray[np.float64]:
    values = table[column]
    if not (values.dtype.is_numeric() or values.dtype == pl.Boolean):
        raise ValueError(f"column {column!r} holds {values.dtype}, not numbers")
    number_N = values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    if not np.isfinite(number_N).all():
        row = int(np.flatnonzero(~np.isfinite(number_N))[0])
        raise ValueError(f"column {column!r} is missing or not finite in row {row}")
    return number_N
