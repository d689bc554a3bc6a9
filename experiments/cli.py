"""The command line: each verb parses its typed settings, calls ``commands`` and prints."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table
from tyro.extras import SubcommandApp

from experiments.config import AbConfig, EmbedConfig, RunConfig
from experiments.marketplace.parameters import WorldParameters

if TYPE_CHECKING:
    from experiments.compare import Comparison

app = SubcommandApp()
data_app = SubcommandApp()
import_app = SubcommandApp()

JsonFile = Annotated[Path | None, tyro.conf.arg(name="json", metavar="FILE")]
Settings = Annotated[RunConfig, tyro.conf.arg(name="")]
EmbedSettings = Annotated[EmbedConfig, tyro.conf.arg(name="")]


@app.command(name="demo")
def demo(
    out: Path = Path("runs/demo"),
    products: int = 3000,
    requests: int = 60_000,
    seed: int = 0,
    overwrite: bool = False,
    json: JsonFile = None,
) -> None:
    """Make a grocery world and run the whole line on it: what are DashCLIP vectors worth?

    Args:
        out: Folder of the run; the report is OUT/report.html, the world is OUT-world.
        products: Size of the generated catalogue.
        requests: Logged search requests, eight impressions each.
        seed: All randomness derives from it; the same seed gives the same figures.
        overwrite: Replace an earlier demo.
        json: Also write the figures there, flat.
    """
    from experiments import commands

    result = commands.demo(
        out,
        products=products,
        requests=requests,
        seed=seed,
        overwrite=overwrite,
        progress=_progress(),
    )
    _print_run(result)
    _write_json(json, result.metrics)


@app.command(name="run")
def run(config: Settings, json: JsonFile = None) -> None:
    """Run the whole line on a dataset: vectors, features, click models, comparison, A/B, report.

    A dataset without some tables runs what its tables can feed, and says what was left out. An
    interrupted run goes on where it stopped when the same command is given again.

    Args:
        config: Settings of the run.
        json: Also write the figures there, flat.
    """
    from experiments import commands

    result = commands.run(config, _progress())
    _print_run(result)
    _write_json(json, result.metrics)


@app.command(name="embed")
def embed(config: EmbedSettings, json: JsonFile = None) -> None:
    """Train product and query embeddings on a catalogue and judge them, without any click.

    Args:
        config: Settings of the run.
        json: Also write the figures there, flat.
    """
    from experiments import commands

    evaluation = commands.embed(config, _progress())
    _print_evaluation(evaluation)
    _say(f"vectors: {config.out / 'embeddings'}")
    _write_json(json, commands.flat_evaluation(evaluation))


@app.command(name="train")
def train(config: Settings, json: JsonFile = None) -> None:
    """Train pCTR models; prints validation figures and leaves the test rows alone.

    Args:
        config: Settings of the run; --variants production trains the model without vectors.
        json: Also write the figures there, flat.
    """
    from experiments import commands

    result = commands.train(config, _progress())
    _print_measures(
        "validation rows",
        _nested(result.metrics),
        ("validation_auc", "validation_log_loss", "validation_normalized_entropy", "fit_seconds"),
    )
    _say(f"models: {result.folder / 'variants'}")
    _write_json(json, result.metrics)


@app.command(name="evaluate")
def evaluate(run_folder: tyro.conf.Positional[Path], json: JsonFile = None) -> None:
    """Measure the click models of a run offline, on its test rows.

    Args:
        run_folder: Folder that `adtower run`, `train` or `compare` made.
        json: Also write the figures there, flat, slices included.
    """
    from experiments import commands

    results = commands.evaluate(run_folder, _progress())
    _print_measures(
        "test rows",
        results,
        (
            "auc",
            "auc_low",
            "auc_high",
            "grouped_auc",
            "log_loss",
            "normalized_entropy",
            "calibration_ratio",
            "slice.cold_products.auc",
            "slice.tail_queries.auc",
        ),
    )
    _write_json(json, {f"{n}.{k}": v for n, values in results.items() for k, v in values.items()})


@app.command(name="compare")
def compare(config: Settings, json: JsonFile = None) -> None:
    """Train a set of variants on the same rows and compare each with `production`.

    Keep the placebos random_vectors and shuffled_vectors in the set: a vector that does not beat
    them is worth no more than one more id.

    Args:
        config: Settings of the run.
        json: Also write the figures there, flat.
    """
    from experiments import commands

    comparison = commands.compare(config, _progress())
    _print_comparison(comparison)
    _say(f"report: {config.out / 'report.html'}")
    _write_json(json, comparison.to_metrics())


@app.command(name="simulate")
def simulate(
    run_folder: tyro.conf.Positional[Path],
    ab: Annotated[AbConfig | None, tyro.conf.arg(name="")] = None,
    json: JsonFile = None,
) -> None:
    """Run a simulated A/B test between two variants of a run on simulated data.

    Args:
        run_folder: Folder of a run with both variants.
        ab: Settings of the test.
        json: Also write the figures there, flat.
    """
    from experiments import commands

    result = commands.simulate(run_folder, ab, _progress())
    Console().print(result.table())
    _say(result.verdict())
    _write_json(json, result.to_metrics())


@app.command(name="export")
def export(
    run_folder: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    variant: str | None = None,
) -> None:
    """Export a variant as a bundle: ONNX, transforms, vectors and checksums in one folder.

    The bundle's scores are compared with the trained model's (batch 1, unknown ids, empty
    history); if they differ, nothing is written.

    Args:
        run_folder: Folder of a run.
        out: The bundle's folder; it must not exist.
        variant: Which variant; by default the neural one with the lowest validation log loss.
    """
    from experiments import commands

    _say(f"bundle: {commands.export(run_folder, out, variant=variant, progress=_progress())}")


@app.command(name="score")
def score(
    bundle: tyro.conf.Positional[Path],
    table: tyro.conf.Positional[Path],
    out: Path | None = None,
    json: JsonFile = None,
) -> None:
    """Score a parquet table of impressions with a bundle, by onnxruntime alone.

    Args:
        bundle: Folder that `adtower export` made.
        table: Parquet with time, user_id, query_id, product_id and the feature columns.
        out: Parquet to write; by default TABLE.scored.parquet.
        json: Also write the number of rows and the mean pCTR there.
    """
    from experiments import commands

    scored = commands.score(bundle, table)
    out = out or table.with_suffix(".scored.parquet")
    scored.write_parquet(out)
    mean = float(scored["p_click"].to_numpy().mean())
    _say(f"{scored.height} rows scored, mean pCTR {mean:.4f}: {out}")
    _write_json(json, {"rows": float(scored.height), "mean_p_click": mean})


@app.command(name="report")
def report(run_folder: tyro.conf.Positional[Path]) -> None:
    """Write report.html of a run again from the files in its folder.

    Args:
        run_folder: Folder of a finished run.
    """
    from experiments.report import write_report

    _say(f"report: {write_report(run_folder)}")


@app.command(name="bench")
def bench(rows: int = 200_000, json: JsonFile = None) -> None:
    """Time adtower's stages against a plain way of doing the same, in one run.

    Absolute times depend on the machine; the ratios are the result.

    Args:
        rows: Impressions of the generated click-model data.
        json: Also write the figures there, flat.
    """
    from experiments.bench import run_bench

    metrics = run_bench(rows=rows, progress=_progress())
    table = Table("benchmark", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:,.3g}")
    Console().print(table)
    _write_json(json, metrics)


@app.command(name="doctor")
def doctor(json: JsonFile = None) -> None:
    """Print what this machine offers, and what to do about what is missing.

    Args:
        json: Also write 1 for each line that is in order and 0 for each problem.
    """
    from experiments.doctor import examine

    findings = examine()
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[red]problem[/]"}
    table = Table("what", "found", "", "what to do")
    for finding in findings:
        advice = "" if finding.state == "ok" else finding.advice
        table.add_row(finding.what, finding.found, marks[finding.state], advice)
    Console().print(table)
    _write_json(json, {f.what: float(f.state != "problem") for f in findings})
    if any(f.state == "problem" for f in findings):
        raise SystemExit(1)


@app.command(name="reproduce")
def reproduce(
    name: tyro.conf.Positional[str],
    source: Path,
    out: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
    json: JsonFile = None,
) -> None:
    """Repeat a published claim on real data, from import to report.

    Args:
        name: Which claim: homedepot.
        source: Folder with the data (for homedepot: train.csv of the competition, or a folder
            homedepot_relevance/ with pairs.parquet).
        out: Folder of the run; by default runs/reproduce-NAME.
        seed: All randomness derives from it.
        overwrite: Replace an earlier run.
        json: Also write the figures there, flat.
    """
    from experiments.reproduce import reproduce as repeat

    out = out or Path("runs") / f"reproduce-{name}"
    result = repeat(name, source, out, seed=seed, overwrite=overwrite, progress=_progress())
    _print_run(result)
    _write_json(json, result.metrics)


@data_app.command(name="make")
def data_make(
    out: tyro.conf.Positional[Path],
    products: int = 3000,
    requests: int = 60_000,
    seed: int = 0,
    parameters: WorldParameters = WorldParameters(),  # noqa: B008
) -> None:
    """Generate a grocery world: catalogue with images, queries, labels, and a simulated click log.

    Args:
        out: Folder of the new dataset; the truth behind its clicks goes to OUT/truth.
        products: Size of the catalogue.
        requests: Logged search requests, eight impressions each.
        seed: The same seed gives the same bytes.
        parameters: How the marketplace behaves; each default has a stated source or reason.
    """
    from experiments.marketplace.world import make_world

    with _progress().stage("making the grocery world"):
        made = make_world(
            out, products=products, requests=requests, seed=seed, parameters=parameters
        )
    _say(f"dataset: {made}")


@data_app.command(name="check")
def data_check(folder: tyro.conf.Positional[str], json: JsonFile = None) -> None:
    """Look for everything that would spoil training: types, ids, labels, images, leaks.

    Ends with status 1 if anything is wrong.

    Args:
        folder: A dataset: a folder (or fsspec URI) with a dataset.toml.
        json: Also write the number of violations there.
    """
    from features.check import check_dataset
    from features.dataset import Dataset

    violations = check_dataset(Dataset.open(folder))
    table = Table("table", "column", "row", "what is wrong", "what to do")
    for found in violations:
        row = "" if found.row is None else str(found.row)
        table.add_row(found.table, found.column or "", row, found.problem, found.advice)
    if violations:
        Console().print(table)
        _say(f"{len(violations)} violations")
    else:
        _say("no violations")
    _write_json(json, {"violations": float(len(violations))})
    if violations:
        raise SystemExit(1)


@data_app.command(name="describe")
def data_describe(folder: tyro.conf.Positional[str], json: JsonFile = None) -> None:
    """Print the size, time range, click rate and coverage of a dataset.

    Args:
        folder: A dataset: a folder (or fsspec URI) with a dataset.toml.
        json: Also write the figures there, flat.
    """
    from features.dataset import Dataset
    from features.describe import describe_dataset

    facts = describe_dataset(Dataset.open(folder))
    table = Table("figure", "value")
    for name, value in facts.items():
        table.add_row(name, f"{value:,.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
    _write_json(json, {k: float(v) for k, v in facts.items() if isinstance(v, int | float)})


@data_app.command(name="simulate")
def data_simulate(
    folder: tyro.conf.Positional[Path], requests: int = 60_000, seed: int = 0
) -> None:
    """Add a simulated click log to a catalogue that has labels but no log.

    Writes impressions, events and truth into the folder and says so in its dataset.toml.

    Args:
        folder: A dataset with products, queries and relevance.
        requests: Search requests to simulate, eight impressions each.
        seed: The same seed gives the same log.
    """
    from experiments.marketplace.world import simulate_log

    with _progress().stage("simulating shoppers"):
        simulate_log(folder, requests=requests, seed=seed)
    _say(f"dataset: {folder}")


@import_app.command(name="homedepot")
def import_homedepot(source: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> None:
    """Import Home Depot product search relevance: real queries, titles and human labels.

    Args:
        source: Folder with train.csv of the competition (product_descriptions.csv is optional).
        out: Folder of the new dataset.
    """
    from experiments import importers

    _say(f"dataset: {importers.import_homedepot(source, out)}")


@import_app.command(name="fashion")
def import_fashion(source: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> None:
    """Import a fashion catalogue: titles, attributes and images, no queries and no clicks.

    Args:
        source: Folder with styles.csv and images/ID.jpg, or with the two as parquet tables.
        out: Folder of the new dataset.
    """
    from experiments import importers

    _say(f"dataset: {importers.import_fashion(source, out)}")


@import_app.command(name="clicks")
def import_clicks(
    source: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    columns: dict[str, str] | None = None,
    position_is_feature: bool = True,
) -> None:
    """Import a click log of ids alone; without other columns given, in the layout of clara2.

    Args:
        source: Parquet with one row an impression.
        out: Folder of the new dataset.
        columns: Pairs of our name and yours: --columns user_id session request_id serp ...
        position_is_feature: Let models read the position: right where the ranking to be judged
            is given, wrong where it is to be chosen.
    """
    from experiments import importers

    chosen = columns or importers.CLARA2_COLUMNS
    made = importers.import_clicks(
        source, out, columns=chosen, position_is_feature=position_is_feature
    )
    _say(f"dataset: {made}")


data_app.command(import_app, name="import")
app.command(data_app, name="data")


def main() -> None:
    """Run the command line. Mistakes of the caller end with a message and status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app.cli(
            prog="adtower",
            description="What are product and query embeddings worth to a pCTR model?",
        )
    except ValueError as error:
        Console(stderr=True).print(f"[bold red]adtower:[/] {error}", highlight=False, markup=True)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of our output (a pager, head) left early; that is its right.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        Console(stderr=True).print("adtower: interrupted; the same command resumes the run")
        sys.exit(130)


def _progress():
    from experiments.progress import Terminal

    return Terminal()


def _say(text: str) -> None:
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def _write_json(path: Path | None, metrics: dict[str, float]) -> None:
    if path is not None:
        from experiments.records import write_metrics

        write_metrics(path, metrics)


def _print_run(result) -> None:
    if result.embedding_evaluation:
        _print_evaluation(result.embedding_evaluation)
    if result.comparison is not None:
        _print_comparison(result.comparison)
    for name in ("oracle", "oracle_without_position"):
        if f"{name}.auc" in result.metrics:
            _say(f"{name.replace('_', ' ')} AUC: {result.metrics[f'{name}.auc']:.4f}")
    if result.ab is not None:
        Console().print(result.ab.table())
        _say(result.ab.verdict())
    for what, why in result.left_out.items():
        _say(f"left out: {what}: {why}")
    _say(f"report: {result.folder / 'report.html'}")


def _print_comparison(comparison: Comparison) -> None:
    Console().print(comparison.table())
    _say(comparison.verdict())


def _print_evaluation(evaluation: dict[str, dict[str, float]]) -> None:
    _print_measures(
        "vectors, on held-out queries",
        evaluation,
        ("recall_at_10", "ndcg_at_10", "mrr", "auc_2v0", "auc_2v1", "auc_1v0", "category_f1"),
    )


def _print_measures(
    title: str, results: dict[str, dict[str, float]], names: tuple[str, ...]
) -> None:
    present = [n for n in names if any(n in measures for measures in results.values())]
    table = Table("", *(n.replace("_", " ") for n in present), title=title)
    for name, measures in results.items():
        cells = (f"{measures[n]:.4f}" if n in measures else "" for n in present)
        table.add_row(name, *cells)
    Console().print(table)


def _nested(metrics: dict[str, float]) -> dict[str, dict[str, float]]:
    results: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        name, _, measure = key.partition(".")
        results.setdefault(name, {})[measure] = value
    return results


if __name__ == "__main__":
    main()
