"""The settings of stage 2, without what carries them out."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from embeddings.stage1_config import MAX_TEMPERATURE, MIN_TEMPERATURE


class Stage2Config(BaseModel):
    """Settings of the product-query alignment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    end_to_end: bool = False
    """Train the text and the multimodal encoder too, at every layer, for products and queries; the
    image encoder stays frozen. Many times as slow, and where titles say all there is, better."""
    query_layers: int | None = Field(default=None, ge=1)
    """Last text layers that the query encoder trains a copy of; None is all of them, as in the
    paper. The layers below are those of the product texts, frozen or (end to end) trained by both
    sides."""
    projection_width: int = Field(default=512, ge=0)
    """Hidden units of the product projection; 0 is a linear one."""
    class_ratio: tuple[int, int, int] = (4, 2, 1)
    """Products of label 2, 1 and 0 drawn for each query of a batch."""
    source_weights: dict[str, float] = {}
    """How much the labels of each source count ("human", "llm", "judge", "rule"); one where it is
    not named, and 0 leaves them out."""
    hard_negatives: int = Field(default=0, ge=0)
    """Unjudged products drawn for each query from those that the model of the moment ranks
    highest."""
    mine_every: int = Field(default=100, ge=1)
    """Steps between two searches for hard negatives, each over the whole catalogue."""
    near_duplicate: float = Field(default=0.95, gt=0, le=2)
    """Cosine to a known positive of the query from which an unjudged product is taken for one too,
    and never mined; above 1 leaves none out."""
    bank: int = Field(default=0, ge=0)
    """Product vectors of earlier batches that the contrast also runs against."""
    steps: int = Field(default=300, ge=1)
    batch: int = Field(default=128, ge=2)
    """Queries per step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak, for the projections."""
    query_learning_rate: float = Field(default=2e-4, gt=0)
    """Peak, for the layers of the query encoder."""
    text_learning_rate: float = Field(default=1e-4, gt=0)
    """Peak, for the text and the multimodal encoder, end to end."""
    warmup_steps: int = Field(default=30, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    ema_decay: float | None = Field(default=0.99, ge=0, lt=1)
    """The trained model has an average of the weights over about 1 / (1 - ``ema_decay``) steps, a
    third of all at most. None gives it the last weights."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=0.07, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)
    """Initial temperature of the contrast; it is learned."""
    contrast_weight: float = Field(default=0.05, ge=0)
    """Weight of ``pqc_loss``. The more of it, the more each query has a scale of its own, and the
    less one threshold tells classes apart; without any, nothing is said of unjudged pairs."""
    graded_weight: float = Field(default=1.0, ge=0)
    """Weight of ``graded_pair_loss`` beside it; 0 leaves it out."""
    graded_temperature: float = Field(default=0.1, gt=0)
    modality_dropout: float = Field(default=0.1, ge=0, lt=0.5)
    """Chance that a drawn product is seen by its text alone, and that it is seen by its image
    alone, so that products which lack one are embedded well."""
    token_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Chance that a token of a query, and end to end of a product, is hidden at a step from the
    layers that train; never the first or the last."""

    @field_validator("class_ratio")
    @classmethod
    def _ratio_has_positives(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(value) < 0 or value[0] + value[1] == 0:
            raise ValueError(
                f"class_ratio={value} must be counts of labels 2, 1, 0 with a positive count for "
                "2 or 1"
            )
        return value

    @field_validator("source_weights")
    @classmethod
    def _weights_are_not_negative(cls, value: dict[str, float]) -> dict[str, float]:
        if any(not weight >= 0 for weight in value.values()):
            raise ValueError(f"source_weights={value} must not be negative")
        return value

    @model_validator(mode="after")
    def _something_trains(self) -> Stage2Config:
        if not self.contrast_weight and not self.graded_weight:
            raise ValueError("contrast_weight and graded_weight are both 0, so nothing would train")
        return self
