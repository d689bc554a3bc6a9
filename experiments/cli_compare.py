"""Commands that compare: variants on one log, and their order over many worlds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import tyro

from experiments.config import RunConfig
from experiments.seed_agreement import AgreementConfig
from experiments.terminal import (
    JsonFile,
    new_progress,
    print_comparison,
    print_table,
    say,
    write_figures,
)

Settings = Annotated[RunConfig, tyro.conf.arg(name="")]
AgreementSettings = Annotated[AgreementConfig, tyro.conf.arg(name="")]


def compare(config: Settings, placebos: bool = True, json: JsonFile = None) -> None:
    """Train a set of variants on the same rows and compare each with `production`.

    The placebos random_vectors and shuffled_vectors join the set by themselves: a vector that does
    not beat them is worth no more than one more id. An interrupted comparison goes on when its
    command is repeated; each variant is trained once a seed.

    Args:
        config: Settings of the run.
        placebos: Put both placebos into the set; without them no verdict is possible.
        json: Also write the figures there, flat.
    """
    from experiments import commands

    comparison = commands.compare(config, new_progress(), placebos=placebos)
    print_comparison(comparison)
    say(f"report: {config.out / 'report.html'}")
    write_figures(json, comparison.to_metrics())


def agreement(config: AgreementSettings, json: JsonFile = None) -> None:
    """Order the variants by AUC, simulated CTR and truth in many worlds; do the orders agree?

    Each seed makes its own world and trains everything in it. A job that was cut off goes on with
    the next world when its command is repeated.

    Args:
        config: Worlds and models.
        json: Also write the figures there, flat.
    """
    from experiments.seed_agreement import seed_agreement

    result = seed_agreement(config, new_progress())
    for table in result.tables():
        print_table(table)
    write_figures(json, result.to_metrics())


COMPARE_COMMANDS: dict[str, Callable[..., None]] = {
    "compare": compare,
    "agreement": agreement,
}
