"""What a run of the annotator leaves: labels, the queue for people, and a manifest.

``relevance.parquet`` fits the dataset contract's relevance table: query_id, product_id, label,
source ("llm"), annotator, p0, p1, p2 (null where there were no log-probabilities), and rubric,
model, one column a facet. ``queue.parquet`` has query_id, product_id, query, product, reason,
detail. A pair is in one of them, or in neither while the run is unfinished; never in both.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from embeddings.relevance.llm import Annotation
from embeddings.relevance.llm_cache import AnswerCache
from embeddings.relevance.llm_config import AnnotatorConfig
from embeddings.relevance.llm_pairs import Question
from embeddings.relevance.llm_verdict import Labelled
from embeddings.relevance.rubric import Rubric

RELEVANCE, QUEUE, MANIFEST = "relevance.parquet", "queue.parquet", "manifest.json"
_TEXT = pl.String()
_QUEUE_COLUMNS = ("query_id", "product_id", "query", "product", "reason", "detail")


@dataclass(frozen=True, kw_only=True)
class LabelTables:
    """Labels and queue of a run."""

    relevance: pl.DataFrame
    queue: pl.DataFrame
    pending: int
    """Pairs in neither, because the run ended early."""


def label_tables(
    questions: Sequence[Question], annotation: Annotation, *, rubric: Rubric, model: str
) -> LabelTables:
    """Arrange verdicts as tables, each pair once, in the order of the questions."""
    labels: list[tuple[Any, ...]] = []
    queue: list[tuple[str, ...]] = []
    pending = 0
    annotator = f"{model}@{rubric.name}-{rubric.version}"
    for question in questions:
        verdict = annotation.verdict_by_number.get(question.number)
        if verdict is None:
            pending += len(question.pairs)
        elif isinstance(verdict, Labelled):
            p = (None,) * 3 if verdict.soft is None else verdict.soft.p_by_label
            facets = [verdict.facets[facet.name] for facet in rubric.facets]
            end = (verdict.label, "llm", annotator, *p, rubric.version, model, *facets)
            labels += [(*pair, *end) for pair in question.pairs]
        else:
            product = "\n".join(f"{name}: {text}" for name, text in question.product.items())
            end = (question.query, product, verdict.reason, verdict.detail)
            queue += [(*pair, *end) for pair in question.pairs]
    schema: dict[str, pl.DataType] = {
        "query_id": _TEXT,
        "product_id": _TEXT,
        "label": pl.Int8(),
        "source": _TEXT,
        "annotator": _TEXT,
        **dict.fromkeys(("p0", "p1", "p2"), pl.Float64()),
        "rubric_version": _TEXT,
        "model": _TEXT,
        **{f"facet_{facet.name}": _TEXT for facet in rubric.facets},
    }
    return LabelTables(
        relevance=pl.DataFrame(labels, schema=schema, orient="row"),
        queue=pl.DataFrame(queue, schema=[(name, _TEXT) for name in _QUEUE_COLUMNS], orient="row"),
        pending=pending,
    )


def manifest_of(
    tables: LabelTables,
    annotation: Annotation,
    config: AnnotatorConfig,
    cache: AnswerCache,
    rubric: Rubric,
) -> dict[str, Any]:
    """Describe a run: who was asked what and how, what came of it, what it cost."""
    labels = Counter(tables.relevance["label"].to_list())
    return {
        "complete": tables.pending == 0,
        "stopped": annotation.stopped,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "client": f"openai {importlib.metadata.version('openai')}",
        "settings": config.model_dump(mode="json"),
        "dialect": annotation.dialect.model_dump(mode="json"),
        "rubric_version": rubric.version,
        "rubric": rubric.model_dump(mode="json"),
        "pairs": {
            "labelled": tables.relevance.height,
            "queued": tables.queue.height,
            "pending": tables.pending,
        },
        "labels": {str(label): labels[label] for label in (0, 1, 2)},
        "soft_labels": int(tables.relevance["p0"].is_not_null().sum()),
        "queue": dict(sorted(Counter(tables.queue["reason"].to_list()).items())),
        "calls_of_this_run": annotation.calls,
        "calls_of_all_runs": cache.totals(),
        "cost_of_all_runs": annotation.cost,
    }


def write_outputs(folder: Path, tables: LabelTables, manifest: dict[str, Any]) -> None:
    """Write both tables and, last, the manifest with their sums; each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = {}
    for name, table in ((RELEVANCE, tables.relevance), (QUEUE, tables.queue)):
        partial = folder / f".{name}.partial"
        table.write_parquet(partial, compression="zstd")
        _put_in_place(partial, folder / name)
        sums[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    partial = folder / f".{MANIFEST}.partial"
    content = json.dumps({**manifest, "sha256": sums}, indent=2, ensure_ascii=False)
    partial.write_text(content + "\n", encoding="utf-8")
    _put_in_place(partial, folder / MANIFEST)


def _put_in_place(partial: Path, path: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
