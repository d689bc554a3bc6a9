"""The verb ``adtower simulate``: a simulated A/B test, and a test of the test itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table
from rich.text import Text

from experiments.simulate_config import SimulateConfig
from experiments.terminal import JsonFile, new_progress, print_table, say, write_figures

if TYPE_CHECKING:
    from experiments.interference import BudgetReport

Settings = Annotated[SimulateConfig, tyro.conf.arg(name="ab")]


def simulate(
    run_folder: tyro.conf.Positional[Path | None] = None,
    ab: Settings = SimulateConfig(),  # noqa: B008
    treatment_run: Path | None = None,
    control_bundle: Path | None = None,
    treatment_bundle: Path | None = None,
    data: Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    selftest: bool = False,
    experiments: int = 2000,
    seed: int = 0,
    json: JsonFile = None,
) -> None:
    """Run a simulated A/B test between two variants, runs or bundles, or test the test itself.

    The decision rule is written and hashed before the first impression. The same command gives the
    same figures.

    Args:
        run_folder: Folder of a run with both variants, or with the control's.
        ab: Settings of the test.
        treatment_run: Run of the treatment, if another; trained on the same data.
        control_bundle: Exported bundle in place of a variant.
        treatment_bundle: The same for the treatment.
        data: Simulated dataset whose world is tested in; needed where both arms are bundles.
        out: Folder of the registration and the result; by default RUN/ab/ARMS-SALT. Of a
            self-test, the file for its record.
        overwrite: Discard an earlier experiment in that folder, its registration included.
        selftest: Run many A/A and A/B experiments instead and print how honest the figures are.
        experiments: How many of either kind.
        seed: Of the self-test.
        json: Also write the figures there, flat.
    """
    if selftest:
        _self_test(experiments, seed, out, json)
        return
    from experiments.simulation import simulate_arms

    result, folder = simulate_arms(
        ab,
        run_folder=run_folder,
        treatment_run=treatment_run,
        control_bundle=control_bundle,
        treatment_bundle=treatment_bundle,
        data=data,
        out=out,
        overwrite=overwrite,
        progress=new_progress(),
    )
    print_table(result.table())
    if result.cuped or result.raw:
        print_table(result.other_estimates())
    if result.distortions:
        print_table(result.distortion_table())
    if result.budgets is not None:
        print_table(_budget_table(result.budgets))
    say(result.verdict())
    say(result.decided())
    say(f"result: {folder}")
    write_figures(json, result.to_metrics())


def _self_test(experiments: int, seed: int, out: Path | None, json: Path | None) -> None:
    from experiments.records import write_bytes
    from experiments.self_test import run_self_test

    with new_progress().stage(f"{experiments} A/A and {experiments} A/B tests") as report:
        found = run_self_test(
            experiments,
            seed=seed,
            progress=lambda done: report(done, experiments, f"{done} of {experiments}"),
        )
    print_table(found.table())
    say(found.verdict())
    if out is not None:
        write_bytes(out, found.to_json().encode())
    write_figures(json, found.to_metrics())


def _budget_table(report: BudgetReport) -> Table:
    title = f"Budgets bind ({report.stopped_share:.0%} run out, pacing {report.pacing}): lift"
    table = Table("metric", "users split", "expected", "budgets split", "expected", "true",
                  title=title)  # fmt: skip
    for name, lift in report.user_split.items():
        other = report.budget_split[name]
        table.add_row(
            Text(name),
            Text(f"{lift.lift:+.1%} [{lift.low:+.1%}, {lift.high:+.1%}]"),
            f"{report.user_split_expected[name]:+.1%}",
            Text(f"{other.lift:+.1%} [{other.low:+.1%}, {other.high:+.1%}]"),
            f"{report.budget_split_expected[name]:+.1%}",
            f"{lift.true:+.1%}",
        )
    return table


SIMULATE_COMMANDS: dict[str, Callable[..., None]] = {"simulate": simulate}
"""The verb, for ``experiments.cli``."""
