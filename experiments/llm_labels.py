"""Labels of a language model for pairs of a dataset, audited where people labelled some of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from embeddings.relevance.llm import Estimate, annotate, estimate
from embeddings.relevance.llm_cache import AnswerCache
from embeddings.relevance.llm_config import AnnotatorConfig
from embeddings.relevance.llm_outputs import (
    LabelTables,
    label_tables,
    manifest_of,
    write_outputs,
)
from embeddings.relevance.llm_pairs import PRODUCT_COLUMNS, Question, questions_of
from embeddings.relevance.rubric import SHOP_RUBRIC, Rubric
from experiments.progress import Progress, Silent
from features.dataset import Dataset

if TYPE_CHECKING:
    from embeddings.relevance.audit import Audit

CACHE = "answers.sqlite"
_IDS = ("query_id", "product_id")


@dataclass(frozen=True, kw_only=True)
class LlmLabels:
    """What a run of the annotator left in its folder."""

    tables: LabelTables
    manifest: dict[str, Any]
    audit: Audit | None
    """None where no pair that it labelled has a human label."""

    @property
    def stopped(self) -> str | None:
        """Why the run ended early, and how to go on; None if every pair is labelled or queued."""
        return self.manifest["stopped"]

    def to_metrics(self) -> dict[str, float]:
        """Flat figures: pairs, queue by reason, labels, cost, and the audit's."""
        flat: dict[str, float] = {f"pairs.{k}": v for k, v in self.manifest["pairs"].items()}
        flat |= {f"queue.{k.replace(' ', '_')}": v for k, v in self.manifest["queue"].items()}
        flat |= {f"labels.{k}": v for k, v in self.manifest["labels"].items()}
        flat["calls"] = self.manifest["calls_of_this_run"]
        flat["cost"] = self.manifest["cost_of_all_runs"]
        if self.audit is not None:
            flat |= self.audit.to_metrics("audit.")
        return {name: float(value) for name, value in flat.items()}


def label_by_llm(
    data: Dataset,
    out: Path,
    config: AnnotatorConfig,
    *,
    pairs: pl.DataFrame | None = None,
    columns: tuple[str, ...] = PRODUCT_COLUMNS,
    rubric: Rubric = SHOP_RUBRIC,
    cache: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> LlmLabels:
    """Label or queue pairs of a dataset; the same call repeated goes on where it stopped.

    Human labels are never shown to the model. Those of ``pairs`` (label, source "human") or else
    of the dataset are what the model's labels are audited by.

    Args:
        data: Has queries and products.
        out: Folder of relevance.parquet, queue.parquet, manifest.json, audit.json, audit.png.
        config: Settings of the annotator.
        pairs: query_id, product_id; by default those of the dataset's relevance table.
        columns: What is shown of a product.
        rubric: What is asked.
        cache: Where answers are kept and money is counted; by default OUT/answers.sqlite.
        seed: Draws the jitter of waits and the audit's intervals.
        progress: Told how far it is.

    Raises:
        ValueError: If tables, ids, the key or the extra ``llm`` are missing, or the cache is in
            use.
    """
    wanted = _pairs_of(data, pairs)
    questions = _questions(data, wanted, columns)
    with (
        AnswerCache(cache or out / CACHE) as answers,
        (progress or Silent()).stage(f"asking {config.endpoint.model}") as report,
    ):
        annotation = annotate(questions, config, answers, rubric=rubric, seed=seed, report=report)
        tables = label_tables(questions, annotation, rubric=rubric, model=config.endpoint.model)
        manifest = manifest_of(tables, annotation, config, answers, rubric)
    write_outputs(out, tables, manifest)
    audit = _audited(_human_labels(data, wanted), tables.relevance, out, seed)
    return LlmLabels(tables=tables, manifest=manifest, audit=audit)


def estimate_llm_labels(
    data: Dataset,
    out: Path,
    config: AnnotatorConfig,
    *,
    pairs: pl.DataFrame | None = None,
    columns: tuple[str, ...] = PRODUCT_COLUMNS,
    rubric: Rubric = SHOP_RUBRIC,
    cache: Path | None = None,
) -> Estimate:
    """Say what ``label_by_llm`` would send and cost; nothing is sent and no file is made."""
    questions = _questions(data, _pairs_of(data, pairs), columns)
    with _cache_or_none(cache or out / CACHE) as answers:
        return estimate(questions, config, answers, rubric=rubric)


@contextmanager
def _cache_or_none(path: Path) -> Iterator[AnswerCache]:
    """The cache if there is one, else an empty one that goes away again."""
    with (
        tempfile.TemporaryDirectory() as folder,
        AnswerCache(path if path.is_file() else Path(folder) / CACHE) as answers,
    ):
        yield answers


def _pairs_of(data: Dataset, pairs: pl.DataFrame | None) -> pl.DataFrame:
    data.require("queries", "products", needed_for="annotating by a language model")
    if pairs is None:
        data.require("relevance", needed_for="annotating without a table of pairs")
        return data.table("relevance")
    missing = [name for name in _IDS if name not in pairs.columns]
    if missing or pairs.is_empty():
        raise ValueError(
            f"the table of pairs has {pairs.height} rows and the columns "
            f"{', '.join(pairs.columns)}; it must have query_id and product_id, and a row"
        )
    return pairs.with_columns(pl.col(_IDS).cast(pl.String))


def _questions(data: Dataset, pairs: pl.DataFrame, columns: tuple[str, ...]) -> list[Question]:
    return questions_of(pairs, data.table("queries"), data.table("products"), columns=columns)


def _audited(human: pl.DataFrame, labels: pl.DataFrame, out: Path, seed: int) -> Audit | None:
    """The audit, written where one is possible."""
    if human.join(labels, on=_IDS, how="semi").is_empty():
        return None
    # They load torch, which nothing before them needs.
    from embeddings.relevance.audit import audit_labels
    from experiments.judge_labels import write_audit

    audit = audit_labels(human, labels, annotator=labels["annotator"][0], seed=seed)
    write_audit(audit, out)
    return audit


def _human_labels(data: Dataset, pairs: pl.DataFrame) -> pl.DataFrame:
    """Human labels of the pairs: their own, or else the dataset's."""
    tables = [pairs]
    if data.has("relevance"):
        tables.append(data.table("relevance"))
    for table in tables:
        if {"label", "source"} <= set(table.columns):
            human = table.filter(pl.col("source") == "human", pl.col("label").is_not_null())
            human = human.join(pairs.select(_IDS).unique(), on=_IDS, how="semi")
            if human.height:
                return human.select(*_IDS, "label")
    return pl.DataFrame(schema={"query_id": pl.String, "product_id": pl.String, "label": pl.Int8})
