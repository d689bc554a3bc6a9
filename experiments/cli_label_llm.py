"""The verb ``adtower label llm``: a language model labels pairs, or queues them for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import polars as pl
import tyro

from embeddings.relevance.llm_config import AnnotatorConfig
from embeddings.relevance.llm_pairs import PRODUCT_COLUMNS
from experiments.terminal import JsonFile, new_progress, say, write_figures

if TYPE_CHECKING:
    from embeddings.relevance.llm import Estimate
    from experiments.llm_labels import LlmLabels

AnnotatorSettings = tyro.conf.OmitArgPrefixes[Annotated[AnnotatorConfig, tyro.conf.arg(name="")]]


def label_llm(
    folder: tyro.conf.Positional[str],
    config: AnnotatorSettings,
    out: Path,
    pairs: Path | None = None,
    columns: tuple[str, ...] = PRODUCT_COLUMNS,
    rubric: Path | None = None,
    cache: Path | None = None,
    dry_run: bool = False,
    json: JsonFile = None,
) -> None:
    """Ask a language model about pairs: labels for clear answers, a queue for people for others.

    Any endpoint with the chat completions protocol serves. Answers are paid once: an interrupted
    or stopped run goes on when its command is repeated. Status 1 if pairs are left.

    Args:
        folder: A dataset with queries and products: a folder (or fsspec URI) with a dataset.toml.
        config: Settings of the annotator.
        out: Folder of relevance.parquet, queue.parquet, manifest.json and, where people labelled
            some of the pairs, audit.json and audit.png.
        pairs: Parquet with query_id and product_id; by default the pairs of the dataset's
            relevance table.
        columns: What is shown of a product; columns it lacks are passed over.
        rubric: JSON file with another rubric than the built-in one.
        cache: File that keeps answers and counts money; by default OUT/answers.sqlite.
        dry_run: Only say how many calls and tokens it takes and what it costs at most.
        json: Also write the figures there, flat.
    """
    from embeddings.relevance.rubric import SHOP_RUBRIC, Rubric
    from experiments.llm_labels import estimate_llm_labels, label_by_llm
    from features.dataset import Dataset

    data = Dataset.open(folder)
    table = None if pairs is None else _read_pairs(pairs)
    questions = SHOP_RUBRIC if rubric is None else Rubric.read(rubric)
    if dry_run:
        found = estimate_llm_labels(
            data, out, config, pairs=table, columns=columns, rubric=questions, cache=cache
        )
        _print_estimate(found)
        write_figures(json, {name: float(value) for name, value in vars(found).items()})
        return
    labels = label_by_llm(
        data,
        out,
        config,
        pairs=table,
        columns=columns,
        rubric=questions,
        cache=cache,
        progress=new_progress(),
    )
    _print_labels(labels, out)
    write_figures(json, labels.to_metrics())
    if labels.stopped is not None:
        raise SystemExit(1)


def _read_pairs(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error


def _print_estimate(found: Estimate) -> None:
    say(
        f"{found.questions} distinct questions: {found.settled} settled before, "
        f"{found.suspicious} with orders in their text go to people, {found.calls} calls"
    )
    say(
        f"about {found.likely_prompt_tokens} tokens of prompt and {found.likely_completion_tokens} "
        f"of answer, cost {found.likely_cost:.4f}"
    )
    say(
        f"at most {found.most_prompt_tokens} of prompt and {found.most_completion_tokens} of "
        f"answer, cost {found.most_cost:.4f}, if no answer is lost on its way"
    )


def _print_labels(labels: LlmLabels, out: Path) -> None:
    pairs = labels.manifest["pairs"]
    counts = ", ".join(f"{count} of {label}" for label, count in labels.manifest["labels"].items())
    say(f"{pairs['labelled']} pairs labelled ({counts}): {out / 'relevance.parquet'}")
    reasons = ", ".join(f"{count} {reason}" for reason, count in labels.manifest["queue"].items())
    say(f"{pairs['queued']} pairs for people ({reasons or 'none'}): {out / 'queue.parquet'}")
    say(
        f"{labels.manifest['calls_of_this_run']} calls; all runs on this cache cost at most "
        f"{labels.manifest['cost_of_all_runs']:.4f}"
    )
    if labels.audit is not None:
        # The verbs beside this one load torch; nothing else here needs it.
        from experiments.cli_label import print_audit

        print_audit(labels.audit)
    else:
        say("no pair that it labelled has a human label: these labels are not audited")
    if labels.stopped is not None:
        say(f"{pairs['pending']} pairs left: {labels.stopped}")
