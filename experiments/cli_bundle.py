"""Commands over a bundle alone. They import neither torch nor anything that trains.

``adtower`` comes here before it loads the rest, so they work where only numpy, polars, pydantic,
tyro, rich and onnxruntime (or LightGBM) are installed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table
from rich.text import Text
from tyro.extras import SubcommandApp

from experiments.terminal import (
    JsonFile,
    new_progress,
    print_table,
    run_commands,
    say,
    write_figures,
)
from ranking.serve_config import ServeConfig

if TYPE_CHECKING:
    from ranking.skew import SkewReport

bundle_app = SubcommandApp()

ServeSettings = Annotated[ServeConfig, tyro.conf.arg(name="")]


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
        name, outcome, value, limit, note = check.cells()
        style = "green" if check.passed else "red"
        table.add_row(Text(name), Text(outcome, style), value, limit, Text(note))
    print_table(table)
    write_figures(json, certificate.to_metrics())
    if not certificate.passed:
        say(f"failed: {certificate.failures}")
        raise SystemExit(1)
    say(f"all {len(certificate.checks)} checks passed")


@bundle_app.command(name="score")
def score(
    bundle: tyro.conf.Positional[Path],
    table: tyro.conf.Positional[Path],
    out: Path | None = None,
    vectors: Path | None = None,
    json: JsonFile = None,
) -> None:
    """Score a parquet table of impressions with a bundle, in parts of bounded memory.

    The result appears whole or not at all. An interrupted job goes on when its command is
    repeated.

    Args:
        bundle: Folder that `adtower export` made.
        table: Parquet with time, user_id, query_id, product_id and the feature columns; a column
            query gives texts for queries without a vector.
        out: Parquet to write; by default TABLE.scored.parquet.
        vectors: For a bundle that points to its vectors: the folder with the stores `products`
            and `queries`.
        json: Also write the number of rows and the mean pCTR there.
    """
    from ranking.batch_score import score_parquet
    from ranking.score import Scorer

    scorer = Scorer.load(bundle, vectors=vectors)
    with new_progress().stage(f"scoring {table.name}") as report:
        scored = score_parquet(
            scorer,
            table,
            out or table.with_suffix(".scored.parquet"),
            progress=lambda done, rows: report(done, rows, f"{done} of {rows} rows"),
        )
    say(f"{scored.rows} rows scored, mean pCTR {scored.mean_p_click:.4f}: {scored.path}")
    write_figures(json, {"rows": float(scored.rows), "mean_p_click": scored.mean_p_click})


@bundle_app.command(name="serve")
def serve(
    bundle: tyro.conf.Positional[Path],
    config: ServeSettings = ServeConfig(),  # noqa: B008
) -> None:
    """Serve a bundle over HTTP: Open Inference Protocol v2, plain requests, health, metrics.

    A changed folder or link, or SIGHUP, brings in a new bundle without dropping a request; a bad
    one is refused. SIGTERM lets requests under way finish.

    Args:
        bundle: Folder that `adtower export` made, or a link to one.
        config: Address and limits.
    """
    try:
        from ranking.serve_process import serve as run_server
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the package {error.name!r} is not installed; serving needs the extra: "
            "pip install 'adtower[serve]'"
        ) from error
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s: %(message)s")
    logging.getLogger("adtower.serve").setLevel(logging.INFO)
    run_server(
        bundle,
        config,
        started=lambda url, live: say(
            f"serving {live.current.scorer.manifest.name} {live.current.version} at {url}"
        ),
    )


@bundle_app.command(name="skew")
def skew(
    bundle: tyro.conf.Positional[Path],
    log: tyro.conf.Positional[Path],
    vectors: Path | None = None,
    json: JsonFile = None,
) -> None:
    """Replay a log of served requests and report what differs offline; status 1 if anything does.

    Args:
        bundle: Folder that `adtower export` made.
        log: JSON lines that `adtower serve --log` wrote.
        vectors: For a bundle that points to its vectors: the folder with the stores `products`
            and `queries`.
        json: Also write the counts, shares and largest differences there, flat.
    """
    from ranking.score import Scorer
    from ranking.skew import find_skew

    with new_progress().stage(f"replaying {log.name}"):
        report = find_skew(Scorer.load(bundle, vectors=vectors), log)
    _print_skew(report)
    write_figures(json, report.to_metrics())
    if not report.clean:
        raise SystemExit(1)


@bundle_app.command(name="mlflow")
def mlflow(bundle: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> None:
    """Write a bundle as an MLflow model of code and data, without pickle.

    Args:
        bundle: Folder that `adtower export` made.
        out: Folder of the model; it must not exist. `mlflow models serve` answers with it.
    """
    from ranking.mlflow_model import save_mlflow_model

    say(f"MLflow model: {save_mlflow_model(bundle, out)}")


@bundle_app.command(name="triton")
def triton(
    bundle: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    name: str = "adtower",
    max_batch_size: int = 1024,
) -> None:
    """Lay a bundle's network out as a model repository of the Triton Inference Server.

    Triton runs the graph alone; whoever calls it computes the features.

    Args:
        bundle: Folder that `adtower export` made, of one network.
        out: Folder of the repository; it must not exist.
        name: Of the model in Triton.
        max_batch_size: Candidates of one batch.
    """
    from ranking.triton import write_triton

    say(f"model repository: {write_triton(bundle, out, name=name, max_batch_size=max_batch_size)}")


BUNDLE_COMMANDS: dict[str, Callable[..., None]] = {
    "verify": verify,
    "score": score,
    "serve": serve,
    "skew": skew,
    "mlflow": mlflow,
    "triton": triton,
}
"""All of the above; ``experiments.__main__`` names them too."""


def _print_skew(report: SkewReport) -> None:
    table = Table("feature", "values", "differ", "share", "largest", "line", "product", "served",
                  "offline")  # fmt: skip
    for found in report.skewed:
        example = found.example
        assert example is not None
        largest = found.largest_difference
        table.add_row(
            Text(found.name),
            str(found.values),
            str(found.differing),
            f"{found.share:.2%}",
            "" if largest is None else f"{largest:.3g}",
            str(example.line),
            Text(example.product_id or ""),
            Text(f"{example.served!r:.30}"),
            Text(f"{example.offline!r:.30}"),
        )
    if report.skewed:
        print_table(table)
    for reason, count in report.refused.items():
        say(f"{count} requests cannot be scored offline: {reason}")
    if report.other_bundle:
        say(f"{report.other_bundle} of {report.requests} requests were answered by another bundle")
    verdict = "no skew" if report.clean else f"{len(report.skewed)} of them skewed"
    say(
        f"{report.requests} requests, {report.candidates} candidates, {len(report.features)} "
        f"features and scores compared: {verdict}"
    )


def main() -> None:
    """Run one of these commands. Mistakes of the caller end with a message and status 2."""
    run_commands(bundle_app)
