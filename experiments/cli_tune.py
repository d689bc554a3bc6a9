"""``adtower tune``: a search for the settings of the click model."""

from __future__ import annotations

from typing import Annotated

import tyro

from experiments.terminal import JsonFile, new_progress, print_figures, say, write_figures
from experiments.tune_config import TuneConfig


def tune(
    config: Annotated[TuneConfig, tyro.conf.arg(name="")],
    json: JsonFile = None,
) -> None:
    """Search settings of the click model with Optuna, on validation rows; test rows stay unread.

    Prints the best settings as flags. A search that was cut off goes on when its command is
    repeated, and with more --trials it adds to those it has.

    Args:
        config: Settings of the search.
        json: Also write the figures there, flat.
    """
    from experiments.tune import tune as search

    result = search(config, new_progress())
    print_figures(f"{result.trials} trials, validation rows", result.to_metrics())
    say(f"best settings: {result.flags()}")
    write_figures(json, result.to_metrics())


TUNE_COMMANDS = {"tune": tune}
