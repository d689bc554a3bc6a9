"""Commands that compare variants, and that keep what came of it in MLflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro
from tyro.extras import SubcommandApp

from experiments.agreement_config import AgreementConfig
from experiments.config import RunConfig
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
    from experiments.on_ranks import led_by_the_first_rank

    with led_by_the_first_rank(config.out) as leads:
        if leads:
            comparison = commands.compare(config, new_progress(), placebos=placebos)
            print_comparison(comparison)
            say(f"report: {config.out / 'report.html'}")
            write_figures(json, comparison.to_metrics())


def join(
    run_folders: tyro.conf.Positional[tuple[Path, ...]],
    confidence: float = 0.95,
    json: JsonFile = None,
) -> None:
    """Compare the variants of several finished runs on the same data, as if they were one run.

    Args:
        run_folders: Two runs or more; the first one's `production` is the baseline.
        confidence: Of the intervals.
        json: Also write the figures there, flat.
    """
    from experiments.joined_runs import join_runs

    comparison = join_runs(run_folders, new_progress(), confidence=confidence)
    print_comparison(comparison)
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


def register(
    run_folder: tyro.conf.Positional[Path],
    name: tyro.conf.Positional[str],
    variant: str | None = None,
    bundle: Path | None = None,
) -> None:
    """Register a variant of a run with MLflow, as champion if it ships and as challenger if not.

    Args:
        run_folder: Folder of a run that compared variants and was tracked.
        name: Of the registered model; `models:/NAME@champion` is what to serve.
        variant: Which one; by default the best that ships, else the best candidate.
        bundle: What `adtower export` wrote of it; by default it is exported now, to
            RUN_FOLDER/bundles/VARIANT.
    """
    from experiments import commands
    from experiments.model_registry import choose, read_comparison, register_run

    chosen, _ = choose(read_comparison(run_folder), variant)
    if bundle is None:
        bundle = run_folder / "bundles" / chosen
        if not bundle.is_dir():
            commands.export(run_folder, bundle, variants=[chosen], progress=new_progress())
    registered = register_run(run_folder, bundle, name, chosen)
    say(f"{registered.uri}: version {registered.version}, {chosen}: {registered.why}")
    if registered.before is not None:
        say(f"until now {registered.alias} was version {registered.before}")


track_app = SubcommandApp()


@track_app.command(name="replay")
def track_replay(run_folder: tyro.conf.Positional[Path]) -> None:
    """Send to MLflow what it missed of a run because it could not be reached.

    Args:
        run_folder: Folder of the run.
    """
    from experiments.tracking import replay

    say(f"{replay(run_folder)} records sent")


COMPARE_COMMANDS: dict[str, Callable[..., None]] = {
    "compare": compare,
    "join": join,
    "agreement": agreement,
    "register": register,
}
