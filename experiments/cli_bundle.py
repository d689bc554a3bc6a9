"""Commands over a bundle alone. They import neither torch nor anything that trains.

``adtower`` comes here before it loads the rest, so they work where only numpy, polars, pydantic,
tyro, rich and onnxruntime (or LightGBM) are installed.
"""

from __future__ import annotations

from pathlib import Path

import tyro
from rich.table import Table
from rich.text import Text
from tyro.extras import SubcommandApp

from experiments.terminal import JsonFile, print_table, run_commands, say, write_figures

bundle_app = SubcommandApp()


@bundle_app.command(name="verify")
def verify(
    bundle: tyro.conf.Positional[Path], vectors: Path | None = None, json: JsonFile = None
) -> None:
    """Check a bundle: files, golden scores, refusals, latency; status 1 if any check fails.

    Args:
        bundle: Folder that `adtower export` made.
        vectors: For a bundle that points to its vectors: the folder with the stores `products`
            and `queries`.
        json: Also write the figures there, flat; `passed` is 1 or 0.
    """
    from ranking.certificate import verify_bundle

    certificate = verify_bundle(bundle, vectors=vectors)
    table = Table("check", "", "value", "limit", "note", title=str(bundle))
    for check in certificate.checks:
        table.add_row(
            Text(check.name),
            "[green]passed[/]" if check.passed else "[red]failed[/]",
            "" if check.value is None else f"{check.value:.3g}",
            "" if check.limit is None else f"{check.limit:.3g}",
            Text(check.note if len(check.note) <= 90 else f"{check.note[:89]}…"),
        )
    print_table(table)
    write_figures(json, certificate.to_metrics())
    if not certificate.passed:
        say(f"failed: {certificate.failures}")
        raise SystemExit(1)
    say(f"all {len(certificate.checks)} checks passed")


def main() -> None:
    """Run one of these commands. Mistakes of the caller end with a message and status 2."""
    run_commands(bundle_app)
