"""What people, and a judge that learned from them, say of Home Depot's pairs.

Shape letters: Q queries, P products, K products of a query.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch

from embeddings.baselines import text_vectors
from embeddings.hard_negatives import mine_hard_negatives
from embeddings.judgements import Judgements
from embeddings.product_groups import product_groups
from embeddings.soft_labels import CHANCE_COLUMNS, rating_chances
from embeddings.text import product_texts
from embeddings.weights import find_text_weights
from experiments.importers import MODERATE_ABOVE, RELEVANT_ABOVE

RATING_DEVIATION = 0.25
"""How far a mean of about three ratings lies from that of many: ratings of one pair spread by
about half a grade."""

RATING_STEP = 1 / 3
"""Between two means of three ratings."""


def with_chances(relevance: pl.DataFrame) -> pl.DataFrame:
    """Add p0, p1 and p2 to pairs that have a mean rating; see ``rating_chances``.

    Args:
        relevance: rating, from 1 to 3, and any other columns.
    """
    # Classes begin half a step above the last rating that is folded to the class below.
    bounds = (MODERATE_ABOVE + RATING_STEP / 2, RELEVANT_ABOVE)
    chance_N3 = rating_chances(relevance["rating"].to_numpy(), bounds, RATING_DEVIATION)
    return relevance.with_columns(
        pl.Series(name, chance_N3[:, place]) for place, name in enumerate(CHANCE_COLUMNS)
    )


def nearest_unjudged(
    products: pl.DataFrame,
    queries: pl.DataFrame,
    relevance: pl.DataFrame,
    count: int,
    *,
    text_columns: Sequence[str] = ("title",),
) -> pl.DataFrame:
    """The products that off-the-shelf text takes for nearest to each judged query.

    Args:
        products: product_id and text columns.
        queries: query_id, query.
        relevance: query_id, product_id, label; of these queries, and none of these pairs.
        count: Products K for each query.
        text_columns: Columns that make a product's text.

    Returns:
        query_id, product_id.
    """
    ids = products["product_id"].to_list()
    group_P = product_groups(products)
    judgements = Judgements(relevance, queries, ids, group_P, np.random.default_rng(0))
    weights = find_text_weights()
    code_Q = np.arange(len(judgements.texts))
    found_QK = mine_hard_negatives(
        torch.from_numpy(text_vectors(judgements.texts, weights)),
        torch.from_numpy(text_vectors(product_texts(products, text_columns), weights)),
        code_Q,
        judgements,
        group_P,
        count=count,
        near_duplicate=2.0,
    )
    judged = set(relevance["query_id"].to_list())
    known = queries.filter(pl.col("query_id").is_in(list(judged)))
    text_of = dict(zip(known["query"].to_list(), known["query_id"].to_list(), strict=True))
    row_N, place_N = np.nonzero(found_QK >= 0)
    return pl.DataFrame(
        {
            "query_id": [text_of[judgements.texts[row]] for row in row_N],
            "product_id": [ids[row] for row in found_QK[row_N, place_N]],
        }
    )


def pairs_to_judge(
    products: pl.DataFrame, queries: pl.DataFrame, human: pl.DataFrame, count: int
) -> pl.DataFrame:
    """The pairs that people labelled, and ``count`` products of each of their queries that nobody
    labelled: query_id, product_id."""
    nearest = nearest_unjudged(products, queries, human, count)
    return pl.concat([human.select("query_id", "product_id"), nearest])
