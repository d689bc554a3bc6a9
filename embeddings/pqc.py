"""The loss of stage 2, product-query contrast (PQC) by grades of relevance.

Shape letters: B queries of a batch, M products drawn for them, D embedding size, N judged pairs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from embeddings.losses import cosine_logits

UNKNOWN = -1
"""Stands in a label matrix for a pair that nobody judged."""


def pqc_loss(
    query_BD: Tensor, product_MD: Tensor, label_BM: Tensor, *, temperature: Tensor | float
) -> Tensor:
    """Draw queries to products by grade: 2 above 1, 1 above 0 and above the unjudged.

    Two contrasts are summed. Each pair of label 2 competes with every product of its query that
    is not of label 2; each pair of label 1 competes with those of label 0 and the unjudged only.
    So a known positive is never the negative of an equal or a lesser one. The first contrast
    runs in both directions, products against queries too.

    Args:
        query_BD: Query embeddings, shape (B, D); need not be unit length.
        product_MD: Product embeddings, shape (M, D).
        label_BM: 2, 1, 0, or ``UNKNOWN`` for pairs nobody judged, shape (B, M).
        temperature: Divides the cosine similarity.

    Returns:
        The loss in nats: the mean over label-2 pairs of both directions, plus the mean over
        label-1 pairs. A grade absent from the batch adds nothing.

    Raises:
        ValueError: If the shapes disagree, a label is none of the four, or no pair of the batch
            has label 1 or 2.

    Source:
        Contrast of van den Oord et al. 2018, arXiv:1807.03748, as in the stage 2 of Gurjar et
        al., arXiv:2504.07110; the ladder of grades is Hoffmann et al. 2022 (RINCE),
        arXiv:2201.11736.
    """
    if label_BM.shape != (len(query_BD), len(product_MD)):
        raise ValueError(
            f"labels {tuple(label_BM.shape)} must be queries by products, "
            f"({len(query_BD)}, {len(product_MD)})"
        )
    if not bool(((label_BM >= UNKNOWN) & (label_BM <= 2)).all()):
        raise ValueError(f"labels must be 2, 1, 0 or {UNKNOWN}; got {label_BM.unique().tolist()}")
    logit_BM = cosine_logits(query_BD, product_MD, temperature)
    two_BM, one_BM, rest_BM = label_BM == 2, label_BM == 1, label_BM <= 0
    if not bool((two_BM | one_BM).any()):
        raise ValueError(
            "no pair of the batch has label 1 or 2, so there is nothing to draw together; "
            "were the labels shifted by one?"
        )
    loss = logit_BM.new_zeros(())
    if bool(two_BM.any()):
        below_two_BM = one_BM | rest_BM
        forward = pair_contrast(logit_BM, two_BM, below_two_BM)
        backward = pair_contrast(logit_BM.T, two_BM.T, below_two_BM.T)
        loss = loss + (forward + backward) / 2
    if bool(one_BM.any()):
        loss = loss + pair_contrast(logit_BM, one_BM, rest_BM)
    return loss


def pair_contrast(logit_BM: Tensor, positive_BM: Tensor, negative_BM: Tensor) -> Tensor:
    """Mean over positives of -log(e^s / (e^s + sum of e^s over the row's negatives)), in nats.

    A row's positives do not compete with each other. A positive whose row has no negative
    scores 0.
    """
    negative_B1 = logit_BM.masked_fill(~negative_BM, float("-inf")).logsumexp(1, keepdim=True)
    return F.softplus(negative_B1 - logit_BM)[positive_BM].mean()


def graded_pair_loss(cosine_N: Tensor, label_N: Tensor, *, temperature: Tensor | float) -> Tensor:
    """Put the cosine of every higher label above that of every lower one, across queries.

    The contrast within a query leaves each query its own scale; this term asks for one scale,
    which is what a threshold, an AUC over all pairs or a click model sees.

    Args:
        cosine_N: Cosines of judged pairs, shape (N,).
        label_N: Their labels, shape (N,).
        temperature: Divides the difference of two cosines.

    Returns:
        The mean over pairs of pairs of log(1 + exp((lower - higher) / temperature)), in nats;
        log 2 is no better than chance. 0 where all labels are equal.

    Source:
        Burges et al. 2005 (RankNet).
    """
    higher_NN = label_N[:, None] > label_N[None, :]
    if not bool(higher_NN.any()):
        return cosine_N.sum() * 0
    gap_NN = (cosine_N[None, :] - cosine_N[:, None]) / temperature
    return F.softplus(gap_NN)[higher_NN].mean()
