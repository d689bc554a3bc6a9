"""The settings of the judge, without what carries them out."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from embeddings.weights import MINILM


class JudgeConfig(BaseModel):
    """Settings of the judge; the defaults are those of 60,000 short pairs on two cores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str = MINILM
    """Where the encoder starts: "minilm", "random", or a folder or cached repository of a BERT."""
    require_pretrained: bool = False
    text_columns: tuple[str, ...] = ("title", "brand", "description")
    """Columns of the products table that make a product's text, those that are there, in order."""
    max_query_tokens: int = Field(default=32, ge=3)
    max_product_tokens: int = Field(default=64, ge=3)
    hidden: int = Field(default=128, ge=1)
    """Units of the head's hidden layer."""
    epochs: float = Field(default=2.0, gt=0)
    """Passes over the labelled pairs; 0.5 sees half of them."""
    batch: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak, for the last layer of the encoder."""
    layer_decay: float = Field(default=0.85, gt=0, le=1)
    """Each layer learns this much slower than the one above it. The word table does not learn."""
    head_learning_rate: float = Field(default=1e-3, gt=0)
    warmup_share: float = Field(default=0.06, ge=0, lt=1)
    weight_decay: float = Field(default=0.05, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    rating_weight: float = Field(default=1.0, ge=0)
    """Weight of the rating's loss beside the classes', where the labels have ratings."""
