"""One step of stage 1: losses and gradients of a global batch, on one rank or many, whole or in
parts, with or without momentum encoders.

Shape letters: G rows of the global batch, B those of this rank (or of a part of them), E embedding
size, I image tokens, C image width, L tokens, D text width, N pairs that ITM judges, V different
texts, T width of a text's vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embeddings.cached_text import CachedStates
from embeddings.gradcache import embed_parts, part_surrogate
from embeddings.image_text_batches import IMAGE_ONLY, TEXT_ONLY, Batch
from embeddings.losses import (
    all_texts_loss,
    at_least_float32,
    cosine_logits,
    draw_itm_negatives,
    itc_loss,
    momentum_itc_loss,
    sigmoid_loss,
)
from embeddings.model import DashClip
from embeddings.pictures import Patch, Pictures
from embeddings.queue import KeyQueue
from embeddings.ranks import Ranks
from embeddings.stage1_config import Objective

LENGTH_WASTE = 1.25
"""Texts of a batch run in several goes where padding would cost more than this."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step computed; its gradients are in the parameters."""

    itc: float
    itm: float
    itm_score_N: Tensor
    """Matched minus mismatched logit of this rank's pairs."""
    itm_matched_N: Tensor
    image_GE: Tensor
    text_GE: Tensor
    queue_drift: float = float("nan")


@dataclass(kw_only=True)
class ImageTextStep:
    """Everything a step needs beside the batch."""

    model: DashClip
    follower: DashClip | None
    """The momentum encoders, if the objective has them."""
    queue: KeyQueue | None
    pictures: Pictures
    states: CachedStates
    """Of each different text."""
    text_of_N: Tensor
    """Which of them a product has."""
    ranks: Ranks
    objective: Objective
    bias: nn.Parameter | None
    """Of the sigmoid loss."""
    hidden_share: float
    itm_rows: int
    itm_temperature: float
    group_V: Tensor | None = None
    """Product group of each different text, -1 of none, if images are contrasted with all."""
    smoothing: float = 0.0
    """Of those targets."""
    pooled_VT: Tensor | None = None
    """Read-out of each different text where the text encoder is frozen."""
    part_rows: int | None
    """Rows embedded at a time; None embeds the whole batch at once."""

    def __call__(
        self,
        batch: Batch,
        generator: torch.Generator,
        *,
        step: int,
        soft_weight: float,
        check_drift: bool = False,
    ) -> Outcome:
        """Compute the losses of a batch and add their gradients to the parameters.

        Args:
            batch: The same on every rank.
            generator: Of the ITM draw, in the same state on every rank.
            step: Written beside the keys of the queue.
            soft_weight: Of the momentum teacher.
            check_drift: Whether to measure the queue's age.
        """
        model, ranks = self.model, self.ranks
        own = ranks.own(len(batch.row_G))
        rows_B = torch.arange(own.start, own.stop)
        parts = list(rows_B.split(self.part_rows or len(rows_B)))
        in_parts = len(parts) > 1
        image_tokens: Tensor | None = None
        if in_parts:
            own_image_BE, own_text_BE = embed_parts(
                parts, lambda part: self._embed(model, batch, part)[:2]
            )
        else:
            own_image_BE, own_text_BE, image_tokens = self._embed(model, batch, rows_B)
        image_GE, text_GE = ranks.gather(own_image_BE), ranks.gather(own_text_BE)
        itc, drift = self._contrast(batch, image_GE, text_GE, step, soft_weight, check_drift)
        text_row_N, image_row_N, matched_N = self._itm_pairs(batch, image_GE, text_GE, generator)
        if in_parts:
            itc.backward()
            # A step with mixed images asks nothing of the batch's own texts.
            slope_BE = [
                torch.zeros_like(side_BE) if side_BE.grad is None else side_BE.grad
                for side_BE in (own_image_BE, own_text_BE)
            ]
        itm, score, matched = 0.0, [], []
        for part, start in zip(parts, _starts(parts), strict=True):
            loss = itc if not in_parts else image_GE.new_zeros(())
            if in_parts:
                image_BE, text_BE, image_tokens = self._embed(model, batch, part)
                at = slice(start, start + len(part))
                slopes = slope_BE[0][at], slope_BE[1][at]
                loss = loss + part_surrogate((image_BE, text_BE), slopes)
            here_N = (image_row_N >= part[0]) & (image_row_N <= part[-1])
            if bool(here_N.any()):
                assert image_tokens is not None
                score_N2 = self._match(
                    batch, part, image_tokens, text_row_N[here_N], image_row_N[here_N]
                )
                target_N = matched_N[here_N].to(score_N2.device)
                mismatch = F.cross_entropy(at_least_float32(score_N2), target_N, reduction="sum")
                mismatch = mismatch / len(matched_N)
                loss, itm = loss + mismatch, itm + float(mismatch.detach())
                score.append((score_N2[:, 1] - score_N2[:, 0]).detach())
                matched.append(matched_N[here_N])
            loss.backward()
        total_itm = float(ranks.sum(torch.tensor(itm, device=model.device)))
        return Outcome(
            itc=float(itc.detach()),
            itm=total_itm,
            itm_score_N=torch.cat(score) if score else image_GE.new_zeros(0),
            itm_matched_N=torch.cat(matched) if matched else matched_N[:0],
            image_GE=image_GE.detach(),
            text_GE=text_GE.detach(),
            queue_drift=drift,
        )

    def _embed(
        self, model: DashClip, batch: Batch, part_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Both sides of some rows of a batch, each (B, E), and the tokens of those with image."""
        kind_B, row_B = batch.kind_G[part_B], batch.row_G[part_B]
        pictured_B, worded_B = kind_B != TEXT_ONLY, kind_B != IMAGE_ONLY
        image_NIC: Tensor | None = None
        images: list[Tensor] = []
        with model.precision.autocast(model.device):
            if bool(pictured_B.any()):
                image_NIC = self.pictures.tokens(
                    model,
                    row_B[pictured_B],
                    batch.view_GK[part_B][pictured_B],
                    self._patch(batch, part_B),
                )
                images.append(model.itc_image(model.image.pool(image_NIC)))
            if not bool(worded_B.all()):
                again_NIC = self.pictures.tokens(
                    model, row_B[~worded_B], batch.second_GK[part_B][~worded_B]
                )
                images.append(model.itc_image(model.image.pool(again_NIC)))
            texts = [self._texts(model, row_B[worded_B])] if bool(worded_B.any()) else []
            if not bool(pictured_B.all()):
                hidden_BL = batch.hidden_GL[part_B][~pictured_B] < self.hidden_share
                texts.append(self._texts(model, row_B[~pictured_B], hidden_BL))
        if bool(pictured_B.all()) and bool(worded_B.all()):
            return images[0], texts[0], image_NIC
        # Each side in row order: first what it shows of itself, then what stands in for it.
        image_count, text_count = int(pictured_B.sum()), int(worded_B.sum())
        image_place_B = torch.cat([torch.where(pictured_B)[0], torch.where(~pictured_B)[0]])
        text_place_B = torch.cat([torch.where(worded_B)[0], torch.where(~worded_B)[0]])
        none_0E = model.temperature.new_zeros(0, model.dim)
        vectors_IE, vectors_TE = torch.cat([none_0E, *images]), torch.cat([none_0E, *texts])
        image_side = torch.cat([vectors_IE[:image_count], vectors_TE[text_count:]])
        text_side = torch.cat([vectors_TE[:text_count], vectors_IE[image_count:]])
        return (
            image_side.index_select(0, image_place_B.argsort().to(image_side.device)),
            text_side.index_select(0, text_place_B.argsort().to(text_side.device)),
            image_NIC,
        )

    def _patch(self, batch: Batch, part_B: Tensor) -> Patch | None:
        """What is pasted into the images of some rows; None if nothing is."""
        if not bool(batch.mixed_G[part_B].any()):
            return None
        before_B = (part_B - 1) % len(batch.row_G)
        return Patch(
            row_B=batch.row_G[before_B],
            view_BK=batch.view_GK[before_B],
            into_B=batch.mixed_G[part_B],
            box=batch.box,
        )

    def _texts(self, model: DashClip, row_B: Tensor, hidden_BL: Tensor | None = None) -> Tensor:
        """ITC text vectors (B, E), texts of like length together where padding would cost."""
        if self.pooled_VT is not None and hidden_BL is None:
            pooled_BT = self.pooled_VT.index_select(0, self.text_of_N[row_B])
            return model.itc_text(pooled_BT.to(model.device))
        first, last = model.architecture.fusion_start, len(model.text.layers)
        text_B = self.text_of_N[row_B]
        length_B = self.states.tokens.length_P[text_B]
        order_B = length_B.argsort(stable=True)
        vectors: list[Tensor] = []
        goes = by_like_length(length_B, order_B)
        for at_N in goes:
            x_NLD, attend_NL = self.states.batch(text_B[at_N])
            if hidden_BL is not None:
                hidden_NL = hidden_BL[at_N, : attend_NL.shape[1]].to(attend_NL.device)
                attend_NL = attend_NL & ~(hidden_NL & between_ends(attend_NL))
            state_NLD = model.text.run(x_NLD, attend_NL, first=first, last=last)
            vectors.append(model.itc_text(model.text.pool(state_NLD, attend_NL)))
        if len(goes) == 1 and bool((order_B == torch.arange(len(order_B))).all()):
            return vectors[0]
        place_B = torch.cat(goes).argsort().to(vectors[0].device)
        return torch.cat(vectors).index_select(0, place_B)

    def _contrast(
        self,
        batch: Batch,
        image_GE: Tensor,
        text_GE: Tensor,
        step: int,
        soft_weight: float,
        check_drift: bool,
    ) -> tuple[Tensor, float]:
        """The contrastive loss of the global batch, and the drift of the queue if asked for."""
        group_G, kind_G = batch.group_G.to(image_GE.device), batch.kind_G.to(image_GE.device)
        temperature = self.model.temperature
        kinds = None if bool(batch.whole_G.all()) else kind_G
        if self.objective == "all_texts":
            return self._among_all_texts(batch, image_GE), float("nan")
        if self.objective == "in_batch":
            loss = itc_loss(image_GE, text_GE, group_G, temperature=temperature, kind_B=kinds)
            return loss, float("nan")
        if self.objective == "sigmoid":
            assert self.bias is not None
            loss = sigmoid_loss(
                image_GE, text_GE, group_G, temperature=temperature, bias=self.bias, kind_B=kinds
            )
            return loss, float("nan")
        assert self.follower is not None and self.queue is not None
        own = self.ranks.own(len(group_G))
        rows_B = torch.arange(own.start, own.stop)
        with torch.no_grad():
            slow = [
                self._embed(self.follower, batch, part)[:2]
                for part in rows_B.split(self.part_rows or len(rows_B))
            ]
        keys = self.queue.keys(
            self.ranks.gather(torch.cat([image for image, _ in slow])),
            self.ranks.gather(torch.cat([text for _, text in slow])),
            group_G,
            kind_G,
        )
        loss = momentum_itc_loss(
            image_GE, text_GE, keys, temperature=temperature, soft_weight=soft_weight
        )
        drift = self.queue.drift(keys, len(group_G)) if check_drift else float("nan")
        self.queue.push_(keys, len(group_G), step)
        return loss, drift

    def _among_all_texts(self, batch: Batch, image_GE: Tensor) -> Tensor:
        """The contrast of the batch's images with every text of the catalogue."""
        assert self.pooled_VT is not None and self.group_V is not None
        device = image_GE.device
        text_VE = self.model.itc_text(self.pooled_VT.to(device))
        if self.ranks.world > 1:
            # Every rank computes all of them; each carries the gradient of its share.
            place_V1 = torch.arange(len(text_VE), device=device)[:, None]
            mine_V1 = place_V1 % self.ranks.world == self.ranks.rank
            text_VE = torch.where(mine_V1, text_VE, text_VE.detach())
        group_V, group_G = self.group_V.to(device), batch.group_G.to(device)
        shown_G = batch.whole_G.to(device)
        if not bool(shown_G.any()):
            return image_GE.sum() * 0.0
        text_VE, group_V = text_VE[group_V >= 0], group_V[group_V >= 0]
        share_G = torch.where(batch.mixed_G.to(device), batch.own_share, 1.0)
        return all_texts_loss(
            image_GE[shown_G],
            text_VE,
            group_G[shown_G],
            group_V,
            temperature=self.model.temperature,
            smoothing=self.smoothing,
            share_B=share_G[shown_G],
            other_group_B=group_G.roll(1)[shown_G],
        )

    @torch.no_grad()
    def _itm_pairs(
        self, batch: Batch, image_GE: Tensor, text_GE: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not self.itm_rows:
            none = torch.zeros(0, dtype=torch.int64)
            return none, none, none
        temperature = self.model.temperature.detach().clamp(min=self.itm_temperature)
        logit_GG = cosine_logits(image_GE, text_GE, temperature).cpu()
        whole_G = batch.whole_G & ~batch.mixed_G
        return itm_pairs(logit_GG, batch.group_G, self.itm_rows, generator, whole_B=whole_G)

    def _match(
        self,
        batch: Batch,
        part_B: Tensor,
        image_NIC: Tensor,
        text_row_N: Tensor,
        image_row_N: Tensor,
    ) -> Tensor:
        """ITM scores (N, 2) of pairs named by their rows in the global batch."""
        model = self.model
        pictured_B = batch.kind_G[part_B] != TEXT_ONLY
        place_B = pictured_B.long().cumsum(0) - 1
        image_at_N = place_B[image_row_N - part_B[0]].to(model.device)
        x_NLD, attend_NL = self.states.batch(self.text_of_N[batch.row_G[text_row_N]])
        with model.precision.autocast(model.device):
            # index_select, because the gradient of plain indexing adds up in no fixed order.
            keys_values = [
                part.index_select(0, image_at_N) for part in model.multimodal.keys_values(image_NIC)
            ]
            enc_ND = model.multimodal(
                model.text,
                x_NLD,
                attend_NL,
                keys_values,
                first=model.architecture.fusion_start,
            )
            return model.itm_head(enc_ND)


def itm_pairs(
    logit_BB: Tensor,
    group_B: Tensor,
    rows: int,
    generator: torch.Generator,
    *,
    whole_B: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the pairs that ITM judges.

    The first ``rows`` products with image and text (all, if there are fewer) enter once matched,
    once with a hard image and once with a hard text.

    Returns:
        Text row, image row and match (1 or 0) of each pair, each (3R,), mismatches fewer where a
        product had none to draw.
    """
    text_for_image_B, image_for_text_B, possible_B = draw_itm_negatives(
        logit_BB, group_B, generator, whole_B=whole_B
    )
    own_R = torch.arange(len(group_B)) if whole_B is None else torch.where(whole_B)[0]
    own_R = own_R[:rows]
    hard_R = own_R[possible_B[own_R]]
    text_row_N = torch.cat([own_R, hard_R, text_for_image_B[hard_R]])
    image_row_N = torch.cat([own_R, image_for_text_B[hard_R], hard_R])
    matched_N = (torch.arange(len(text_row_N)) < len(own_R)).long()
    return text_row_N, image_row_N, matched_N


def between_ends(attend_BL: Tensor) -> Tensor:
    """Real tokens but the first and the last, where encoders are read, (B, L)."""
    place_L = torch.arange(attend_BL.shape[1], device=attend_BL.device)
    return (place_L > 0) & (place_L < attend_BL.sum(1, keepdim=True) - 1)


def by_like_length(length_B: Tensor, order_B: Tensor) -> list[Tensor]:
    """Cut texts, sorted by length, into goes of like length; one go if that saves little.

    Args:
        length_B: Tokens of each text.
        order_B: The texts from short to long.

    Returns:
        Places of the texts of each go.
    """
    if not len(length_B) or float(length_B.float().mean()) * LENGTH_WASTE >= int(length_B.max()):
        return [torch.arange(len(length_B))]
    goes: list[Tensor] = []
    start = 0
    sorted_B = length_B[order_B]
    while start < len(order_B):
        limit = int(float(sorted_B[start]) * LENGTH_WASTE**2) + 1
        end = int((sorted_B <= limit).sum())
        goes.append(order_B[start:end])
        start = end
    return goes


def _starts(parts: list[Tensor]) -> list[int]:
    return [0, *torch.tensor([len(part) for part in parts]).cumsum(0).tolist()][:-1]
