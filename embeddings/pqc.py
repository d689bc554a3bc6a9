"""The losses of stage 2: product-query contrast (PQC) and order by grades of relevance.

What is known of a pair is the chance of each class; a label that is certain is a chance of one.
With such labels both losses are what they would be if written for labels 2, 1 and 0.

Shape letters: B queries of a batch, M products drawn for them, D embedding size, N judged pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from embeddings.losses import cosine_logits

CLASSES = 3
"""Labels 0 irrelevant, 1 moderately relevant, 2 relevant."""

UNKNOWN = -1
"""Stands in a label matrix for a pair that nobody judged."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What is known of every query of a batch with every product of it."""

    chance_BM3: Tensor
    """Chance of the classes 0, 1, 2, which sum to one; of an unjudged pair all on class 0."""
    weight_BM: Tensor
    """How much a judged pair counts; 0 where nobody judged."""

    def __post_init__(self) -> None:
        if self.chance_BM3.shape != (*self.weight_BM.shape, CLASSES):
            raise ValueError(
                f"chances {tuple(self.chance_BM3.shape)} must have three classes for each of the "
                f"weights {tuple(self.weight_BM.shape)}"
            )

    @classmethod
    def of_labels(cls, label_BM: Tensor) -> Targets:
        """Certain labels of weight one: 2, 1, 0, or ``UNKNOWN`` for pairs nobody judged.

        Raises:
            ValueError: If a label is none of the four.
        """
        if not bool(((label_BM >= UNKNOWN) & (label_BM < CLASSES)).all()):
            found = label_BM.unique().tolist()
            raise ValueError(f"labels must be 2, 1, 0 or {UNKNOWN}; got {found}")
        return cls(
            chance_BM3=F.one_hot(label_BM.clamp_min(0), CLASSES).float(),
            weight_BM=(label_BM != UNKNOWN).float(),
        )

    @property
    def likeliest_BM(self) -> Tensor:
        """The likeliest class of each pair; of two as likely the higher."""
        return CLASSES - 1 - self.chance_BM3.flip(-1).argmax(-1)


def pqc_loss(
    query_BD: Tensor,
    product_MD: Tensor,
    targets: Targets,
    *,
    temperature: Tensor | float,
    bank_QD: Tensor | None = None,
    bank_targets: Targets | None = None,
) -> Tensor:
    """Draw queries to products by grade: 2 above 1, 1 above 0 and above the unjudged.

    Two contrasts are summed. Each pair of label 2 competes with every product of its query that
    is not of label 2; each pair of label 1 competes with those of label 0 and the unjudged only.
    So a known positive is never the negative of an equal or a lesser one. The first contrast
    runs in both directions, products against queries too. An uncertain pair takes part in each
    contrast by its chance of belonging there, except that a pair whose likeliest class is positive
    is never a negative of that class or a lesser one.

    Args:
        query_BD: Query embeddings, shape (B, D); need not be unit length.
        product_MD: Product embeddings, shape (M, D).
        targets: Of each query with each product.
        temperature: Divides the cosine similarity.
        bank_QD: Products of earlier batches, (Q, D): more negatives for the queries.
        bank_targets: Of each query with each of those, so that known positives are left out.

    Returns:
        The loss in nats: the mean over label-2 pairs of both directions, plus the mean over
        label-1 pairs. A grade absent from the batch adds nothing.

    Raises:
        ValueError: If the shapes disagree, or no pair of the batch can have label 1 or 2.

    Source:
        Contrast of van den Oord et al. 2018, arXiv:1807.03748, as in the stage 2 of Gurjar et
        al., arXiv:2504.07110; the ladder of grades is Hoffmann et al. 2022 (RINCE),
        arXiv:2201.11736; the bank is that of He et al. 2020 (MoCo), arXiv:1911.05722.
    """
    if targets.weight_BM.shape != (len(query_BD), len(product_MD)):
        raise ValueError(
            f"targets {tuple(targets.weight_BM.shape)} must be queries by products, "
            f"({len(query_BD)}, {len(product_MD)})"
        )
    if (bank_QD is None) != (bank_targets is None):
        raise ValueError("bank_QD and bank_targets come together, or neither")
    logit_BM = cosine_logits(query_BD, product_MD, temperature)
    weight_2_BM, weight_1_BM = (targets.weight_BM * targets.chance_BM3[..., k] for k in (2, 1))
    if not bool((weight_2_BM + weight_1_BM > 0).any()):
        raise ValueError(
            "no pair of the batch has label 1 or 2, so there is nothing to draw together; "
            "were the labels shifted by one?"
        )
    below_2_BM, below_1_BM = chance_below(targets)
    more_2_B1 = more_1_B1 = None
    if bank_QD is not None and bank_targets is not None and len(bank_QD):
        bank_BQ = cosine_logits(query_BD, bank_QD, temperature)
        more_2_B1, more_1_B1 = (
            log_sum(bank_BQ, below_BQ) for below_BQ in chance_below(bank_targets)
        )
    loss = logit_BM.new_zeros(())
    if bool((weight_2_BM > 0).any()):
        forward = pair_contrast(logit_BM, weight_2_BM, below_2_BM, more_2_B1)
        backward = pair_contrast(logit_BM.T, weight_2_BM.T, below_2_BM.T)
        loss = loss + (forward + backward) / 2
    if bool((weight_1_BM > 0).any()):
        loss = loss + pair_contrast(logit_BM, weight_1_BM, below_1_BM, more_1_B1)
    return loss


def chance_below(targets: Targets) -> tuple[Tensor, Tensor]:
    """How much each pair is a negative of class 2, and of class 1, both (B, M).

    The chance that it is of a lower class; 0 where its likeliest class is that one or higher.
    """
    likeliest_BM = targets.likeliest_BM
    below_2_BM = (1 - targets.chance_BM3[..., 2]) * (likeliest_BM < 2)
    below_1_BM = targets.chance_BM3[..., 0] * (likeliest_BM < 1)
    return below_2_BM, below_1_BM


def pair_contrast(
    logit_BM: Tensor, positive_BM: Tensor, negative_BM: Tensor, more_B1: Tensor | None = None
) -> Tensor:
    """Mean over positives of -log(e^s / (e^s + sum of e^s over the row's negatives)), in nats.

    A row's positives do not compete with each other. A positive whose row has no negative
    scores 0.

    Args:
        logit_BM: Cosines over the temperature.
        positive_BM: Weight of each pair as a positive; 0 is none.
        negative_BM: Weight of each pair as a negative; 0 is none.
        more_B1: Logarithm of what further negatives of the row sum to.
    """
    negative_B1 = log_sum(logit_BM, negative_BM)
    if more_B1 is not None:
        # Not logaddexp, whose gradient is NaN where neither side has anything to sum.
        negative_B1 = torch.cat([negative_B1, more_B1], dim=1).logsumexp(1, keepdim=True)
    kept_BM = positive_BM > 0
    weight_N = positive_BM[kept_BM].to(logit_BM.dtype)
    loss_N = F.softplus(negative_B1 - logit_BM)[kept_BM]
    return (loss_N * weight_N).sum() / weight_N.sum()


def log_sum(logit_BM: Tensor, weight_BM: Tensor) -> Tensor:
    """Logarithm of the weighted sum of e^s in each row, (B, 1); minus infinity for an empty one."""
    weight_BM = weight_BM.to(logit_BM.dtype)
    weighted_BM = logit_BM + weight_BM.clamp_min(1e-12).log()
    return weighted_BM.masked_fill(weight_BM <= 0, float("-inf")).logsumexp(1, keepdim=True)


def graded_pair_loss(
    cosine_N: Tensor, chance_N3: Tensor, weight_N: Tensor, *, temperature: Tensor | float
) -> Tensor:
    """Put the cosine of every higher label above that of every lower one, across queries.

    The contrast within a query leaves each query its own scale; this term asks for one scale,
    which is what a threshold, an AUC over all pairs or a click model sees. Two uncertain pairs
    count either way round, each by its chance.

    Args:
        cosine_N: Cosines of judged pairs, shape (N,).
        chance_N3: Their chances of the classes 0, 1, 2, shape (N, 3).
        weight_N: How much each counts, shape (N,).
        temperature: Divides the difference of two cosines.

    Returns:
        The mean over pairs of pairs of log(1 + exp((lower - higher) / temperature)), in nats;
        log 2 is no better than chance. 0 where all labels are equal.

    Source:
        Burges et al. 2005 (RankNet), whose target probability is here that of the labels.
    """
    below_N2 = torch.stack([1 - chance_N3[:, 2], chance_N3[:, 0]], dim=1)
    above_NN = chance_N3[:, [2, 1]] @ below_N2.T
    weight_NN = above_NN * weight_N[:, None] * weight_N[None, :]
    # An uncertain pair is not compared with itself.
    weight_NN = weight_NN - weight_NN.diag().diag()
    total = weight_NN.sum()
    if not bool(total > 0):
        return cosine_N.sum() * 0
    gap_NN = (cosine_N[None, :] - cosine_N[:, None]) / temperature
    return (F.softplus(gap_NN) * weight_NN).sum() / total
