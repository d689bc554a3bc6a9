"""The settings of the neural click model: its shape, its optional parts, and how it is fitted."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ranking.train_config import TrainConfig


class TowerConfig(TrainConfig):
    """The shape of the click network, and how it is fitted.

    ``use_vectors=False`` is the baseline: the production tower with the same head, alone.
    """

    embedding_dim: int = Field(default=16, ge=4, multiple_of=4)
    """Width of every id embedding; fbgemm wants multiples of four."""
    cross_layers: int = Field(default=2, ge=0)
    """DCN-v2 crosses of the production tower."""
    cross_rank: int | None = Field(default=32, ge=1)
    """Rank of each cross; None for full matrices."""
    production_mlp: tuple[int, ...] = (128, 64)
    """Widths of the production tower's MLP, beside the crosses."""
    head: tuple[int, ...] = (64,)
    """Widths of the layers over both towers."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of all hidden layers."""
    use_vectors: bool = True
    """Whether there is an embedding tower at all."""
    single_tower: bool = False
    """Whether vectors are concatenated into the production tower instead."""
    derived: bool = True
    """Whether cos(product, query), the history and cos(product, history) are features."""
    presence: bool = True
    """Whether the masks of missing vectors are features."""
    projected_dim: int = Field(default=32, ge=1)
    """Width that vectors are projected to."""
    tower_mlp: tuple[int, ...] = Field(default=(64, 32), min_length=1)
    """Widths of the embedding tower's MLP."""
    vector_dropout: float = Field(default=0.2, ge=0, lt=1)
    """Of the projected vectors, which could otherwise serve as one more product id."""
    attention: Literal["none", "vectors", "ids"] = "none"
    """Whether the candidate attends to the history (DIN): by projected vectors, or by embeddings
    of the products' own, which need no vectors."""
    attention_mlp: tuple[int, ...] = (32,)
    """Widths of the hidden layers that weigh one product of the history."""
    attention_softmax: bool = False
    """Whether those weights sum to 1; the paper's do not."""
    semantic_levels: int = Field(default=0, ge=0)
    """Semantic ids made of the product vectors, one sparse feature a level; 0 for none."""
    semantic_codes: int = Field(default=16, ge=2)
    """Centroids of each level."""
    frequency_gate: str | None = None
    """The sparse feature (``product_id``) whose embedding is mixed with the product's vector, by
    how often training showed the id; None for no gate."""
    position_slots: int = Field(default=0, ge=0)
    """Slots that a shallow tower tells apart at training; it is absent at scoring. 0 for none."""
    position_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of training rows whose position the shallow tower does not see."""
    entire_space: bool = False
    """Whether purchases are learned together with clicks (ESMM). The clicks alone decide when
    training stops."""
    purchase_mlp: tuple[int, ...] = (64,)
    """Widths of the tower of purchases given a click."""

    @model_validator(mode="after")
    def _clicks_alone_are_sampled(self) -> Self:
        if self.entire_space and self.negative_rate < 1:
            raise ValueError(
                f"negative_rate={self.negative_rate} with entire_space=True: purchases are learned "
                "over all impressions, so none may be left out; set negative_rate=1"
            )
        return self

    @property
    def needs_vectors(self) -> bool:
        """Whether any part is made of vectors."""
        of_parts = self.attention == "vectors" or self.semantic_levels > 0
        return self.use_vectors or of_parts or self.frequency_gate is not None
