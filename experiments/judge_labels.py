"""A judge trained on a dataset's human labels, audited on held-out queries, set to label pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from embeddings.baselines import off_the_shelf_products, off_the_shelf_queries
from embeddings.evaluate import CosineScores
from embeddings.relevance.audit import Audit, audit_labels
from embeddings.relevance.judge import Judge, train_judge
from embeddings.relevance.judge_config import JudgeConfig
from embeddings.relevance.label_parquet import Labelled, label_parquet, write_table_
from embeddings.relevance.thresholds import sample_pairs, threshold_labels
from embeddings.relevance_split import split_relevance
from embeddings.weights import find_text_weights
from experiments.audit_figure import audit_figure
from experiments.progress import Progress, Silent
from experiments.records import write_bytes, write_json
from features.dataset import Dataset

JUDGE, RELEVANCE, HELD_OUT = "judge", "relevance.parquet", "held_out.parquet"
AUDIT, FIGURE = "audit.json", "audit.png"


@dataclass(frozen=True, kw_only=True)
class JudgeLabels:
    """What ``label_by_judge`` left in its folder."""

    judge: Judge
    audit: Audit
    labelled: Labelled | None
    """None where no pairs were given."""

    def to_metrics(self) -> dict[str, float]:
        """Flat figures."""
        flat = self.audit.to_metrics()
        if self.labelled is not None:
            flat["labelled"] = float(self.labelled.rows)
            flat["pairs_not_labelled"] = float(self.labelled.not_labelled_rows)
        return flat


def label_by_judge(
    data: Dataset,
    out: Path,
    config: JudgeConfig | None = None,
    *,
    pairs: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> JudgeLabels:
    """Train a judge, audit it, and label pairs; the same call repeated goes on where it stopped.

    Writes OUT/judge (the model), OUT/held_out.parquet (its labels of the human pairs of held-out
    queries), OUT/audit.json and OUT/audit.png, and for ``pairs`` OUT/relevance.parquet.

    Args:
        data: Has products, queries and relevance.
        out: Folder.
        config: Settings of the judge; the defaults if None.
        pairs: Parquet with query_id, product_id to label.
        seed: All randomness derives from it.
        progress: Told of the stages.

    Raises:
        ValueError: If a table is missing, no pair of a held-out query has a human label, or as
            ``train_judge`` and ``label_parquet``.
    """
    data.require("products", "queries", "relevance", needed_for="training a judge")
    progress = progress or Silent()
    products, queries = data.table("products"), data.table("queries")
    human, held = human_split(data.table("relevance"), queries)
    judge = train_judge(
        products, queries, human, config, seed=seed, out=out / JUDGE, progress=progress.steps
    )
    with progress.stage("auditing the judge on held-out queries"):
        asked = held.select("query_id", "product_id").unique(maintain_order=True)
        labels = judge.label(products, queries, asked)
        write_table_(labels, out / HELD_OUT)
        audit = audit_labels(
            held,
            labels,
            annotator="judge",
            other=off_the_shelf_labels(products, queries, human, asked, seed=seed),
            other_name="off_the_shelf",
            seed=seed,
        )
        write_audit(audit, out)
    labelled = None
    if pairs is not None:
        with progress.stage(f"labelling {pairs.name}") as report:
            labelled = label_parquet(
                judge,
                products,
                queries,
                pairs,
                out / RELEVANCE,
                progress=lambda done, total: report(done, total, f"{done} of {total} pairs"),
            )
    return JudgeLabels(judge=judge, audit=audit, labelled=labelled)


def human_split(
    relevance: pl.DataFrame, queries: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Human labels of training queries and of held-out queries.

    Raises:
        ValueError: If either has none.
    """
    human = relevance.filter(pl.col("source") == "human")
    train, held = split_relevance(human, queries)
    for part, name in ((train, "training"), (held, "held-out")):
        if not len(part):
            raise ValueError(
                f"the relevance table has {len(human)} pairs of source 'human', and none "
                f"of them is of a {name} query; a judge learns from the one part and is audited by "
                "the other"
            )
    return train, held


def off_the_shelf_labels(
    products: pl.DataFrame,
    queries: pl.DataFrame,
    human: pl.DataFrame,
    pairs: pl.DataFrame,
    *,
    seed: int,
) -> pl.DataFrame | None:
    """Pairs labelled by two cuts of the off-the-shelf cosine; None without its weights.

    Args:
        products: The catalogue.
        queries: query_id, query.
        human: Labelled pairs of training queries, to choose the cuts by.
        pairs: query_id, product_id, each once.
        seed: Draws the pairs that the cuts are chosen on.
    """
    weights = find_text_weights()
    if weights.path is None:
        return None
    keys = ("query_id", "product_id")
    needed = pl.concat([sample_pairs(human, seed).select(keys), pairs.select(keys)])
    scores = CosineScores(
        off_the_shelf_products(products.join(needed, on="product_id", how="semi"), weights=weights),
        off_the_shelf_queries(queries.join(needed, on="query_id", how="semi"), weights=weights),
    )
    return threshold_labels(scores, human, pairs, seed=seed)


def write_audit(audit: Audit, folder: Path) -> None:
    """Write audit.json and audit.png."""
    write_json(folder / AUDIT, audit)
    write_bytes(folder / FIGURE, audit_figure(audit))
