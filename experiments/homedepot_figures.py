"""What a claim on Home Depot's labels reports: AUCs of cosines and of the judge, with intervals.

Shape letters: N judged test pairs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embeddings.evaluate import CosineScores, relevance_aucs
from embeddings.model import DashClip
from embeddings.relevance.audit import audit_labels
from embeddings.relevance.judge import Judge
from embeddings.relevance_intervals import interval, relevance_auc_draws
from embeddings.store import VectorStore

KINDS = {"test": "dashclip", "test.off_the_shelf": "off_the_shelf"}
"""Names of the figures to the vectors they are of."""


def stored_figures(run_folder: Path, test: pl.DataFrame) -> dict[str, float]:
    """AUCs of the vectors that a run left, ``test.auc_2v0`` and so on; see ``auc_figures``."""
    return {
        f"{place}.{name}": value
        for place, kind in KINDS.items()
        for name, value in auc_figures(stored_cosines(run_folder, kind, test), test).items()
    }


def added_figures(
    human_alone: DashClip,
    run_folder: Path,
    products: pl.DataFrame,
    queries: pl.DataFrame,
    test: pl.DataFrame,
) -> dict[str, float]:
    """AUCs of a model trained on human labels alone, and what the judge's add to it.

    Args:
        human_alone: That model.
        run_folder: Of the run whose vectors learned from the judge's labels too.
        products: The catalogue.
        queries: query_id, query.
        test: query_id, product_id, label.

    Returns:
        ``human_alone.auc_2v0`` and so on with the ends of their intervals, and
        ``judge_labels.delta_auc_2v0`` and so on, paired over the same draws of queries.
    """
    alone_N = model_cosines(human_alone, products, queries, test)
    own_N = stored_cosines(run_folder, "dashclip", test)
    figures = {f"human_alone.{name}": value for name, value in auc_figures(alone_N, test).items()}
    label_N, query_ids = test["label"].to_numpy().astype(np.int64), test["query_id"].to_list()
    more, plain = (relevance_auc_draws(score, label_N, query_ids) for score in (own_N, alone_N))
    value, before = (relevance_aucs(score, label_N) for score in (own_N, alone_N))
    for name in value:
        low, high = interval(more[name] - plain[name])
        delta = f"judge_labels.delta_{name}"
        figures |= {delta: value[name] - before[name], f"{delta}_low": low, f"{delta}_high": high}
    return figures


def judge_figures(
    judge: Judge, products: pl.DataFrame, queries: pl.DataFrame, test: pl.DataFrame
) -> dict[str, float]:
    """The audit of the judge on test pairs, ``judge.kappa`` being the quadratic one."""
    labels = judge.label(products, queries, test)
    figures = audit_labels(test, labels, annotator="judge").to_metrics("judge.")
    renamed = "judge.kappa_quadratic"
    return figures | {
        name.replace(renamed, "judge.kappa"): value
        for name, value in figures.items()
        if name.startswith(renamed)
    }


def auc_figures(score_N: NDArray[np.floating], test: pl.DataFrame) -> dict[str, float]:
    """``auc_2v0``, ``auc_2v1``, ``auc_1v0``, with the ends of their intervals over queries."""
    label_N = test["label"].to_numpy().astype(np.int64)
    figures = relevance_aucs(score_N, label_N)
    draws = relevance_auc_draws(score_N, label_N, test["query_id"].to_list())
    for name in list(figures):
        figures[f"{name}_low"], figures[f"{name}_high"] = interval(draws[name])
    return figures


def stored_cosines(run_folder: Path, kind: str, test: pl.DataFrame) -> NDArray[np.float32]:
    """Cosines of the test pairs by the vectors of one kind that a run left, (N,)."""
    at = run_folder / "embeddings" / kind
    scores = CosineScores(VectorStore.open(at / "products"), VectorStore.open(at / "queries"))
    return scores.pairs(test["query_id"].to_list(), test["product_id"].to_list())


def model_cosines(
    model: DashClip, products: pl.DataFrame, queries: pl.DataFrame, test: pl.DataFrame
) -> NDArray[np.float32]:
    """Cosines of the test pairs by a model, (N,)."""
    stores = []
    for table, key, embed in (
        (products, "product_id", model.embed_products),
        (queries, "query_id", lambda some: model.embed_queries(some["query"].to_list())),
    ):
        some = table.filter(pl.col(key).is_in(test[key].unique().to_list()))
        stores.append(
            VectorStore.from_arrays(
                some[key].to_list(), embed(some), kind=key, encoder_fingerprint=model.fingerprint
            )
        )
    return CosineScores(*stores).pairs(test["query_id"].to_list(), test["product_id"].to_list())
