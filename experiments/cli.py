"""The command line: each verb parses its typed settings, calls ``commands`` and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table
from rich.text import Text
from tyro.extras import SubcommandApp

from experiments.bench_stages import BENCH_STAGES, BenchStage
from experiments.cli_alignment import ALIGNMENT_COMMANDS
from experiments.cli_bundle import BUNDLE_COMMANDS
from experiments.cli_compare import COMPARE_COMMANDS, track_app
from experiments.cli_data import data_app
from experiments.cli_features import features_app
from experiments.cli_label import label_app
from experiments.cli_off_policy import OFF_POLICY_COMMANDS
from experiments.cli_sharding import SHARDING_COMMANDS
from experiments.cli_simulate import SIMULATE_COMMANDS
from experiments.cli_tune import TUNE_COMMANDS
from experiments.config import EmbedConfig, RunConfig
from experiments.terminal import (
    JsonFile,
    nested,
    new_progress,
    print_evaluation,
    print_figures,
    print_measures,
    print_run,
    print_table,
    run_commands,
    say,
    write_figures,
)

app = SubcommandApp()

Claim = Literal["homedepot", "grocery", "fashion", "clara2"]
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
        progress=new_progress(),
    )
    print_run(result)
    write_figures(json, result.metrics)


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
    from experiments.on_ranks import led_by_the_first_rank

    with led_by_the_first_rank(config.out) as leads:
        if leads:
            result = commands.run(config, new_progress())
            print_run(result)
            write_figures(json, result.metrics)


@app.command(name="embed")
def embed(config: EmbedSettings, json: JsonFile = None) -> None:
    """Train product and query embeddings on a catalogue and judge them, without any click.

    Args:
        config: Settings of the run.
        json: Also write the figures there, flat.
    """
    from experiments import commands

    evaluation = commands.embed(config, new_progress())
    print_evaluation(evaluation)
    say(f"vectors: {config.out / 'embeddings'}")
    write_figures(json, commands.flat_evaluation(evaluation))


@app.command(name="train")
def train(config: Settings, json: JsonFile = None) -> None:
    """Train pCTR models; prints validation figures. The clicks of test rows are not read.

    Args:
        config: Settings of the run; --variants production trains the model without vectors.
        json: Also write the figures there, flat.
    """
    from experiments import commands

    result = commands.train(config, new_progress())
    if not result.metrics:
        # The first rank of a torchrun job speaks for all.
        return
    print_measures(
        "validation rows",
        nested(result.metrics),
        ("validation_auc", "validation_log_loss", "validation_normalized_entropy", "fit_seconds"),
    )
    say(f"models: {result.folder / 'variants'}")
    write_figures(json, result.metrics)


@app.command(name="evaluate")
def evaluate(run_folder: tyro.conf.Positional[Path], json: JsonFile = None) -> None:
    """Measure the click models of a run offline, on its test rows.

    Args:
        run_folder: Folder that `adtower run`, `train` or `compare` made.
        json: Also write the figures there, flat, slices included.
    """
    from experiments import commands

    results = commands.evaluate(run_folder, new_progress())
    print_measures(
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
    write_figures(json, {f"{n}.{k}": v for n, values in results.items() for k, v in values.items()})


@app.command(name="export")
def export(
    run_folder: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    variant: tuple[str, ...] = (),
    average: Literal["logit", "probability"] = "logit",
    calibrate: Literal["none", "platt", "isotonic", "temperature"] = "none",
    int8_tables: bool = False,
    vectors: Literal["inside", "pointer"] = "inside",
    query_encoder: Literal["none", "fp32", "int8"] = "fp32",
) -> None:
    """Export a variant as a bundle: graph, transforms, vectors, proof and checksums in one folder.

    The bundle is checked as `adtower verify` does and against the trained model on 10,000 random
    rows; if anything differs, nothing is written.

    Args:
        run_folder: Folder of a run.
        out: The bundle's folder; it must not exist.
        variant: Which variant, or several for an ensemble (say dashclip lightgbm_dashclip); by
            default the neural one with the lowest validation log loss.
        average: What of an ensemble's members is averaged.
        calibrate: Fit a calibration on the validation rows and export it too.
        int8_tables: Store id tables in one byte a value, if AUC and calibration on validation
            rows stay within the tolerance.
        vectors: Copy the vectors into the bundle, or leave their fingerprint alone; readers then
            name the folder with the stores.
        query_encoder: Precision of the encoder that gives new query texts a vector, where DashCLIP
            made the vectors; int8 must keep cosines and the closest products.
    """
    from experiments import commands

    bundle = commands.export(
        run_folder,
        out,
        variants=variant,
        average=average,
        calibrate=calibrate,
        int8_tables=int8_tables,
        vectors=vectors,
        query_encoder=query_encoder,
        progress=new_progress(),
    )
    say(f"bundle: {bundle}")


@app.command(name="report")
def report(run_folder: tyro.conf.Positional[Path]) -> None:
    """Write report.html of a run again from the files in its folder.

    Args:
        run_folder: Folder of a finished run.
    """
    from experiments.report import write_report

    say(f"report: {write_report(run_folder)}")


@app.command(name="bench")
def bench(
    stage: tyro.conf.Positional[BenchStage | None] = None,
    rows: int = 200_000,
    json: JsonFile = None,
) -> None:
    """Time adtower's stages against a plain way of doing the same, in one run.

    Absolute times depend on the machine; the ratios are the result.

    Args:
        stage: Which one; all of them by default.
        rows: Impressions of the generated click-model data.
        json: Also write the figures there, flat.
    """
    from experiments.bench import run_bench

    stages = BENCH_STAGES if stage is None else (stage,)
    metrics = run_bench(rows=rows, stages=stages, progress=new_progress())
    print_figures("benchmark", metrics)
    write_figures(json, metrics)


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
        table.add_row(Text(finding.what), Text(finding.found), marks[finding.state], Text(advice))
    print_table(table)
    write_figures(json, {f.what: float(f.state != "problem") for f in findings})
    if any(f.state == "problem" for f in findings):
        raise SystemExit(1)


@app.command(name="reproduce")
def reproduce(
    name: tyro.conf.Positional[Claim],
    source: Path,
    out: Path | None = None,
    seed: int = 0,
    clicks: bool = False,
    ablate: bool = False,
    overwrite: bool = False,
    json: JsonFile = None,
) -> None:
    """Repeat a claim on real data, from import to figures.

    Args:
        name: homedepot: queries and titles with human relevance labels, a judge and vectors.
            grocery: a shop's photos find their product's text. fashion: a catalogue's pictures
            find their titles, and article types are read off the vectors. clara2: clicks of a
            search log, by every click model that it can feed.
        source: Folder with the data: homedepot_relevance/ (or the competition's train.csv),
            grocery_store/, fashion44k/ or clara2/.
        out: Folder of the run; by default runs/reproduce-NAME.
        seed: All randomness derives from it.
        clicks: homedepot: also simulate shoppers and compare click models.
        ablate: homedepot: also train without the judge's labels, and say what they add.
        overwrite: Replace an earlier run.
        json: Also write the figures there, flat.
    """
    out = out or Path("runs") / f"reproduce-{name}"
    if name == "homedepot":
        from experiments.reproduce import reproduce as repeat

        claim = repeat(
            name,
            source,
            out,
            seed=seed,
            clicks=clicks,
            ablate=ablate,
            overwrite=overwrite,
            progress=new_progress(),
        )
        if claim.run is not None:
            print_run(claim.run)
        print_figures(name, claim.metrics)
        say(f"figures: {out / 'metrics.json'}")
        write_figures(json, claim.metrics)
        return
    if clicks or ablate:
        raise ValueError(f"--clicks and --ablate are for homedepot, not for {name!r}")
    from experiments.reproduce_clara2 import reproduce_clara2
    from experiments.reproduce_photos import reproduce_fashion, reproduce_grocery

    claims = {
        "grocery": reproduce_grocery,
        "fashion": reproduce_fashion,
        "clara2": reproduce_clara2,
    }
    claim = claims[name]
    metrics = claim(source, out, seed=seed, overwrite=overwrite, progress=new_progress())
    if name == "clara2":
        from experiments.clara2_table import print_clara2

        print_clara2(metrics)
    else:
        print_figures(name, metrics)
    say(f"figures: {out / 'metrics.json'}")
    write_figures(json, metrics)


for verb, command in {
    **ALIGNMENT_COMMANDS,
    **SIMULATE_COMMANDS,
    **BUNDLE_COMMANDS,
    **COMPARE_COMMANDS,
    **OFF_POLICY_COMMANDS,
    **SHARDING_COMMANDS,
    **TUNE_COMMANDS,
}.items():
    app.command(name=verb)(command)
app.command(track_app, name="track", help="Send to MLflow what it missed of a run.")
app.command(data_app, name="data", help="Make, check, describe, import or simulate a dataset.")
app.command(features_app, name="features", help="Build the features of a log of any size.")
app.command(label_app, name="label", help="Label pairs, audit who labelled, choose what to label.")


def main() -> None:
    """Run the command line. Mistakes of the caller end with a message and status 2."""
    run_commands(app)


if __name__ == "__main__":
    main()
