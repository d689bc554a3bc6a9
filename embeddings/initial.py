"""What a model starts from: which checkpoint gives which part, decided before it is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer
from torch import nn

from embeddings.architecture import RANDOM_TEXT, Architecture
from embeddings.encoders import TextShape
from embeddings.image_encoder import ImageShape
from embeddings.pretrained import read_image_shape, read_text_shape
from embeddings.pretrained_pair import Projections, has_cross_attention, read_projections
from embeddings.stage1_config import ImageViews
from embeddings.text import load_tokenizer
from embeddings.weights import RANDOM_SOURCE, ResolvedWeights

ENC = "[ENC]"


class Origin(BaseModel):
    """Where the first weights of a part came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    """One line."""
    sha256: str = ""
    """Of the checkpoint's tensors; empty for random weights."""

    @property
    def pretrained(self) -> bool:
        """Whether the part started from a checkpoint."""
        return bool(self.sha256)


RANDOM = Origin(source=RANDOM_SOURCE)


class Origins(BaseModel):
    """Where the first weights of each part of a model came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: Origin
    image: Origin = RANDOM
    multimodal: Origin = RANDOM
    """Cross-attention and [ENC]."""
    projections: Origin = RANDOM
    """Both ITC projections, and the temperature if the checkpoint has one."""
    itm_head: Origin = RANDOM


@dataclass(frozen=True, kw_only=True)
class Start:
    """Shapes, tokenizer and what else the checkpoints bring."""

    text: TextShape
    image: ImageShape
    tokenizer: Tokenizer
    projections: Projections | None
    """None where they start random."""
    itm_head: nn.Linear | None
    """None where it starts random."""
    origins: Origins


def plan_start(
    text_weights: ResolvedWeights,
    image_weights: ResolvedWeights | None,
    image: ImageShape,
    embedding_dim: int,
) -> Start:
    """Read what the checkpoints are, and refuse what does not go together.

    Cross-attention, projections and ITM head are taken only from a checkpoint that gives both
    encoders: between others they would mean nothing.

    Args:
        text_weights: From ``find_text_weights``.
        image_weights: From ``find_image_weights``; None is random.
        image: Shape of a random image encoder; of it, a pretrained one heeds ``pixels`` alone.
        embedding_dim: Projections of another size are not taken, and the origin says so.

    Raises:
        ValueError: If a checkpoint has no such encoder, or its tokenizer is not its own.
    """
    text_path = text_weights.path
    image_path = image_weights.path if image_weights is not None else None
    shape = RANDOM_TEXT if text_path is None else read_text_shape(text_path)
    if image_path is not None:
        image = read_image_shape(image_path, image.pixels)
    origins = {
        "text": Origin(source=text_weights.source, sha256=text_weights.sha256),
        "image": Origin(
            source=image_weights.source if image_weights is not None else RANDOM_SOURCE,
            sha256=image_weights.sha256 if image_weights is not None else "",
        ),
    }
    projections: Projections | None = None
    itm_head: nn.Linear | None = None
    if image_weights is not None and image_path and image_weights.sha256 == text_weights.sha256:
        whole = origins["image"]
        if has_cross_attention(image_path):
            origins["multimodal"] = whole
        found = read_projections(image_path)
        if found is not None and found.text.out_features == embedding_dim:
            projections, origins["projections"] = found, whole
        elif found is not None:
            origins["projections"] = Origin(
                source=f"{RANDOM_SOURCE} (the checkpoint's have {found.text.out_features} "
                f"dimensions, embedding_dim={embedding_dim})"
            )
        if found is not None and found.itm_head is not None:
            itm_head, origins["itm_head"] = found.itm_head, whole
    return Start(
        text=shape,
        image=image,
        tokenizer=load_fitting_tokenizer(text_path, shape),
        projections=projections,
        itm_head=itm_head,
        origins=Origins(**origins),
    )


def plan_architecture(
    start: Start,
    *,
    fusion_layers: int,
    trainable_text_layers: int,
    trainable_image_layers: int | None,
    embedding_dim: int,
    text_columns: tuple[str, ...],
    max_text_tokens: int,
    max_query_tokens: int,
    image_views: ImageViews,
) -> Architecture:
    """Put settings and checkpoints together; arguments as in ``DashClip.initial``.

    Raises:
        ValueError: If more layers are to be fused or trained than an encoder has, or texts may be
            longer than its positions.
    """
    shape, layers = start.text, start.image.layers
    frozen = trainable_text_layers == 0 and 1 <= fusion_layers <= shape.layers
    if not frozen and not 1 <= fusion_layers <= trainable_text_layers <= shape.layers:
        raise ValueError(
            f"fusion_layers={fusion_layers} and trainable_text_layers={trainable_text_layers} "
            f"must satisfy 1 <= fusion <= trainable <= {shape.layers}, the layers of the text "
            "encoder; or trainable_text_layers=0 freezes them all"
        )
    if max(max_text_tokens, max_query_tokens) > shape.positions:
        raise ValueError(
            f"max_text_tokens={max_text_tokens} and max_query_tokens={max_query_tokens} must "
            f"not exceed the {shape.positions} positions of the text encoder"
        )
    if trainable_image_layers is not None and not 0 <= trainable_image_layers <= layers:
        raise ValueError(
            f"trainable_image_layers={trainable_image_layers} must be between 0 and {layers}, the "
            "layers of the image encoder"
        )
    given = start.projections
    return Architecture(
        text=shape,
        image=start.image,
        fusion_layers=fusion_layers,
        frozen_text_layers=shape.layers - trainable_text_layers,
        frozen_image_layers=(
            0 if trainable_image_layers is None else layers - trainable_image_layers
        ),
        embedding_dim=embedding_dim,
        text_columns=text_columns,
        max_text_tokens=max_text_tokens,
        max_query_tokens=max_query_tokens,
        image_views=image_views,
        cross_norm="post" if start.origins.multimodal.pretrained else "pre",
        projection_bias=(
            trainable_text_layers == 0 or (given is not None and given.text.bias is not None),
            given is not None and given.image.bias is not None,
        ),
    )


def load_fitting_tokenizer(folder: Path | None, shape: TextShape) -> Tokenizer:
    """Read the tokenizer of a checkpoint and make its texts what the encoder was trained on.

    Raises:
        ValueError: If it knows more tokens than the encoder, or does not close texts where the
            encoder is read at their end.
    """
    tokenizer = load_tokenizer(folder)
    highest = max(tokenizer.get_vocab().values())
    if highest >= shape.vocabulary:
        raise ValueError(
            f"{folder}/tokenizer.json has token ids up to {highest}, but the text encoder's "
            f"vocabulary has {shape.vocabulary}; is it the tokenizer of another model?"
        )
    if shape.pool == "last" and not tokenizer.encode("").ids:
        raise ValueError(
            f"{folder}/tokenizer.json adds no closing token to a text, but the text encoder is "
            "read there; save the fast tokenizer with save_pretrained"
        )
    if shape.pad_token is not None:
        pad = tokenizer.id_to_token(shape.pad_token)
        if pad is None:
            raise ValueError(
                f"{folder}/config.json has pad_token_id={shape.pad_token}, which tokenizer.json "
                "does not know"
            )
        tokenizer.enable_padding(length=shape.positions, pad_id=shape.pad_token, pad_token=pad)
    return tokenizer


def enc_for_cls(tokenizer: Tokenizer, shape: TextShape) -> tuple[int, int] | None:
    """Vocabulary rows of BLIP's [ENC] and of the [CLS] it stands in for; None if it has no [ENC].

    Published tokenizers do not name it: BLIP adds [DEC] and then [ENC] behind BERT's vocabulary.
    """
    cls = tokenizer.encode("").ids[0]
    named = tokenizer.token_to_id(ENC)
    if named is not None:
        return named, cls
    behind = max(tokenizer.get_vocab().values()) + 2
    return (behind, cls) if behind == shape.vocabulary - 1 else None
