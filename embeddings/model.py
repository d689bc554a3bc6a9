"""DashCLIP's encoders as one thing that embeds products and queries.

Shape letters: P products, Q queries, B rows of a batch, L text tokens, D text width, T width of
a text's vector, C image width, S pixels a side, E embedding size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from embeddings import checkpoint
from embeddings.architecture import Architecture
from embeddings.encoders import (
    MultimodalEncoder,
    QueryEncoder,
    TextEncoder,
    initialise_,
)
from embeddings.image_encoder import ImageEncoder, ImageShape
from embeddings.images import ImageTable, decode_images
from embeddings.initial import Origins, Start, enc_for_cls, plan_architecture, plan_start
from embeddings.lora import add_lora_, has_lora, merge_lora_
from embeddings.precision import Precision, choose_precision
from embeddings.pretrained import load_image_, load_text_
from embeddings.pretrained_pair import load_fusion_
from embeddings.product_features import ProductFeatures, ProductProjection
from embeddings.read_views import views_of
from embeddings.stage1_config import ImageViews
from embeddings.text import TokenTable, product_texts, tokenize
from embeddings.weights import ResolvedWeights

Mode = Literal["multimodal", "text", "image"]

EMBED_BATCH = 256
"""Rows embedded at a time: large enough for the cores, small enough for their caches."""


class DashClip(nn.Module):
    """Embeds products and queries; trained by ``train_stage1`` and ``train_stage2``.

    What a vector is depends on ``stage``. Up to stage 1, a product is the unit mean of the
    unit vectors that the ITC projections give of its image and its text (of one, where it has
    one), and a query is the ITC projection of its text. After stage 2 a product is the projection
    of its multimodal features, a query the output of the query encoder.
    """

    def __init__(self, architecture: Architecture, tokenizer: Tokenizer, origins: Origins) -> None:
        super().__init__()
        self.architecture = architecture
        self.tokenizer = tokenizer
        self.origins = origins
        """Where the first weights of each part came from."""
        self.stage = 0
        """0 untrained, 1 after image-text pre-training, 2 after product-query alignment."""
        self.run: dict[str, object] = {}
        """Seed, config and data of the stage that made this model."""
        self.history: dict[str, dict[str, list[float]]] = {}
        """Per stage, the value of each metric at each step."""
        text, image, dim = architecture.text, architecture.image, architecture.embedding_dim
        self.text = TextEncoder(text)
        self.image = ImageEncoder(image)
        self.multimodal = MultimodalEncoder(
            text, image, architecture.fusion_layers, architecture.cross_norm
        )
        text_bias, image_bias = architecture.projection_bias
        self.itc_text = nn.Linear(text.pooled_width, dim, bias=text_bias)
        self.itc_image = nn.Linear(image.width, dim, bias=image_bias)
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
        image_weights: ResolvedWeights | None = None,
        trainable_image_layers: int | None = None,
        image_views: ImageViews = "one",
    ) -> DashClip:
        """An untrained model: what the checkpoints hold from them, everything else random.

        Args:
            weights: Of the text encoder, from ``find_text_weights``.
            image: Shape of a random image encoder; of it, a pretrained one heeds ``pixels`` alone.
            fusion_layers: Last text layers with cross-attention.
            trainable_text_layers: Last text layers that train; 0 freezes the text encoder.
            embedding_dim: Size E of the vectors.
            text_columns: Product columns that make its text, in order.
            max_text_tokens: Longer product texts are cut.
            max_query_tokens: Longer queries are cut.
            generator: Of all random weights.
            image_weights: Of the image encoder, from ``find_image_weights``; None is random. A
                checkpoint that gives both encoders also gives what it holds of projections,
                cross-attention and ITM head; ``origins`` says what came from where.
            trainable_image_layers: Last image layers that train; None, or all, train what stands
                before them too, and 0 freezes the whole image encoder.
            image_views: What an image's vector is averaged over; see ``embeddings.read_views``.

        Raises:
            ValueError: If more layers are to be fused or trained than an encoder has, texts may be
                longer than its positions, or a checkpoint does not fit.
        """
        start = plan_start(weights, image_weights, image, embedding_dim)
        architecture = plan_architecture(
            start,
            fusion_layers=fusion_layers,
            trainable_text_layers=trainable_text_layers,
            trainable_image_layers=trainable_image_layers,
            embedding_dim=embedding_dim,
            text_columns=tuple(text_columns),
            max_text_tokens=max_text_tokens,
            max_query_tokens=max_query_tokens,
            image_views=image_views,
        )
        model = cls(architecture, start.tokenizer, start.origins)
        initialise_(model, generator)
        # Orthogonal rows keep the cosines of the pretrained text encoder nearly as they were.
        nn.init.orthogonal_(model.itc_text.weight, generator=generator)
        model._fill_(start, weights.path, image_weights.path if image_weights else None)
        return model

    def _fill_(self, start: Start, text_path: Path | None, image_path: Path | None) -> None:
        if text_path is not None:
            load_text_(self.text, text_path)
        if image_path is not None:
            load_image_(self.image, image_path)
        if text_path is not None and start.origins.multimodal.pretrained:
            # Frozen layers must see [CLS], for they run once for text and image alike.
            whole = not self.architecture.frozen_text_layers
            rows = enc_for_cls(start.tokenizer, start.text) if whole else None
            load_fusion_(self.multimodal, self.text, text_path, rows)
        if start.itm_head is not None:
            self.itm_head.load_state_dict(start.itm_head.state_dict())
        given = start.projections
        if given is None:
            return
        self.itc_text.load_state_dict(given.text.state_dict())
        self.itc_image.load_state_dict(given.image.state_dict())
        if given.temperature is not None:
            nn.init.constant_(self.temperature, given.temperature)

    def trained_layers(self) -> dict[Literal["text", "image"], list[nn.Module]]:
        """What stage 1 trains of each encoder; below are frozen layers."""
        shape = self.architecture
        text: list[nn.Module] = [*self.text.layers[shape.frozen_text_layers :]]
        if text:
            text.append(self.text.readout)
        if not shape.frozen_image_layers:
            return {"text": text, "image": [self.image]}
        image = [*self.image.layers[shape.frozen_image_layers :]]
        if image:
            image.append(self.image.norm)
            if self.image.attention_pool is not None:
                image.append(self.image.attention_pool)
        return {"text": text, "image": image}

    def add_lora_(self, rank: int, alpha: float, generator: torch.Generator) -> None:
        """Train pretrained layers through low-rank adapters only; see ``embeddings.lora``.

        The text encoder counts as pretrained, and the image encoder if it is.
        """
        layers = self.trained_layers()
        adapted = layers["text"] + (layers["image"] if self.origins.image.pretrained else [])
        add_lora_(adapted, rank, alpha, generator)

    def trained_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What stage 1 trains but for the temperature: what starts pretrained, what starts random.

        The text encoder and its projection count as pretrained whatever they are. Under adapters
        these stand for the weights they adapt. What is in neither list is frozen.
        """
        layers, origins = self.trained_layers(), self.origins
        pretrained = [*layers["text"], self.itc_text]
        new: list[nn.Module] = []
        for parts, origin in (
            (layers["image"], origins.image),
            ([self.multimodal], origins.multimodal),
            ([self.itc_image], origins.projections),
            ([self.itm_head], origins.itm_head),
        ):
            (pretrained if origin.pretrained else new).extend(parts)
        old, fresh = (
            [p for part in parts for p in part.parameters() if p.requires_grad or not lora]
            for parts, lora in ((pretrained, has_lora(self)), (new, False))
        )
        return old, fresh

    @property
    def source(self) -> str:
        """Where the first text weights came from, one line."""
        return self.origins.text.source

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

    def use_precision(self, precision: Precision) -> None:
        """Fix the arithmetic, for a run that goes on elsewhere than where it began."""
        self._precision = precision

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, architecture and tokenizer: names the vectors this model makes."""
        return checkpoint.fingerprint(
            self._plain().state_dict(), self.architecture.model_dump_json(), self.tokenizer.to_str()
        )

    def embed_products(
        self,
        products: pl.DataFrame,
        mode: Mode = "multimodal",
        *,
        image_root: str | Path | None = None,
        images: ImageTable | None = None,
        batch_tokens: int | None = None,
    ) -> NDArray[np.float32]:
        """Embed products.

        Args:
            products: product_id, text columns, and image (encoded bytes or path) if there is one.
            mode: What the model may look at. "multimodal" takes what each product has.
            image_root: Folder that relative image paths start from.
            images: The images already decoded, to spare doing it again.
            batch_tokens: Embed in batches of so many tokens, which all take about the same memory
                (``TokenTable.by_budget``); None takes ``EMBED_BATCH`` products at a time.

        Returns:
            Unit rows, shape (P, E); a row of zeros for a product that has nothing of what
            ``mode`` asks for.

        Raises:
            ValueError: If ``mode`` is unknown or an image cannot be decoded.
        """
        features = self.product_features(
            products, mode, image_root=image_root, images=images, batch_tokens=batch_tokens
        )
        return self.project_products(features).numpy()

    @torch.no_grad()
    def project_products(self, features: ProductFeatures) -> Tensor:
        """Frozen features to vectors as ``embed_products`` gives them, on the CPU."""
        if self.product_projection is not None:
            input_PX = self.product_projection.standardise(features)
            vector_PE = F.normalize(self.product_projection(input_PX), dim=1)
        else:
            text_PE = F.normalize(self.itc_text(features.text_PT), dim=1)
            image_PE = F.normalize(self.itc_image(features.image_PC), dim=1)
            vector_PE = F.normalize(
                text_PE * features.has_text_P[:, None] + image_PE * features.has_image_P[:, None],
                dim=1,
            )
        return (vector_PE * (features.has_text_P | features.has_image_P)[:, None]).cpu()

    @torch.no_grad()
    def embed_queries(
        self, queries: Sequence[str], *, batch_tokens: int | None = None
    ) -> NDArray[np.float32]:
        """Embed query texts as unit rows, shape (Q, E); the same text always gives one vector.

        Args:
            queries: Texts.
            batch_tokens: As for ``embed_products``.
        """
        if not len(queries):
            return np.zeros((0, self.dim), np.float32)
        tokens = tokenize(self.tokenizer, queries, self.architecture.max_query_tokens)
        out_QE = torch.zeros(len(queries), self.dim)
        for row_B in tokens.batches(EMBED_BATCH, batch_tokens):
            id_BL, attend_BL = (part.to(self.device) for part in tokens.padded(row_B))
            with self.precision.autocast(self.device):
                x_BLD = self.query_states(id_BL, attend_BL)
                if self.query_encoder is not None:
                    pooled_BT = self.query_encoder.pooled(x_BLD, attend_BL)
                else:
                    pooled_BT = self.text.pool(x_BLD, attend_BL)
            projection = self.query_encoder.projection if self.query_encoder else self.itc_text
            out_QE[row_B] = F.normalize(projection(pooled_BT.float()), dim=1).cpu()
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
        batch_tokens: int | None = None,
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
            images = images or decode_images(products, shape.read_pixels, image_root=image_root)
            has_image_P = torch.from_numpy(images.present_P)
        features = ProductFeatures(
            enc_PD=torch.zeros(count, shape.text.width),
            text_PT=torch.zeros(count, shape.text.pooled_width),
            image_PC=torch.zeros(count, shape.image.width),
            has_text_P=has_text_P,
            has_image_P=has_image_P,
        )
        if not count:
            return features
        tokens = tokenize(self.tokenizer, texts, shape.max_text_tokens)
        for row_B in tokens.batches(EMBED_BATCH, batch_tokens):
            # Products with and without an image take different paths through the fusion layers.
            for part_B in (row_B[has_image_P[row_B]], row_B[~has_image_P[row_B]]):
                if len(part_B):
                    self._fill_features_(features, part_B, tokens, images)
        features.text_PT.mul_(has_text_P[:, None])
        return features

    def _fill_features_(
        self,
        features: ProductFeatures,
        row_B: Tensor,
        tokens: TokenTable,
        images: ImageTable | None,
    ) -> None:
        id_BL, attend_BL = (part.to(self.device) for part in tokens.padded(row_B))
        with self.precision.autocast(self.device):
            image_BIC = None
            if images is not None and bool(features.has_image_P[row_B[0]]):
                pixel_BSS3 = scale_pixels(images.pixel_PSS3[row_B.numpy()], self.device)
                shape = self.architecture
                whole, *more = views_of(pixel_BSS3, shape.image_views, shape.image.pixels)
                image_BIC = self.image(whole)
                pooled_BC = self.image.pool(image_BIC.float())
                for view_BSS3 in more:
                    pooled_BC = pooled_BC + self.image.pool(self.image(view_BSS3).float())
                features.image_PC[row_B] = (pooled_BC / (1 + len(more))).float().cpu()
            enc_BD, text_BT = self.read_texts(id_BL, attend_BL, image_BIC)
            features.text_PT[row_B] = text_BT.float().cpu()
            features.enc_PD[row_B] = enc_BD.float().cpu()

    def read_texts(
        self, id_BL: Tensor, attend_BL: Tensor, image_BIC: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Read products at [ENC], (B, D), and their texts by themselves, (B, T).

        Args:
            id_BL: Token ids.
            attend_BL: True for real tokens.
            image_BIC: Tokens of the image encoder, or None for products without an image.
        """
        first, last = self.architecture.fusion_start, len(self.text.layers)
        x_BLD = self.text.run(self.text.embed(id_BL), attend_BL, first=0, last=first)
        state_BLD = self.text.run(x_BLD, attend_BL, first=first, last=last)
        text_BT = self.text.pool(state_BLD, attend_BL)
        keys_values = None if image_BIC is None else self.multimodal.keys_values(image_BIC)
        enc_BD = self.multimodal(self.text, x_BLD, attend_BL, keys_values, first=first)
        return enc_BD, text_BT

    def with_alignment(self, query_layers: int | None, projection_width: int) -> DashClip:
        """Return a copy with the parts of stage 2, the query encoder starting as the text encoder.

        The projections are left for ``train_stage2`` to initialise.

        Args:
            query_layers: Last text layers that the query encoder has a copy of; None copies all.
            projection_width: Hidden units of the product projection; 0 is a linear one.

        Raises:
            ValueError: If the text encoder has fewer layers, or the model is aligned already.
        """
        layers = len(self.text.layers)
        if query_layers is None:
            query_layers = layers
        if not 1 <= query_layers <= layers:
            raise ValueError(f"query_layers={query_layers} must be between 1 and {layers}")
        if self.stage >= 2:
            raise ValueError("this model went through stage 2 already; start from its stage 1")
        aligned = self._plain(copied=True)
        aligned.architecture = self.architecture.model_copy(
            update={"query_layers": query_layers, "projection_width": projection_width}
        )
        aligned._add_alignment_parts()
        assert aligned.query_encoder is not None
        for own, source in zip(
            aligned.query_encoder.layers, aligned.text.layers[layers - query_layers :], strict=True
        ):
            own.load_state_dict(source.state_dict())
        aligned.query_encoder.readout.load_state_dict(aligned.text.readout.state_dict())
        return aligned.to(self.device)

    def _plain(self, *, copied: bool = False) -> DashClip:
        """This model without adapters: itself, if it has none and no copy is wanted."""
        return merge_lora_(copy.deepcopy(self)) if copied or has_lora(self) else self

    def _add_alignment_parts(self) -> None:
        shape = self.architecture
        inputs = shape.text.width + shape.text.pooled_width + shape.image.width
        self.query_encoder = QueryEncoder(shape.text, shape.query_layers, shape.embedding_dim)
        self.product_projection = ProductProjection(
            inputs, shape.embedding_dim, shape.projection_width
        )

    def save_(self, folder: str | Path) -> Path:
        """Write the model as a folder, whole or not at all; see ``embeddings.checkpoint``.

        Adapters are merged in what is written, and stay in the model.
        """
        record = {
            "architecture": self.architecture.model_dump(mode="json"),
            "origins": self.origins.model_dump(mode="json"),
            "stage": self.stage,
            "run": self.run,
            "history": self.history,
        }
        tensors = self._plain().state_dict()
        return checkpoint.write_(Path(folder), tensors, self.tokenizer.to_str(), record)

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
            Origins.model_validate(record["origins"]),
        )
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"{folder} holds weights of another architecture: {error}") from error
        model.stage, model.run, model.history = record["stage"], record["run"], record["history"]
        return model


def scale_pixels(pixel_BSS3: NDArray[np.uint8] | Tensor, device: torch.device) -> Tensor:
    """Bytes to floats in [-2, 2], shape kept."""
    return torch.as_tensor(pixel_BSS3).to(device).float().div_(63.75).sub_(2.0)
