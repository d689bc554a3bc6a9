"""The two sides of stage 2, each frozen below what trains or trained from end to end.

Frozen encoders run once and their outcome is looked up. Trained ones run at every step, over texts
sorted by length so that padding costs little; the image encoder stays frozen either way.

Shape letters: P products, M of them drawn, B queries of a batch, Q all queries, L tokens, X
features of a product, I image tokens, C image width, E embedding size.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from embeddings.cached_text import CACHE_LIMIT_BYTES, CachedStates
from embeddings.images import ImageTable
from embeddings.model import EMBED_BATCH, DashClip, scale_pixels
from embeddings.product_features import ProductFeatures
from embeddings.read_views import resized
from embeddings.text import TokenTable, tokenize

TRAIN_PART = 96
"""Products of like length that pass the encoder together."""


class ProductSide(Protocol):
    """What makes vectors of products."""

    def vectors(self, row_M: Tensor, generator: torch.Generator | None) -> Tensor:
        """Vectors of some products with gradient, (M, E), not normalised.

        Args:
            row_M: Product rows.
            generator: Draws what is hidden from the encoders; None hides nothing.
        """
        ...

    def all_vectors(self) -> Tensor:
        """Unit vectors of the catalogue, (P, E), without gradient."""
        ...


class FrozenProducts:
    """Features of frozen encoders, computed once, through the projection that trains.

    Args:
        model: Its projection is fitted.
        views: Features of the whole products; and, where there are images, by text and by image.
        dropout: Chance of the text view, and of the image view.
    """

    def __init__(self, model: DashClip, views: list[ProductFeatures], dropout: float) -> None:
        assert model.product_projection is not None
        self._projection, self._device = model.product_projection, model.device
        self._views = [self._projection.standardise(view) for view in views]
        self._dropout = dropout

    def vectors(self, row_M: Tensor, generator: torch.Generator | None) -> Tensor:
        """Vectors of some products, (M, E)."""
        part_MX = self._views[0][row_M]
        if generator is not None and len(self._views) > 1:
            hide_text_M, hide_image_M = draw_hidden(len(row_M), self._dropout, generator)
            for view_PX, use_M in ((self._views[1], hide_image_M), (self._views[2], hide_text_M)):
                only_MX = view_PX[row_M]
                # A product without that modality keeps its whole view: there is nothing else.
                use_M = use_M & (only_MX != 0).any(1)
                part_MX = torch.where(use_M[:, None], only_MX, part_MX)
        return self._projection(part_MX.to(self._device))

    @torch.no_grad()
    def all_vectors(self) -> Tensor:
        """Unit vectors of the catalogue, (P, E)."""
        rows = torch.arange(len(self._views[0]))
        parts = [self.vectors(part, None) for part in rows.split(8 * EMBED_BATCH)]
        return F.normalize(torch.cat(parts), dim=1)


class TrainedProducts:
    """Product texts through every layer at every step, with what a frozen encoder saw of images.

    Args:
        model: Its text and multimodal encoder train.
        texts: One a product; an empty one means it has none.
        images: Decoded images.
        image_PC: What the frozen image encoder reads off each, zeros where there is none; None
            where there are no images.
        dropout: Chance that a product with both is seen by its text alone, and by its image alone.
        token_dropout: Chance that a token is hidden.
    """

    def __init__(
        self,
        model: DashClip,
        texts: list[str],
        images: ImageTable,
        image_PC: Tensor | None,
        *,
        dropout: float,
        token_dropout: float,
    ) -> None:
        self._model, self._image_PC = model, image_PC
        self._has_text_P = torch.tensor([len(text) > 0 for text in texts], dtype=torch.bool)
        self._has_image_P = torch.from_numpy(images.present_P)
        self._dropout, self._token_dropout = dropout, token_dropout
        # The last row is the text of a product whose text is hidden.
        self._tokens = tokenize(model.tokenizer, [*texts, ""], model.architecture.max_text_tokens)
        self._images = FrozenImages(model, images)

    def vectors(self, row_M: Tensor, generator: torch.Generator | None) -> Tensor:
        """Vectors of some products, (M, E)."""
        model, projection = self._model, self._model.product_projection
        assert projection is not None
        text_M, image_M = self._has_text_P[row_M], self._has_image_P[row_M]
        if generator is not None:
            hide_text_M, hide_image_M = draw_hidden(len(row_M), self._dropout, generator)
            both_M = text_M & image_M
            text_M, image_M = text_M & ~(both_M & hide_text_M), image_M & ~(both_M & hide_image_M)
        line_M = torch.where(text_M, row_M, len(self._tokens) - 1)
        order_M = torch.argsort(self._tokens.length_P[line_M], stable=True)
        places, read, written = [], [], []
        for with_image in (True, False):
            # Products with and without an image take different paths through the fusion layers.
            for part_B in order_M[image_M[order_M] == with_image].split(TRAIN_PART):
                if not len(part_B):
                    continue
                id_BL, attend_BL = self._tokens.padded(line_M[part_B])
                attend_BL = hide_tokens(attend_BL, self._token_dropout, generator)
                image_BIC = self._images.tokens(row_M[part_B]) if with_image else None
                with model.precision.autocast(model.device):
                    enc_BD, text_BT = model.read_texts(
                        id_BL.to(model.device), attend_BL.to(model.device), image_BIC
                    )
                places.append(part_B)
                read.append(enc_BD.float())
                written.append(text_BT.float())
        back_M = torch.argsort(torch.cat(places))
        device = model.device
        if self._image_PC is None:
            image_MC = torch.zeros(len(row_M), model.architecture.image.width)
        else:
            image_MC = self._image_PC[row_M] * image_M[:, None]
        seen = ProductFeatures(
            enc_PD=torch.cat(read)[back_M.to(device)],
            text_PT=torch.cat(written)[back_M.to(device)] * text_M.to(device)[:, None],
            image_PC=image_MC.to(device),
            has_text_P=text_M.to(device),
            has_image_P=image_M.to(device),
        )
        return projection(projection.standardise(seen))

    @torch.no_grad()
    def all_vectors(self) -> Tensor:
        """Unit vectors of the catalogue, (P, E)."""
        out_PE = torch.zeros(len(self._tokens) - 1, self._model.dim, device=self._model.device)
        order_P = torch.argsort(self._tokens.length_P[:-1], stable=True)
        for row_M in order_P.split(8 * EMBED_BATCH):
            out_PE[row_M.to(out_PE.device)] = F.normalize(self.vectors(row_M, None), dim=1)
        return out_PE


class Queries:
    """The query encoder over texts, its lower layers looked up or trained too.

    Args:
        model: Has a query encoder.
        tokens: The query texts.
        states: What the frozen layers say of them; None runs these layers at every step.
        token_dropout: Chance that a token is hidden from the layers that train.
    """

    def __init__(
        self,
        model: DashClip,
        tokens: TokenTable,
        states: CachedStates | None,
        token_dropout: float,
    ) -> None:
        self._model, self._tokens, self._states = model, tokens, states
        self._token_dropout = token_dropout

    def vectors(self, row_B: Tensor, generator: torch.Generator | None) -> Tensor:
        """Vectors of some queries, (B, E)."""
        assert self._model.query_encoder is not None
        return self._model.query_encoder.projection(self.pooled(row_B, generator))

    def pooled(self, row_B: Tensor, generator: torch.Generator | None) -> Tensor:
        """Normalised read-out of the query encoder before its projection, (B, D)."""
        model = self._model
        assert model.query_encoder is not None
        if self._states is not None:
            x_BLD, attend_BL = self._states.batch(row_B)
            attend_BL = hide_tokens(attend_BL, self._token_dropout, generator)
            with model.precision.autocast(model.device):
                return model.query_encoder.pooled(x_BLD, attend_BL)
        id_BL, attend_BL = self._tokens.padded(row_B)
        attend_BL = hide_tokens(attend_BL, self._token_dropout, generator).to(model.device)
        with model.precision.autocast(model.device):
            x_BLD = model.query_states(id_BL.to(model.device), attend_BL)
            return model.query_encoder.pooled(x_BLD, attend_BL)

    @torch.no_grad()
    def all_pooled(self) -> Tensor:
        """The read-out of all queries before the projection, (Q, D)."""
        rows = list(self._tokens.by_length(2 * EMBED_BATCH))
        pooled_QD = torch.cat([self.pooled(row_B, None) for row_B in rows])
        return pooled_QD[torch.argsort(torch.cat(rows)).to(pooled_QD.device)]

    @torch.no_grad()
    def all_vectors(self) -> Tensor:
        """Unit vectors of all queries, (Q, E)."""
        assert self._model.query_encoder is not None
        return F.normalize(self._model.query_encoder.projection(self.all_pooled()), dim=1)


class FrozenImages:
    """Tokens of the frozen image encoder, kept where they fit the memory set aside for them."""

    def __init__(self, model: DashClip, images: ImageTable) -> None:
        self._model, self._pixel_PSS3 = model, images.pixel_PSS3
        shape = model.architecture.image
        self._kept_PIC: Tensor | None = None
        size = len(self._pixel_PSS3) * shape.tokens * shape.width * model.precision.dtype.itemsize
        if images.present_P.any() and size <= CACHE_LIMIT_BYTES:
            rows = torch.arange(len(self._pixel_PSS3))
            parts = [self._compute(part).cpu() for part in rows.split(EMBED_BATCH)]
            self._kept_PIC = torch.cat(parts).to(model.precision.dtype)

    def tokens(self, row_B: Tensor) -> Tensor:
        """Image tokens of some products, (B, I, C)."""
        if self._kept_PIC is None:
            return self._compute(row_B)
        return self._kept_PIC[row_B].to(self._model.device)

    @torch.no_grad()
    def _compute(self, row_B: Tensor) -> Tensor:
        model = self._model
        with model.precision.autocast(model.device):
            pixel_BSS3 = scale_pixels(self._pixel_PSS3[row_B.numpy()], model.device)
            return model.image(resized(pixel_BSS3, model.architecture.image.pixels))


def draw_hidden(count: int, dropout: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Whose text is hidden and whose image, never both, two masks (M,)."""
    chance_M = torch.rand(count, generator=generator)
    return (chance_M >= dropout) & (chance_M < 2 * dropout), chance_M < dropout


def hide_tokens(attend_BL: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Hide a share of the tokens, but never the first and the last of a text, (B, L)."""
    if generator is None or not share:
        return attend_BL
    chance_BL = torch.rand(attend_BL.shape, generator=generator).to(attend_BL.device)
    kept_BL = (chance_BL >= share) & attend_BL
    kept_BL[:, 0] = True
    last_B1 = attend_BL.sum(1, keepdim=True) - 1
    return kept_BL.scatter(1, last_B1, value=True)
