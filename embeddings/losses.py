"""The losses of stage 1: image-text contrast (ITC, three ways) and image-text matching (ITM).

A row is a product with two sides. Most rows hold an image and a text; a product that lacks one
modality shows the other twice. ``kind_B`` tells such rows apart: rows of different kinds are never
contrasted, for an image lies nearer to any image than to its own text.

Shape letters: B rows of a batch, K keys (the batch first, then a queue), D embedding size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What momentum encoders say of the batch (its rows first, in order) and of earlier ones."""

    image_KD: Tensor
    text_KD: Tensor
    group_K: Tensor
    """Product group of each key."""
    kind_K: Tensor
    filled_K: Tensor
    """False where a queue holds nothing yet; such keys are no negatives."""


def itc_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    group_B: Tensor,
    *,
    temperature: Tensor | float,
    kind_B: Tensor | None = None,
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
        kind_B: Rows of different kinds are left out of each other's contrast; None if all are
            one kind.

    Returns:
        The mean loss of both directions, in nats. Embeddings without information score log(B).

    Raises:
        ValueError: If the shapes disagree, B is below 2, or no row has a negative.

    Source:
        Li et al. 2021 (ALBEF), arXiv:2107.07651, equation 1; several positives a row as in the
        retrieval fine-tuning of BLIP, arXiv:2201.12086.
    """
    other_BB = negatives(image_BD, text_BD, group_B, kind_B)
    logit_BB = cosine_logits(image_BD, text_BD, temperature)
    apart_BB = _different(kind_B, kind_B, logit_BB)
    target_BB = even_targets(~other_BB & ~apart_BB)
    return (
        soft_cross_entropy(logit_BB, target_BB, apart_BB)
        + soft_cross_entropy(logit_BB.T, target_BB, apart_BB)
    ) / 2


def all_texts_loss(
    image_BD: Tensor,
    text_VD: Tensor,
    group_B: Tensor,
    group_V: Tensor,
    *,
    temperature: Tensor | float,
    smoothing: float = 0.0,
    share_B: Tensor | None = None,
    other_group_B: Tensor | None = None,
) -> Tensor:
    """Draw each image to the texts of its own product group, among all texts of a catalogue.

    Args:
        image_BD: Image embeddings, shape (B, D).
        text_VD: Embeddings of every different text, shape (V, D).
        group_B: Product group of each image.
        group_V: Product group of each text; every image's group is among them.
        temperature: Divides the cosine similarity.
        smoothing: Share of the target that is spread evenly over all texts.
        share_B: Share of each image that shows its own product; 1 if None.
        other_group_B: Product group of what the rest of the image shows.

    Returns:
        The mean cross-entropy in nats; without information log(V).

    Source:
        The image-to-text half of ALBEF's contrast with every key present; smoothing as Szegedy et
        al. 2016, arXiv:1512.00567; shares as Yun et al. 2019 (CutMix), arXiv:1905.04899.
    """
    logit_BV = cosine_logits(image_BD, text_VD, temperature)
    hard_BV = even_targets(group_B[:, None] == group_V)
    if share_B is not None and other_group_B is not None:
        other_BV = even_targets(other_group_B[:, None] == group_V)
        hard_BV = share_B[:, None] * hard_BV + (1 - share_B[:, None]) * other_BV
    target_BV = (1 - smoothing) * hard_BV + smoothing / len(group_V)
    return soft_cross_entropy(logit_BV, target_BV, torch.zeros_like(logit_BV, dtype=torch.bool))


def momentum_itc_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    keys: Keys,
    *,
    temperature: Tensor | float,
    soft_weight: float,
) -> Tensor:
    """Contrast with the keys of momentum encoders and a queue, targets softened by the teacher.

    The target of a row is ``(1 - soft_weight)`` times an equal share for each filled key of its
    own group, plus ``soft_weight`` times what the momentum encoders themselves believe. Keys of
    the own group are therefore never pure negatives, however old, and unfilled ones do not count.

    Args:
        image_BD: Image embeddings, shape (B, D), rows as the first B of ``keys``.
        text_BD: Text embeddings, shape (B, D).
        keys: Momentum embeddings, K at least B; they get no gradient.
        temperature: Divides the cosine similarity, of student and teacher alike.
        soft_weight: From 0 (plain cross-entropy) to 1.

    Returns:
        The mean loss of both directions, in nats. At ``soft_weight`` 0, embeddings without
        information score the log of the number of keys.

    Raises:
        ValueError: If the shapes disagree, or no row has a negative among the keys.

    Source:
        ALBEF, arXiv:2107.07651, section 3.2 and equations 1 and 6; groups in the queue as in the
        retrieval fine-tuning of BLIP, arXiv:2201.12086; the filled mask is ours.
    """
    count = len(image_BD)
    if image_BD.shape != text_BD.shape or keys.image_KD.shape[0] < count:
        raise ValueError(
            f"image {tuple(image_BD.shape)}, text {tuple(text_BD.shape)} and keys "
            f"{tuple(keys.image_KD.shape)} must be (B, D), (B, D) and (K, D) with K at least B"
        )
    group_B, kind_B = keys.group_K[:count], keys.kind_K[:count]
    left_out_BK = (kind_B[:, None] != keys.kind_K) | ~keys.filled_K
    same_BK = (group_B[:, None] == keys.group_K) & ~left_out_BK
    if bool((same_BK | left_out_BK).all()):
        raise ValueError(
            f"all {int(keys.filled_K.sum())} keys are of their row's own group, so there are no "
            "negatives; is group_id filled in correctly?"
        )
    hard_BK = even_targets(same_BK)
    loss = image_BD.new_zeros((), dtype=torch.float32)
    for query_BD, teacher_KD, key_KD in (
        (image_BD, keys.image_KD, keys.text_KD),
        (text_BD, keys.text_KD, keys.image_KD),
    ):
        with torch.no_grad():
            belief_BK = cosine_logits(teacher_KD[:count], key_KD, temperature)
            belief_BK = belief_BK.masked_fill(left_out_BK, -math.inf).softmax(1)
            target_BK = soft_weight * belief_BK + (1 - soft_weight) * hard_BK
        logit_BK = cosine_logits(query_BD, key_KD.detach(), temperature)
        loss = loss + soft_cross_entropy(logit_BK, target_BK, left_out_BK) / 2
    return loss


def sigmoid_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    group_B: Tensor,
    *,
    temperature: Tensor | float,
    bias: Tensor | float,
    kind_B: Tensor | None = None,
) -> Tensor:
    """Judge every image-text pair of the batch on its own: same group or not.

    Args:
        image_BD: Image embeddings, shape (B, D).
        text_BD: Text embeddings, shape (B, D).
        group_B: Integer product-group ids, shape (B,).
        temperature: Divides the cosine similarity.
        bias: Added to every logit; begin at ``sigmoid_bias(B)``.
        kind_B: As in ``itc_loss``.

    Returns:
        The sum over pairs divided by B, in nats. Embeddings without information score
        B * H(1 / B) at the best bias, H being the binary entropy; that is about 1 + log(B).

    Raises:
        ValueError: As ``itc_loss``.

    Source:
        Zhai et al. 2023 (SigLIP), arXiv:2303.15343, equation 1.
    """
    other_BB = negatives(image_BD, text_BD, group_B, kind_B)
    logit_BB = cosine_logits(image_BD, text_BD, temperature) + bias
    apart_BB = _different(kind_B, kind_B, logit_BB)
    sign_BB = torch.where(other_BB, -1.0, 1.0)
    pair_BB = F.softplus(-sign_BB * logit_BB).masked_fill(apart_BB, 0.0)
    return pair_BB.sum() / len(group_B)


def sigmoid_bias(batch: int) -> float:
    """The bias at which one pair in ``batch`` is believed matched, so that training starts calm.

    SigLIP's own -10 suits batches of 32,768 and stalls small ones.
    """
    share = 1 / batch
    return math.log(share / (1 - share))


def cosine_logits(left_ND: Tensor, right_MD: Tensor, temperature: Tensor | float) -> Tensor:
    """Cosine similarities over the temperature in float32 or better, shape (N, M)."""
    # The temperature divides rounding errors too, so bfloat16 would cost the small differences.
    with torch.autocast(left_ND.device.type, enabled=False):
        return (
            F.normalize(at_least_float32(left_ND), dim=1)
            @ F.normalize(at_least_float32(right_MD), dim=1).T
        ) / temperature


def at_least_float32(x: Tensor) -> Tensor:
    """The same numbers in float32, or as they are if they are finer."""
    return x if x.dtype == torch.float64 else x.float()


def negatives(image_BD: Tensor, text_BD: Tensor, group_B: Tensor, kind_B: Tensor | None) -> Tensor:
    """Which text is a negative of which image, shape (B, B).

    Raises:
        ValueError: If the shapes disagree, B is below 2, or there is no negative at all.
    """
    if image_BD.shape != text_BD.shape or group_B.shape != image_BD.shape[:1]:
        raise ValueError(
            f"image {tuple(image_BD.shape)}, text {tuple(text_BD.shape)} and group "
            f"{tuple(group_B.shape)} must be (B, D), (B, D) and (B,)"
        )
    if len(group_B) < 2:
        raise ValueError("a batch of one product has no negatives; use a batch of 2 or more")
    other_BB = group_B[:, None] != group_B
    if kind_B is not None:
        other_BB = other_BB & (kind_B[:, None] == kind_B)
    if not bool(other_BB.any()):
        raise ValueError(
            f"all {len(group_B)} products of the batch are one group (id {int(group_B[0])}), so "
            "there are no negatives; is group_id filled in correctly?"
        )
    return other_BB


def even_targets(positive_BK: Tensor) -> Tensor:
    """Rows of probabilities that share 1 evenly among a row's positives, shape (B, K)."""
    target_BK = positive_BK.float()
    return target_BK / target_BK.sum(1, keepdim=True).clamp_min(1.0)


def soft_cross_entropy(logit_BK: Tensor, target_BK: Tensor, left_out_BK: Tensor) -> Tensor:
    """Mean cross-entropy against rows of probabilities, over the keys not left out, in nats."""
    log_BK = logit_BK.masked_fill(left_out_BK, -math.inf).log_softmax(dim=1)
    return -(target_BK * log_BK.masked_fill(left_out_BK, 0.0)).sum(1).mean()


@torch.no_grad()
def draw_itm_negatives(
    logit_BB: Tensor,
    group_B: Tensor,
    generator: torch.Generator,
    *,
    whole_B: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a mismatched text for each image and a mismatched image for each text.

    A confusable partner is the likelier: the draw follows the softmax of the ITC logits, with
    the row's own partner and its whole group taken out.

    Args:
        logit_BB: ITC logits, images by texts, shape (B, B).
        group_B: Integer product-group ids, shape (B,).
        generator: Makes the draw repeatable.
        whole_B: Rows with image and text; the others are not drawn. None if all have both.

    Returns:
        The text drawn for each image (B,), the image drawn for each text (B,), and a mask (B,)
        of the rows that have any negative. Rows outside the mask hold an arbitrary row.

    Source:
        ALBEF, section 3.2. There the guard against an empty row is added before the softmax,
        where it changes nothing; here it is added after.
    """
    other_BB = (group_B[:, None] != group_B).float()
    if whole_B is not None:
        other_BB = other_BB * whole_B[:, None] * whole_B
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


def _different(kind_B: Tensor | None, kind_K: Tensor | None, like_BK: Tensor) -> Tensor:
    """Which pairs are of different kinds, shape (B, K)."""
    if kind_B is None or kind_K is None:
        return torch.zeros_like(like_BK, dtype=torch.bool)
    return kind_B[:, None] != kind_K
