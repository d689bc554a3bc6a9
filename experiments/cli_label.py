"""The verbs of ``adtower label``: label pairs with a judge, audit annotators, choose pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.table import Table
from rich.text import Text
from tyro.extras import SubcommandApp

from embeddings.relevance.judge_config import JudgeConfig
from experiments.cli_label_llm import label_llm
from experiments.terminal import JsonFile, new_progress, print_table, say, write_figures

if TYPE_CHECKING:
    import polars as pl

    from embeddings.relevance.audit import Audit

label_app = SubcommandApp()
label_app.command(name="llm")(label_llm)

JudgeSettings = tyro.conf.OmitArgPrefixes[Annotated[JudgeConfig, tyro.conf.arg(name="")]]


@label_app.command(name="judge")
def label_judge(
    data: Path,
    out: Path,
    pairs: Path | None = None,
    config: JudgeSettings = JudgeConfig(),  # noqa: B008
    seed: int = 0,
    json: JsonFile = None,
) -> None:
    """Train a judge on human labels, audit it on held-out queries, and label pairs with it.

    OUT gets the judge, its audit (audit.json, audit.png) and, for --pairs, relevance.parquet with
    soft labels. An interrupted command goes on where it stopped when it is given again.

    Args:
        data: A dataset with products, queries and human relevance labels.
        out: Folder of the results.
        pairs: Parquet with query_id and product_id to label, such as `adtower label mine` writes.
        config: Settings of the judge.
        seed: All randomness derives from it.
        json: Also write the figures of the audit there, flat.
    """
    from experiments.judge_labels import label_by_judge
    from features.dataset import Dataset

    found = label_by_judge(
        Dataset.open(data), out, config, pairs=pairs, seed=seed, progress=new_progress()
    )
    print_audit(found.audit)
    say(f"judge: {out / 'judge'}, started from {found.judge.record.origin}")
    if found.labelled is not None:
        say(f"{found.labelled.rows} pairs labelled: {found.labelled.path}")
        if found.labelled.not_labelled is not None:
            say(
                f"{found.labelled.not_labelled_rows} pairs not labelled, each with the reason: "
                f"{found.labelled.not_labelled}"
            )
    write_figures(json, found.to_metrics())


@label_app.command(name="audit")
def label_audit(
    labels: tyro.conf.Positional[Path],
    data: Path,
    out: Path | None = None,
    other: Path | None = None,
    side: Literal["test", "all"] = "test",
    seed: int = 0,
    json: JsonFile = None,
) -> None:
    """Compare any annotator's labels with the human ones of a dataset.

    Args:
        labels: Parquet with query_id, product_id, label, and p0, p1, p2 where there are any.
        data: The dataset with the human labels.
        out: Folder for audit.json and audit.png.
        other: Labels of another annotator: where the two differ, who agrees with people?
        side: Held-out queries alone, or all; an annotator that learned from human labels, as the
            judge does, may only be audited on the former.
        seed: Draws the queries of the intervals.
        json: Also write the figures there, flat.
    """
    import polars as pl

    from embeddings.relevance.audit import audit_labels
    from embeddings.relevance_split import split_relevance
    from experiments.judge_labels import write_audit
    from features.dataset import Dataset

    dataset = Dataset.open(data)
    dataset.require("queries", "relevance", needed_for="auditing labels")
    human = dataset.table("relevance").filter(pl.col("source") == "human")
    if side == "test":
        human = split_relevance(human, dataset.table("queries"))[1]
    audit = audit_labels(
        human,
        _read_labels(labels),
        annotator=labels.stem,
        other=None if other is None else _read_labels(other),
        other_name="" if other is None else other.stem,
        seed=seed,
    )
    print_audit(audit)
    if out is not None:
        write_audit(audit, out)
        say(f"audit: {out}")
    write_figures(json, audit.to_metrics())


@label_app.command(name="mine")
def label_mine(
    data: Path,
    budget: int,
    out: Path,
    model: Path | None = None,
    top: int = 20,
    side: Literal["train", "test", "all"] = "train",
    seed: int = 0,
    json: JsonFile = None,
) -> None:
    """Choose pairs to label: those that BM25, the off-the-shelf encoder and a model rank apart.

    Pairs that have a label are left out. With a click log, a third of the budget goes to the
    queries of each third of the traffic.

    Args:
        data: A dataset with products and queries.
        budget: Pairs at most.
        out: Parquet to write: query_id, product_id, disagreement in octaves of rank, band, and the
            rank under each retriever.
        model: Folder of a trained model, such as RUN/embeddings/stage2.
        top: Products of each retriever and query that are candidates.
        side: Choose pairs of training queries, of test queries, or of all.
        seed: Decides which queries come first where the budget does not reach all.
        json: Also write the number of pairs and queries and the mean disagreement there.
    """
    from embeddings.relevance.label_parquet import write_table_
    from experiments.mine_pairs import mine_dataset
    from features.dataset import Dataset

    pairs = mine_dataset(
        Dataset.open(data),
        budget=budget,
        model=model,
        top=top,
        side=side,
        seed=seed,
        progress=new_progress(),
    )
    write_table_(pairs, out)
    table = Table("band", "pairs", "queries", "mean disagreement (octaves)")
    for (band,), part in pairs.group_by("band", maintain_order=True):
        mean = part["disagreement"].to_numpy().mean()
        table.add_row(str(band), str(len(part)), str(part["query_id"].n_unique()), f"{mean:.2f}")
    print_table(table)
    say(f"{len(pairs)} pairs to label: {out}")
    figures = {
        "pairs": float(len(pairs)),
        "queries": float(pairs["query_id"].n_unique()),
        "disagreement": float(pairs["disagreement"].to_numpy().mean()),
    }
    write_figures(json, figures)


def print_audit(audit: Audit) -> None:
    """Print an audit's figures with their intervals, its confusion, and who is right."""
    title = f"{audit.annotator} beside people: {audit.pairs} pairs of {audit.queries} queries"
    table = Table("figure", "value", "from", "to", title=title)
    for name, value in audit.metrics.items():
        ends = audit.intervals.get(name)
        cells = ("", "") if ends is None else (f"{ends[0]:.4f}", f"{ends[1]:.4f}")
        table.add_row(Text(name), f"{value:.4f}", *cells)
    print_table(table)
    confusion = Table("people say", *(f"{audit.annotator} says {k}" for k in range(3)))
    for k, row in enumerate(audit.confusion):
        confusion.add_row(str(k), *(str(count) for count in row))
    print_table(confusion)
    if audit.not_labelled:
        say(f"{audit.not_labelled} pairs with a human label were not labelled by {audit.annotator}")
    if audit.disagreement is not None:
        found = audit.disagreement
        say(
            f"on {found.pairs} of {found.compared} pairs {audit.annotator} and {found.other} "
            f"differ: people agree with {audit.annotator} on {found.annotator_right:.1%}, with "
            f"{found.other} on {found.other_right:.1%}"
        )
    if audit.humans is not None:
        kappa = audit.humans.kappa_quadratic
        said = "" if kappa is None else f", quadratic kappa {kappa:.3f}"
        say(
            f"people agree with each other on {audit.humans.exact:.1%} of {audit.humans.pairs} "
            f"pairs{said}"
        )


def _read_labels(path: Path) -> pl.DataFrame:
    import polars as pl

    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error
    missing = {"query_id", "product_id", "label"} - set(frame.columns)
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(sorted(missing))}; it has {', '.join(frame.columns)}"
        )
    return frame
