"""What pairs of the generated grocery world truly are, beside the labels that annotators gave.

One label in ten is wrong there, so not even the truth scores an AUC of 1 against the labels.

Shape letters: N pairs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embeddings.evaluate import CosineScores, relevance_aucs
from embeddings.store import VectorStore
from experiments.marketplace.catalogue import make_catalogue
from experiments.marketplace.queries import make_queries, true_relevance
from experiments.marketplace.state import WorldState
from features.dataset import Dataset

WORLD = "grocery world"
"""The name of the dataset that ``make_world`` writes."""


def true_labels(dataset: Dataset, pairs: pl.DataFrame) -> NDArray[np.int64] | None:
    """The true class of each pair, drawn anew from the parameters and the seed of the world.

    Args:
        dataset: Of ``adtower demo`` or ``adtower data make``.
        pairs: query_id, product_id.

    Returns:
        0, 1 or 2, shape (N,); None for any dataset that is no generated grocery world.
    """
    truth = None if dataset.folder is None else Path(dataset.folder) / "truth"
    if truth is None or dataset.spec.name != WORLD or not truth.is_dir():
        return None
    state = WorldState.load(truth)
    products, queries = dataset.table("products"), dataset.table("queries")
    catalogue = make_catalogue(len(products), state.parameters, state.seed)
    drawn = make_queries(catalogue, state.parameters, state.seed)
    # Whoever edited the tables, or drew them with another version, has another truth.
    if drawn.text_Q != queries["query"].to_list():
        return None
    class_QP = true_relevance(drawn, catalogue)
    row_of_query = {key: row for row, key in enumerate(queries["query_id"].to_list())}
    row_of_product = {key: row for row, key in enumerate(products["product_id"].to_list())}
    query_N = [row_of_query[key] for key in pairs["query_id"].to_list()]
    product_N = [row_of_product[key] for key in pairs["product_id"].to_list()]
    return class_QP[query_N, product_N].astype(np.int64)


def true_aucs(
    dataset: Dataset, product_store: VectorStore, query_store: VectorStore, pairs: pl.DataFrame
) -> dict[str, float]:
    """AUC of the cosine by the true classes of pairs, where they are known.

    Returns:
        ``true_auc_2v0``, ``true_auc_2v1``, ``true_auc_1v0``; empty for a dataset whose true classes
        nobody knows.
    """
    truth_N = true_labels(dataset, pairs)
    if truth_N is None:
        return {}
    scores = CosineScores(product_store, query_store)
    cosine_N = scores.pairs(pairs["query_id"].to_list(), pairs["product_id"].to_list())
    return {f"true_{name}": value for name, value in relevance_aucs(cosine_N, truth_N).items()}
