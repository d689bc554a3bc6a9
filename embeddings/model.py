"""DashCLIP's encoders as one thing that embeds products and queries.

Shape letters: P products, Q queries, B rows of a batch, L text tokens, D text width, C image
width, S pixels a side, E embedding size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer
from torch import Tensor, nn

from embeddings import checkpoint
from embeddings.encoders import (
    ImageEncoder,
    ImageShape,
    MultimodalEncoder,
    TextEncoder,
    TextLayer,
    TextShape,
    initialise_,
    load_bert_,
    mean_pool,
    read_text_shape,
)
from embeddings.images import ImageTable, decode_images
from embeddings.precision import Precision, choose_precision
from embeddings.text import TokenTable, load_tokenizer, product_texts, tokenize
from embeddings.weights import ResolvedWeights

Mode = Literal["multimodal", "text", "image"]

EMBED_BATCH = 256
"""Rows embedded at a time: large enough for the cores, small enough for their caches."""

RANDOM_TEXT = TextShape(
    vocabulary=260, width=128, layers=4, heads=4, feed_forward=512, positions=512
)
"""The text encoder where there are no weights: small, over bytes."""


class Architecture(BaseModel):
    """Everything that decides the shapes and the preprocessing of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: TextShape
    image: ImageShape
    fusion_layers: int
    """Last text layers that get cross-attention in the multimodal encoder."""
    frozen_text_layers: int
    """Text layers, from the bottom, that no stage changes; their states are cached."""
    embedding_dim: int
    """Size of every vector that leaves the model."""
    text_columns: tuple[str, ...]
    """Product columns that make its text, in order."""
    max_text_tokens: int
    max_query_tokens: int
    query_layers: int = 0
    """Last layers that the query encoder owns a trained copy of; 0 before stage 2."""
    projection_width: int = 0
    """Hidden units of the product projection; 0 is linear."""


@dataclass(frozen=True, kw_only=True)
class ProductFeatures:
    """What the frozen encoders say of products, before any projection."""

    enc_PD: Tensor
    """Multimodal encoder at [ENC]."""
    text_PD: Tensor
    """Text encoder, mean over tokens; zeros without text."""
    image_PC: Tensor
    """Image encoder, mean over patches; zeros without image."""
    has_text_P: Tensor
    has_image_P: Tensor

    def take(self, row_B: Tensor) -> ProductFeatures:
        """The products ``row_B``, in that order."""
        return ProductFeatures(**{name: part[row_B] for name, part in vars(self).items()})

    def parts(self) -> tuple[Tensor, Tensor]:
        """Layer-normalised blocks side by side, absent ones zero, and a mask of what is present.

        Returns:
            Both of shape (P, 2D + C).
        """
        blocks: list[Tensor] = []
        masks: list[Tensor] = []
        for part, present in (
            (self.enc_PD, self.has_text_P | self.has_image_P),
            (self.text_PD, self.has_text_P),
            (self.image_PC, self.has_image_P),
        ):
            mask = present[:, None].to(part.dtype).expand_as(part)
            blocks.append(F.layer_norm(part, part.shape[-1:]) * mask)
            masks.append(mask)
        return torch.cat(blocks, dim=1), torch.cat(masks, dim=1)


class ProductProjection(nn.Module):
    """Frozen product features to the space shared with queries.

    Every feature is standardised over the catalogue first. Frozen encoders give all products much
    the same vector plus a little; only the little tells them apart.
    """

    centre_X: Tensor
    scale_X: Tensor

    def __init__(self, inputs: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("centre_X", torch.zeros(inputs))
        self.register_buffer("scale_X", torch.ones(inputs))
        self.linear = nn.Linear(inputs, dim)
        self.up = nn.Linear(inputs, hidden) if hidden else None
        self.down = nn.Linear(hidden, dim) if hidden else None

    @torch.no_grad()
    def fit_(self, features: ProductFeatures) -> None:
        """Take centre and scale of each feature over the products that have it."""
        part_PX, present_PX = features.parts()
        count_X = present_PX.sum(0).clamp_min(1)
        centre_X = part_PX.sum(0) / count_X
        spread_X = ((part_PX - centre_X).square() * present_PX).sum(0) / count_X
        self.centre_X.copy_(centre_X)
        self.scale_X.copy_(spread_X.sqrt().clamp_min(1e-4))

    def standardise(self, features: ProductFeatures) -> Tensor:
        """What ``forward`` takes: standardised features, zeros where absent, (P, X)."""
        part_PX, present_PX = features.parts()
        return (part_PX - self.centre_X) / self.scale_X * present_PX

    def forward(self, input_PX: Tensor) -> Tensor:
        """Standardised features to vectors, (P, E)."""
        out_PE = self.linear(input_PX)
        if self.up is not None and self.down is not None:
            out_PE = out_PE + self.down(F.gelu(self.up(input_PX)))
        return out_PE


class QueryEncoder(nn.Module):
    """The last layers of a text encoder as a copy that trains, and a projection.

    The layers below are the text encoder's own: they are frozen, so a copy would equal them.
    """

    def __init__(self, shape: TextShape, layers: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TextLayer(shape) for _ in range(layers))
        self.projection = nn.Linear(shape.width, dim)

    def pooled(self, x_BLD: Tensor, attend_BL: Tensor) -> Tensor:
        """Normalised mean of the last states, (B, D)."""
        for layer in self.layers:
            x_BLD = layer(x_BLD, attend_BL)
        pooled_BD = mean_pool(x_BLD, attend_BL).float()
        return F.layer_norm(pooled_BD, pooled_BD.shape[-1:])

    def forward(self, x_BLD: Tensor, attend_BL: Tensor) -> Tensor:
        return self.projection(self.pooled(x_BLD, attend_BL))


class DashClip(nn.Module):
    """Embeds products and queries; trained by ``train_stage1`` and ``train_stage2``.

    What a vector is depends on ``stage``. Up to stage 1, a product is the unit mean of the
    unit vectors that the ITC projections give of its image and its text (of one, where it has
    one), and a query is the ITC projection of its text. After stage 2 a product is the projection
    of its multimodal features, a query the output of the query encoder.
    """

    def __init__(self, architecture: Architecture, tokenizer: Tokenizer, source: str) -> None:
        super().__init__()
        self.architecture = architecture
        self.tokenizer = tokenizer
        self.source = source
        """Where the first text weights came from, one line."""
        self.stage = 0
        """0 untrained, 1 after image-text pre-training, 2 after product-query alignment."""
        self.run: dict[str, object] = {}
        """Seed, config and data of the stage that made this model."""
        self.history: dict[str, dict[str, list[float]]] = {}
        """Per stage, the value of each metric at each step."""
        text, image, dim = architecture.text, architecture.image, architecture.embedding_dim
        self.text = TextEncoder(text)
        self.image = ImageEncoder(image)
        self.multimodal = MultimodalEncoder(text, image, architecture.fusion_layers)
        self.itc_text = nn.Linear(text.width, dim, bias=False)
        self.itc_image = nn.Linear(image.width, dim, bias=False)
        self.itm_head = nn.Linear(text.width, 2)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.query_encoder: QueryEncoder | None = None
        self.product_projection: ProductProjection | None = None
        if architecture.query_layers:
            self._add_alignment_parts()
        self._precision: Precision | None = None

    @classmethod
    def initial(
        cls,
        weights: ResolvedWeights,
        *,
        image: ImageShape,
        fusion_layers: int,
        trainable_text_layers: int,
        embedding_dim: int,
        text_columns: Sequence[str],
        max_text_tokens: int,
        max_query_tokens: int,
        generator: torch.Generator,
    ) -> DashClip:
        """An untrained model: text from ``weights``, everything else random.

        Raises:
            ValueError: If more layers are to be fused or trained than the text encoder has, or
                texts may be longer than its positions.
        """
        shape = RANDOM_TEXT if weights.path is None else read_text_shape(weights.path)
        if not 1 <= fusion_layers <= trainable_text_layers <= shape.layers:
            raise ValueError(
                f"fusion_layers={fusion_layers} and trainable_text_layers={trainable_text_layers} "
                f"must satisfy 1 <= fusion <= trainable <= {shape.layers}, the layers of the text "
                "encoder"
            )
        if max(max_text_tokens, max_query_tokens) > shape.positions:
            raise ValueError(
                f"max_text_tokens={max_text_tokens} and max_query_tokens={max_query_tokens} must "
                f"not exceed the {shape.positions} positions of the text encoder"
            )
        architecture = Architecture(
            text=shape,
            image=image,
            fusion_layers=fusion_layers,
            frozen_text_layers=shape.layers - trainable_text_layers,
            embedding_dim=embedding_dim,
            text_columns=tuple(text_columns),
            max_text_tokens=max_text_tokens,
            max_query_tokens=max_query_tokens,
        )
        model = cls(architecture, load_tokenizer(weights.path), weights.source)
        initialise_(model, generator)
        # Orthogonal rows keep the cosines of the pretrained text encoder nearly as they were.
        nn.init.orthogonal_(model.itc_text.weight, generator=generator)
        if weights.path is not None:
            load_bert_(model.text, weights.path)
        return model

    @property
    def dim(self) -> int:
        """Size E of the vectors."""
        return self.architecture.embedding_dim

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.temperature.device

    @property
    def precision(self) -> Precision:
        """The arithmetic of the encoders on this machine, probed on first use."""
        if self._precision is None:
            self._precision = choose_precision(self.text, self.device)
        return self._precision

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, architecture and tokenizer: names the vectors this model makes."""
        return checkpoint.fingerprint(
            self.state_dict(), self.architecture.model_dump_json(), self.tokenizer.to_str()
        )

    def embed_products(
        self,
        products: pl.DataFrame,
        mode: Mode = "multimodal",
        *,
        image_root: str | Path | None = None,
        images: ImageTable | None = None,
    ) -> NDArray[np.float32]:
        """Embed products.

        Args:
            products: product_id, text columns, and image (encoded bytes or path) if there is one.
            mode: What the model may look at. "multimodal" takes what each product has.
            image_root: Folder that relative image paths start from.
            images: The images already decoded, to spare doing it again.

        Returns:
            Unit rows, shape (P, E); a row of zeros for a product that has nothing of what
            ``mode`` asks for.

        Raises:
            ValueError: If ``mode`` is unknown or an image cannot be decoded.
        """
        features = self.product_features(products, mode, image_root=image_root, images=images)
        return self.project_products(features).numpy()

    @torch.no_grad()
    def project_products(self, features: ProductFeatures) -> Tensor:
        """Frozen features to vectors as ``embed_products`` gives them, on the CPU."""
        if self.product_projection is not None:
            input_PX = self.product_projection.standardise(features)
            vector_PE = F.normalize(self.product_projection(input_PX), dim=1)
        else:
            text_PE = F.normalize(self.itc_text(features.text_PD), dim=1)
            image_PE = F.normalize(self.itc_image(features.image_PC), dim=1)
            vector_PE = F.normalize(
                text_PE * features.has_text_P[:, None] + image_PE * features.has_image_P[:, None],
                dim=1,
            )
        return (vector_PE * (features.has_text_P | features.has_image_P)[:, None]).cpu()

    @torch.no_grad()
    def embed_queries(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Embed query texts as unit rows, shape (Q, E); the same text always gives one vector."""
        if not len(queries):
            return np.zeros((0, self.dim), np.float32)
        tokens = tokenize(self.tokenizer, queries, self.architecture.max_query_tokens)
        out_QE = torch.zeros(len(queries), self.dim)
        for row_B in tokens.by_length(EMBED_BATCH):
            id_BL, attend_BL = (part.to(self.device) for part in tokens.padded(row_B))
            with self.precision.autocast(self.device):
                x_BLD = self.query_states(id_BL, attend_BL)
                if self.query_encoder is not None:
                    pooled_BD = self.query_encoder.pooled(x_BLD, attend_BL)
                else:
                    pooled_BD = mean_pool(x_BLD, attend_BL)
            projection = self.query_encoder.projection if self.query_encoder else self.itc_text
            out_QE[row_B] = F.normalize(projection(pooled_BD.float()), dim=1).cpu()
        return out_QE.numpy()

    def query_states(self, id_BL: Tensor, attend_BL: Tensor) -> Tensor:
        """States below the query encoder's own layers (after all layers before stage 2)."""
        last = len(self.text.layers) - self.architecture.query_layers
        return self.text.run(self.text.embed(id_BL), attend_BL, first=0, last=last)

    @torch.no_grad()
    def product_features(
        self,
        products: pl.DataFrame,
        mode: Mode = "multimodal",
        *,
        image_root: str | Path | None = None,
        images: ImageTable | None = None,
    ) -> ProductFeatures:
        """Run the frozen encoders over products; arguments as in ``embed_products``."""
        if mode not in ("multimodal", "text", "image"):
            raise ValueError(f"mode {mode!r} is not one of 'multimodal', 'text', 'image'")
        count, shape = len(products), self.architecture
        texts = product_texts(products, shape.text_columns) if mode != "image" else [""] * count
        has_text_P = torch.tensor([len(text) > 0 for text in texts], dtype=torch.bool)
        if mode == "text":
            images = None
            has_image_P = torch.zeros(count, dtype=torch.bool)
        else:
            images = images or decode_images(products, shape.image.pixels, image_root=image_root)
            has_image_P = torch.from_numpy(images.present_P)
        features = ProductFeatures(
            enc_PD=torch.zeros(count, shape.text.width),
            text_PD=torch.zeros(count, shape.text.width),
            image_PC=torch.zeros(count, shape.image.width),
            has_text_P=has_text_P,
            has_image_P=has_image_P,
        )
        if not count:
            return features
        tokens = tokenize(self.tokenizer, texts, shape.max_text_tokens)
        for row_B in tokens.by_length(EMBED_BATCH):
            # Products with and without an image take different paths through the fusion layers.
            for part_B in (row_B[has_image_P[row_B]], row_B[~has_image_P[row_B]]):
                if len(part_B):
                    self._fill_features_(features, part_B, tokens, images)
        features.text_PD.mul_(has_text_P[:, None])
        return features

    def _fill_features_(
        self,
        features: ProductFeatures,
        row_B: Tensor,
        tokens: TokenTable,
        images: ImageTable | None,
    ) -> None:
        first, last = self.architecture.frozen_text_layers, len(self.text.layers)
        id_BL, attend_BL = (part.to(self.device) for part in tokens.padded(row_B))
        with self.precision.autocast(self.device):
            x_BLD = self.text.run(self.text.embed(id_BL), attend_BL, first=0, last=first)
            state_BLD = self.text.run(x_BLD, attend_BL, first=first, last=last)
            features.text_PD[row_B] = mean_pool(state_BLD, attend_BL).float().cpu()
            keys_values = None
            if images is not None and bool(features.has_image_P[row_B[0]]):
                image_BIC = self.image(scale_pixels(images.pixel_PSS3[row_B.numpy()], self.device))
                features.image_PC[row_B] = image_BIC.float().mean(1).cpu()
                keys_values = self.multimodal.keys_values(image_BIC)
            enc_BD = self.multimodal(self.text, x_BLD, attend_BL, keys_values, first=first)
            features.enc_PD[row_B] = enc_BD.float().cpu()

    def with_alignment(self, query_layers: int, projection_width: int) -> DashClip:
        """Return a copy with the parts of stage 2, the query encoder starting as the text encoder.

        The projections are left for ``train_stage2`` to initialise.

        Raises:
            ValueError: If the text encoder has fewer layers, or the model is aligned already.
        """
        layers = len(self.text.layers)
        if not 1 <= query_layers <= layers:
            raise ValueError(f"query_layers={query_layers} must be between 1 and {layers}")
        if self.stage >= 2:
            raise ValueError("this model went through stage 2 already; start from its stage 1")
        aligned = copy.deepcopy(self)
        aligned.architecture = self.architecture.model_copy(
            update={"query_layers": query_layers, "projection_width": projection_width}
        )
        aligned._add_alignment_parts()
        assert aligned.query_encoder is not None
        for own, source in zip(
            aligned.query_encoder.layers, self.text.layers[layers - query_layers :], strict=True
        ):
            own.load_state_dict(source.state_dict())
        return aligned.to(self.device)

    def _add_alignment_parts(self) -> None:
        shape = self.architecture
        inputs = 2 * shape.text.width + shape.image.width
        self.query_encoder = QueryEncoder(shape.text, shape.query_layers, shape.embedding_dim)
        self.product_projection = ProductProjection(
            inputs, shape.embedding_dim, shape.projection_width
        )

    def save_(self, folder: str | Path) -> Path:
        """Write the model as a folder, whole or not at all; see ``embeddings.checkpoint``."""
        record = {
            "architecture": self.architecture.model_dump(mode="json"),
            "source": self.source,
            "stage": self.stage,
            "run": self.run,
            "history": self.history,
        }
        return checkpoint.write_(Path(folder), self.state_dict(), self.tokenizer.to_str(), record)

    @classmethod
    def load(cls, folder: str | Path) -> DashClip:
        """Read a model back.

        Raises:
            ValueError: If the folder holds no model, a damaged one, or one of another
                architecture.
        """
        tensors, tokenizer, record = checkpoint.read(Path(folder))
        model = cls(
            Architecture.model_validate(record["architecture"]),
            Tokenizer.from_str(tokenizer),
            record["source"],
        )
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"{folder} holds weights of another architecture: {error}") from error
        model.stage, model.run, model.history = record["stage"], record["run"], record["history"]
        return model


def scale_pixels(pixel_BSS3: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Bytes to floats in [-2, 2], shape kept."""
    return torch.from_numpy(pixel_BSS3).to(device).float().div_(63.75).sub_(2.0)
