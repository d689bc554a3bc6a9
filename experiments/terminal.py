"""What the command line's verbs print with."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.extras import SubcommandApp

if TYPE_CHECKING:
    from experiments.compare import Comparison
    from experiments.pipeline import RunResult
    from experiments.progress import Terminal

FILE_COLUMNS = 140
"""Width of tables that are not printed to a terminal."""

JsonFile = Annotated[Path | None, tyro.conf.arg(name="json", metavar="FILE")]
"""The option ``--json FILE`` of every verb that prints figures."""


def new_progress() -> Terminal:
    """Return who is told of a verb's stages: a bar on standard error."""
    from experiments.progress import Terminal

    return Terminal()


def say(text: str) -> None:
    """Print a line as it is, square brackets included, to standard output."""
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def print_table(table: Table) -> None:
    """Print a table to standard output; in a file or a pipe it is wide enough for all columns."""
    console = Console()
    # Without a terminal rich assumes 80 columns and cuts the figures off.
    (console if console.is_terminal else Console(width=FILE_COLUMNS)).print(table)


def write_figures(path: Path | None, metrics: dict[str, float]) -> None:
    """Write flat figures where ``--json`` asked for them.

    Raises:
        ValueError: If a figure is NaN or infinite.
    """
    if path is not None:
        from experiments.records import write_metrics

        write_metrics(path, metrics)


def print_run(result: RunResult) -> None:
    """Print the tables and the verdict of a run, and what was left out of it."""
    if result.embedding_evaluation:
        print_evaluation(result.embedding_evaluation)
    if result.comparison is not None:
        print_comparison(result.comparison)
    for name in ("oracle", "oracle_without_position"):
        if f"{name}.auc" in result.metrics:
            say(f"{name.replace('_', ' ')} AUC: {result.metrics[f'{name}.auc']:.4f}")
    if result.ab is not None:
        print_table(result.ab.table())
        say(result.ab.verdict())
    for what, why in result.left_out.items():
        say(f"left out: {what}: {why}")
    say(f"report: {result.folder / 'report.html'}")


def print_comparison(comparison: Comparison) -> None:
    """Print the variants with their intervals, and the verdict."""
    print_table(comparison.table())
    slices = comparison.slice_table()
    if slices is not None:
        print_table(slices)
    for rate in comparison.exchange:
        say(f"exchange rate: {rate.in_words()}")
    say(comparison.verdict())


def print_evaluation(evaluation: dict[str, dict[str, float]]) -> None:
    """Print the measures of each kind of vectors, and of each modality where there are any."""
    print_measures(
        "vectors, on held-out queries",
        evaluation,
        ("recall@10", "ndcg@10", "mrr", "auc_2v0", "auc_2v1", "auc_1v0", "category_f1"),
    )
    print_measures(
        "modalities, on the catalogue itself",
        evaluation,
        (
            "image_to_text.r1",
            "image_to_text.r10",
            "text_to_image.r10",
            "image.category_f1",
            "text.category_f1",
            "multimodal.category_f1",
        ),
    )


def print_measures(
    title: str, results: dict[str, dict[str, float]], names: tuple[str, ...]
) -> None:
    """Print one row a thing and one column a measure, those of ``names`` that anything has."""
    present = [n for n in names if any(n in measures for measures in results.values())]
    if not present:
        return
    table = Table("", *(n.replace("_", " ") for n in present), title=title)
    for name, measures in results.items():
        if any(n in measures for n in present):
            cells = (f"{measures[n]:.4f}" if n in measures else "" for n in present)
            table.add_row(Text(name), *cells)
    print_table(table)


def print_figures(title: str, metrics: dict[str, float]) -> None:
    """Print one row a figure."""
    table = Table(title, "value")
    for name, value in metrics.items():
        # Four digits tell AUCs apart; rows a second are read without counting zeros.
        table.add_row(Text(name), f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}")
    print_table(table)


def nested(metrics: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return ``{"NAME.measure": value}`` as ``{"NAME": {"measure": value}}``."""
    results: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        name, _, measure = key.partition(".")
        results.setdefault(name, {})[measure] = value
    return results


def run_commands(app: SubcommandApp) -> None:
    """Run a group of commands. Mistakes of the caller end with a message and status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app.cli(
            prog="adtower",
            description="What are product and query embeddings worth to a pCTR model?",
        )
    except BrokenPipeError:
        # The reader of our output (a pager, head) left early; that is its right.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        # A Text takes the message as it is; as markup, "[tables]" would be read as a style.
        message = Text.assemble(("adtower:", "bold red"), " ", _said(error))
        Console(stderr=True).print(message, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("adtower: interrupted; the same command resumes the run")
        sys.exit(130)


def _said(error: Exception) -> str:
    """What is wrong, without the frame that pydantic puts around it."""
    if not isinstance(error, ValidationError):
        return str(error)
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    said = []
    for problem in problems:
        setting = ".".join(map(str, problem["loc"]))
        words = problem["msg"].removeprefix("Value error, ")
        said.append(f"{setting}: {words}" if setting else words)
    return "; ".join(said)
