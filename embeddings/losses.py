"""The losses of DashCLIP: image-text contrast, image-text matching, product-query contrast.

Shape letters: B rows of a batch (products in stage 1, queries in stage 2), D embedding size,
M products drawn for a batch of queries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

UNKNOWN = -1
"""Stands in a label matrix for a pair that nobody judged."""


def itc_loss(
    image_BD: Tensor, text_BD: Tensor, group_B: Tensor, *, temperature: Tensor | float
) -> Tensor:
    """Draw each image to the texts of its own product group, and away from all others.

    Row i of ``image_BD`` and row i of ``text_BD`` are one product. Rows need not be unit length.
    Where a group has several rows they share the target equally, so the same item listed twice
    is never its own negative.

    Args:
        image_BD: Image embeddings, shape (B, D).
        text_BD: Text embeddings, shape (B, D).
        group_B: Integer product-group ids, shape (B,).
        temperature: Divides the cosine similarity; smaller is sharper.

    Returns:
        The mean loss of both directions, in nats. Embeddings without information score log(B).

    Raises:
        ValueError: If the shapes disagree, B is below 2, or all rows are one group.

    Source:
        Li et al. 2021 (ALBEF), arXiv:2107.07651, equation 1; several positives a row as in the
        retrieval fine-tuning of BLIP, arXiv:2201.12086.
    """
    if image_BD.shape != text_BD.shape or group_B.shape != image_BD.shape[:1]:
        raise ValueError(
            f"image {tuple(image_BD.shape)}, text {tuple(text_BD.shape)} and group "
            f"{tuple(group_B.shape)} must be (B, D), (B, D) and (B,)"
        )
    if len(group_B) < 2:
        raise ValueError("a batch of one product has no negatives; use a batch of 2 or more")
    same_BB = group_B[:, None] == group_B[None, :]
    if bool(same_BB.all()):
        raise ValueError(
            f"all {len(group_B)} products of the batch are one group (id {int(group_B[0])}), so "
            "there are no negatives; is group_id filled in correctly?"
        )
    logit_BB = itc_logits(image_BD, text_BD, temperature)
    target_BB = same_BB.to(logit_BB.dtype)
    target_BB = target_BB / target_BB.sum(1, keepdim=True)
    return (soft_cross_entropy(logit_BB, target_BB) + soft_cross_entropy(logit_BB.T, target_BB)) / 2


def itc_logits(image_BD: Tensor, text_BD: Tensor, temperature: Tensor | float) -> Tensor:
    """Cosine similarities over the temperature in float32, images by texts, (B, B)."""
    # The temperature divides rounding errors too, so bfloat16 would cost the small differences.
    with torch.autocast(image_BD.device.type, enabled=False):
        return (
            F.normalize(image_BD.float(), dim=1) @ F.normalize(text_BD.float(), dim=1).T
        ) / temperature


def soft_cross_entropy(logit_BM: Tensor, target_BM: Tensor) -> Tensor:
    """Mean cross-entropy against rows of probabilities, in nats."""
    return -(target_BM * F.log_softmax(logit_BM, dim=1)).sum(1).mean()


@torch.no_grad()
def draw_itm_negatives(
    logit_BB: Tensor, group_B: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a mismatched text for each image and a mismatched image for each text.

    A confusable partner is the likelier: the draw follows the softmax of the ITC logits, with
    the row's own partner and its whole group taken out.

    Args:
        logit_BB: ITC logits, images by texts, shape (B, B).
        group_B: Integer product-group ids, shape (B,).
        generator: Makes the draw repeatable.

    Returns:
        The text drawn for each image (B,), the image drawn for each text (B,), and a mask (B,)
        of the rows that have any negative. Rows outside the mask hold an arbitrary row.

    Source:
        ALBEF, section 3.2. There the guard against an empty row is added before the softmax,
        where it changes nothing; here it is added after.
    """
    other_BB = (group_B[:, None] != group_B[None, :]).to(torch.float32)
    guard = torch.finfo(torch.float32).tiny
    drawn: list[Tensor] = []
    for logits in (logit_BB, logit_BB.T):
        weight_BB = (logits.float().softmax(dim=1) + guard) * other_BB
        # A row whose softmax lies wholly on its own group still draws, evenly, among the others;
        # tiny numbers do not survive the division inside multinomial, so rows are rescaled first.
        weight_BB = weight_BB / weight_BB.amax(dim=1, keepdim=True).clamp_min(guard)
        empty_B1 = other_BB.sum(1, keepdim=True) == 0
        weight_BB = torch.where(empty_B1, torch.ones_like(weight_BB), weight_BB)
        drawn.append(torch.multinomial(weight_BB, 1, generator=generator)[:, 0])
    return drawn[0], drawn[1], other_BB.sum(1) > 0


def itm_loss(logit_N2: Tensor, matched_N: Tensor) -> Tensor:
    """Tell matched from mismatched image-text pairs: mean cross-entropy in nats.

    Two thirds of the pairs are mismatched, so a constant answer is right two times in three and
    scores .637 nats; judge by AUC, never by accuracy.

    Args:
        logit_N2: Scores for mismatched and matched, shape (N, 2).
        matched_N: 1 where matched, else 0, shape (N,).
    """
    return F.cross_entropy(logit_N2.float(), matched_N.long())


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
    logit_BM = itc_logits(query_BD, product_MD, temperature)
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
