"""``adtower verify-sharding`` and ``adtower plan``: training beyond one process."""

from __future__ import annotations

from typing import Annotated

import tyro
from rich.table import Table

from experiments.config import RunConfig
from experiments.plan_config import PlanConfig
from experiments.terminal import (
    JsonFile,
    new_progress,
    print_figures,
    print_table,
    say,
    write_figures,
)


def verify_sharding(
    config: Annotated[RunConfig, tyro.conf.arg(name="")],
    ranks: int = 2,
    steps: int = 200,
    column_wise: tuple[str, ...] = (),
    json: JsonFile = None,
) -> None:
    """Train on one rank and on many, and compare every weight; status 1 if they differ.

    Nothing is left in --out.

    Args:
        config: As for `adtower train`; the first of --variants is compared.
        ranks: Processes on this machine.
        steps: Compared after so many, an epoch at most.
        column_wise: Features whose tables are split by columns.
        json: Also write the figures there, flat.
    """
    from experiments.verify_sharding import TOLERANCE
    from experiments.verify_sharding import verify_sharding as verify

    verdict = verify(
        config, ranks=ranks, steps=steps, column_wise=column_wise, progress=new_progress()
    )
    print_figures(f"one rank against {ranks}", verdict.to_metrics())
    write_figures(json, verdict.to_metrics())
    if not verdict.agrees:
        say(f"weights differ by more than {TOLERANCE:g}, or a checkpoint came back changed")
        raise SystemExit(1)
    say(
        f"{ranks} ranks give what one gives that sums in {ranks} parts, to "
        f"{verdict.weight_difference:.1e} (one that sums over whole batches: "
        f"{verdict.whole_batch_difference:.1e})"
    )


def plan(
    config: Annotated[PlanConfig, tyro.conf.arg(name="")] = PlanConfig(),  # noqa: B008
    json: JsonFile = None,
) -> None:
    """Say whether one machine is enough, how tables would be sharded, and how long a pass takes.

    Args:
        config: Tables, rows and the machine.
        json: Also write the figures there, flat.
    """
    from experiments.capacity_plan import make_plan

    with new_progress().stage("planning, and timing a few steps"):
        made = make_plan(config)
    if made.feasible:
        table = Table("table", "rows of a part", "sharding", "ranks")
        for name, sharding, held, rows in made.by_table():
            table.add_row(name, f"{rows:,}", sharding, held)
        print_table(table)
    say(made.verdict())
    if made.measured:
        on = "one process" if config.ranks == 1 else "two ranks that share this machine"
        say(f"the speed was measured here, on {on}; --rows-per-second names another")
    write_figures(json, made.to_metrics())
    if not made.feasible:
        raise SystemExit(1)


SHARDING_COMMANDS = {"verify-sharding": verify_sharding, "plan": plan}
