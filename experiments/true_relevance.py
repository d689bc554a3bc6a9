"""What pairs of the generated grocery world truly are, beside the labels that annotators gave.

One label in ten is wrong there, so not even the truth scores an AUC of 1 against the labels.

Shape letters: N pairs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.marketplace.catalogue import make_catalogue
from experiments.marketplace.queries import make_queries, true_relevance
from experiments.marketplace.state import WorldState
from features.dataset import Dataset


def true_labels(dataset: Dataset, pairs: pl.DataFrame) -> NDArray[np.int64] | None:
    """The true class of each pair, drawn anew from the parameters and the seed of the world.

    Args:
        dataset: Of ``adtower demo`` or ``adtower data make``.
        pairs: query_id, product_id.

    Returns:
        0, 1 or 2, shape (N,); None for any dataset that is no generated grocery world.
    """
    truth = None if dataset.folder is None else Path(dataset.folder) / "truth"
    if truth is None or not dataset.spec.simulated or not truth.is_dir():
        return None
    state = WorldState.load(truth)
    products, queries = dataset.table("products"), dataset.table("queries")
    try:
        catalogue = make_catalogue(len(products), state.parameters, state.seed)
    except ValueError:
        return None
    drawn = make_queries(catalogue, state.parameters, state.seed)
    # A log simulated over somebody's own catalogue has a truth too, but another one.
    if drawn.text_Q != queries["query"].to_list():
        return None
    class_QP = true_relevance(drawn, catalogue)
    row_of_query = {key: row for row, key in enumerate(queries["query_id"].to_list())}
    row_of_product = {key: row for row, key in enumerate(products["product_id"].to_list())}
    query_N = [row_of_query[key] for key in pairs["query_id"].to_list()]
    product_N = [row_of_product[key] for key in pairs["product_id"].to_list()]
    return class_QP[query_N, product_N].astype(np.int64)
