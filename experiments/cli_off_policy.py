"""``adtower off-policy``: what another policy would have earned, from a log with propensities."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from experiments.off_policy_config import OffPolicyConfig
from experiments.terminal import JsonFile, print_table, say, write_figures


def off_policy(
    log: tyro.conf.Positional[Path],
    target: Path | None = None,
    target_log: Path | None = None,
    config: Annotated[OffPolicyConfig, tyro.conf.arg(name="")] = OffPolicyConfig(),  # noqa: B008
    json: JsonFile = None,
) -> None:
    """Estimate a policy's reward from another policy's log: IPS, SNIPS, clipped, doubly robust.

    Refused, with status 2, where the log does not support the policy.

    Args:
        log: Parquet or csv table, one row a choice: action, propensity, reward, context.
        target: Table of the policy asked about: context, action, probability.
        target_log: A log of that policy; its mean reward is shown beside the estimates, and without
            --target the policy is read off it.
        config: Columns and limits.
        json: Also write the figures there, flat.
    """
    from experiments.logged_policy import evaluate_policy, policy_of_log, read_table

    own = None if target_log is None else read_table(target_log)
    if target is not None:
        policy = read_table(target)
    elif own is not None:
        policy = policy_of_log(own, config)
    else:
        raise ValueError("name the policy that is asked about: --target TABLE or --target-log LOG")
    result = evaluate_policy(read_table(log), policy, config, target_log=own)
    table = Table("estimator", "mean reward", "interval", "against the logging policy", "interval")
    for each in result.estimates:
        table.add_row(
            each.name,
            f"{each.value:.5f}",
            f"[{each.low:.5f}, {each.high:.5f}]",
            f"{each.difference:+.5f}",
            f"[{each.difference_low:+.5f}, {each.difference_high:+.5f}]",
        )
    if result.truth is not None:
        own_mean = result.truth
        interval = f"[{own_mean.low:.5f}, {own_mean.high:.5f}]"
        table.add_row("its own log", f"{own_mean.value:.5f}", interval, "", "")
    print_table(table)
    support = result.support
    say(
        f"logged: {result.logged_reward:.5f}; effective rows {support.effective_rows:.0f} of "
        f"{support.rows}, largest weight {support.largest_weight:.1f}, mean weight "
        f"{support.mean_weight:.3f}, rewarded rows {support.rewarded_rows}"
    )
    write_figures(json, result.to_metrics())


OFF_POLICY_COMMANDS = {"off-policy": off_policy}
