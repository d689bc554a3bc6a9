"""What annotators say about queries and products: few queries, few pairs each, some of it wrong.

Shape letters: Q queries, P products, N judged pairs.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.marketplace.parameters import WorldParameters


def judge(
    relevance_QP: NDArray[np.int8],
    department_P: NDArray[np.int64],
    judgeable_P: NDArray[np.bool_],
    parameters: WorldParameters,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8], NDArray[np.str_]]:
    """Draw the pairs that were judged and the labels they got.

    Args:
        relevance_QP: True classes, shape (Q, P).
        department_P: Department of each product, for the negatives by rule.
        judgeable_P: Products that existed when the labels were collected.
        parameters: How many queries and pairs are judged, and how often wrongly.
        seed: The same seed gives the same judgements.

    Returns:
        Query rows, product rows, labels 0, 1, 2 and sources ("human" or "rule"), each of shape
        (N,), sorted by query then product. "rule" pairs are free of noise.
    """
    rng = np.random.default_rng([seed, 5])
    queries = len(relevance_QP)
    labelled = np.sort(rng.permutation(queries)[: round(parameters.labelled_share * queries)])
    known = np.flatnonzero(judgeable_P)
    query_rows, product_rows, sources = [], [], []
    for query in labelled:
        class_known = relevance_QP[query, known]
        chosen = [
            rng.permutation(known[class_known == label])[:count]
            for label, count in enumerate(parameters.judged_by_class)
        ]
        human = np.concatenate(chosen)
        at_home_D = np.zeros(department_P.max() + 1, dtype=bool)
        at_home_D[department_P[known[class_known > 0]]] = True
        free = (class_known == 0) & ~at_home_D[department_P[known]] & ~np.isin(known, human)
        far = known[free]
        rule = rng.permutation(far)[: parameters.rule_negatives]
        pairs = np.concatenate([human, rule])
        order = np.argsort(pairs)
        query_rows.append(np.full(len(pairs), query))
        product_rows.append(pairs[order])
        sources.append(np.repeat(["human", "rule"], [len(human), len(rule)])[order])
    query_N, product_N = np.concatenate(query_rows), np.concatenate(product_rows)
    source_N = np.concatenate(sources)
    label_N = relevance_QP[query_N, product_N].copy()
    human_N = source_N == "human"
    label_N[human_N] = _with_noise(label_N[human_N], parameters, rng)
    return query_N, product_N, label_N, source_N


def relevance_table(
    query_id_N: NDArray[np.str_],
    product_id_N: NDArray[np.str_],
    label_N: NDArray[np.int8],
    source_N: NDArray[np.str_],
) -> pl.DataFrame:
    """Write judgements as the ``relevance`` table of a dataset."""
    return pl.DataFrame(
        {
            "query_id": query_id_N,
            "product_id": product_id_N,
            "label": label_N.astype(np.int8),
            "source": source_N,
        }
    )


def _with_noise(
    label_N: NDArray[np.int8], parameters: WorldParameters, rng: np.random.Generator
) -> NDArray[np.int8]:
    """Replace a share of labels by a wrong one, mostly the neighbouring class."""
    wrong_N = rng.random(len(label_N)) < parameters.label_noise
    far_N = rng.random(len(label_N)) < parameters.far_label_noise
    from_edge_N = np.where(far_N, 2 - label_N, 1)
    from_middle_N = 2 * rng.integers(0, 2, len(label_N))
    return np.where(wrong_N, np.where(label_N == 1, from_middle_N, from_edge_N), label_N).astype(
        np.int8
    )
