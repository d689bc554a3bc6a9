"""Hard negatives: products that the model of the moment takes for relevant and nobody judged.

Shape letters: Q queries, B of them at a time, P products, E embedding size, C candidates of a
query, K negatives kept.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embeddings.judgements import Judgements

QUERY_BLOCK = 256
"""Queries compared with the whole catalogue at a time."""

SPARE = 4
"""Candidates looked at for each negative kept, so that some may be left out."""


@torch.no_grad()
def mine_hard_negatives(
    query_QE: Tensor,
    product_PE: Tensor,
    query_Q: NDArray[np.int64],
    judgements: Judgements,
    group_P: NDArray[np.int64],
    *,
    count: int,
    near_duplicate: float,
) -> NDArray[np.int64]:
    """Find the products nearest to each query that are likely no match for it.

    Left out are products that were judged for the query, whatever the label (they are drawn by
    class as it is), further listings of one group, and unjudged products that all but equal a
    known positive of the query: those are most likely positives that nobody got round to.

    Args:
        query_QE: Unit vectors of the queries.
        product_PE: Unit vectors of the catalogue.
        query_Q: Codes of the queries in ``judgements``.
        judgements: What is known.
        group_P: Product-group codes.
        count: Negatives K to keep for each query.
        near_duplicate: Cosine to a known positive from which a product counts as another one.

    Returns:
        Product rows, hardest first, -1 where a query has fewer, shape (Q, K).
    """
    found_QK = np.full((len(query_Q), count), -1, np.int64)
    products = len(product_PE)
    for start in range(0, len(query_Q), QUERY_BLOCK):
        code_B = query_Q[start : start + QUERY_BLOCK]
        cosine_BP = query_QE[start : start + len(code_B)] @ product_PE.T
        # Judged products stand among the nearest, so there must be room for them.
        wanted = min(products, SPARE * count + judgements.most_judged)
        near_BC = cosine_BP.topk(wanted, dim=1).indices.cpu().numpy()
        for row, (code, near_C) in enumerate(zip(code_B, near_BC, strict=True), start):
            near_C = near_C[~judgements.judged(np.array([code]), near_C)[0]]
            _, first_C = np.unique(group_P[near_C], return_index=True)
            near_C = near_C[np.sort(first_C)]
            positive_N = judgements.positives(int(code))
            if len(positive_N) and len(near_C):
                alike_C = (product_PE[near_C] @ product_PE[positive_N].T).amax(1).cpu().numpy()
                near_C = near_C[alike_C < near_duplicate]
            kept_K = near_C[:count]
            found_QK[row, : len(kept_K)] = kept_K
    return found_QK


def draw_mined(
    mined_BK: NDArray[np.int64], count: int, generator: torch.Generator
) -> NDArray[np.int64]:
    """Draw distinct products, up to ``count`` of each query's mined ones, sorted."""
    order_BK = torch.rand(mined_BK.shape, generator=generator).argsort(1).numpy()[:, :count]
    drawn = np.take_along_axis(mined_BK, order_BK, axis=1)
    return np.unique(drawn[drawn >= 0])
