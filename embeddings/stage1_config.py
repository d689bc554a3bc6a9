"""The settings of stage 1, without what carries them out."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from embeddings.view_config import ViewConfig

Objective = Literal["in_batch", "momentum", "sigmoid", "all_texts"]

ImageViews = Literal["one", "mirror", "crops"]
"""The image; also its mirror image; or both with the centre and the four corners of each."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5
"""The learnable temperature stays between these, as in ALBEF."""


class Stage1Config(BaseModel):
    """Settings of the image-text pre-training; the defaults fit two CPU cores and 48 px."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_weights: str = "minilm"
    """What ``find_text_weights`` resolves: "minilm", "random", a folder, a cached repository."""
    image_weights: str = "random"
    """What ``find_image_weights`` resolves: "random", a folder, a cached repository."""
    require_pretrained: bool = False
    """Refuse to start from random weights, of text or image."""
    text_columns: tuple[str, ...] = ("title",)
    """Product columns that make its text, in order."""
    max_text_tokens: int = Field(default=48, ge=3)
    max_query_tokens: int = Field(default=24, ge=3)
    image_px: int = Field(default=48, ge=8)
    """Side of the squares that the image encoder reads."""
    source_px: int | None = Field(default=None, ge=8)
    """Side of the squares that images are decoded to for training; views that show a part of one
    are the sharper the larger it is. None decodes to ``image_px``."""
    patch_px: int = Field(default=8, ge=2)
    """Side of the square that one image token stands for; a power of two. Without image weights."""
    image_width: int = Field(default=128, ge=8)
    """Without image weights, as the next three."""
    image_layers: int = Field(default=1, ge=1)
    image_heads: int = Field(default=4, ge=1)
    stem_blocks: tuple[int, ...] | None = None
    """Residual convolution blocks after each halving of the image, a number a halving; () is none,
    None one after each but the first, where they cost most."""
    image_views: ImageViews = "one"
    """What an image's vector is the mean over when products are embedded: the image; also its
    mirror image; or both and five crops of each."""
    views: ViewConfig = ViewConfig()
    """How images are varied from step to step."""
    small_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps, from the first, that see images at ``small_px``: cheaper, and enough to
    begin with."""
    small_px: int | None = Field(default=None, ge=8)
    """Side of those images; a multiple of ``patch_px``."""
    fusion_layers: int = Field(default=2, ge=1)
    """Last text layers that look at the image in the multimodal encoder."""
    trainable_text_layers: int = Field(default=2, ge=0)
    """Last text layers that train; the rest are frozen and run once. 0 freezes all of them, and
    only the projection of the text trains, with the cross-attention."""
    trainable_image_layers: int | None = Field(default=None, ge=0)
    """Last image layers that train; None trains all, with what stands before them. Where any is
    frozen, images are seen in one view and the frozen part runs once."""
    lora_rank: int = Field(default=0, ge=0)
    """Train pretrained layers through additions of this rank instead of their own weights; 0
    trains the weights."""
    embedding_dim: int = Field(default=128, ge=2)
    steps: int = Field(default=300, ge=1)
    batch: int = Field(default=64, ge=2)
    """Products per step over all ranks, all of them each other's negatives but for their group."""
    part_rows: int | None = Field(default=None, ge=1)
    """Embed this many rows at a time and still contrast the whole batch, exactly (GradCache);
    None embeds all at once, which is faster and takes more memory."""
    objective: Objective = "in_batch"
    """Contrast within the batch; with keys of momentum encoders and a queue; pair by pair; or each
    image with every different text of the catalogue: for many images of few products, with a
    frozen text encoder."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the targets of "all_texts" that is spread evenly."""
    cutmix: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps in which images have a part of another one pasted in, and are drawn to the
    texts of both by area; those that enter ITM stay whole."""
    queue: int = Field(default=4096, ge=0)
    """Keys of earlier batches that "momentum" contrasts with."""
    momentum: float = Field(default=0.995, ge=0, lt=1)
    """Share of the momentum encoders that stays at each step."""
    soft_weight: float = Field(default=0.4, ge=0, le=1)
    """Weight of the momentum encoders' own beliefs in the targets of "momentum"."""
    soft_ramp_steps: int = Field(default=200, ge=0)
    """Steps over which that weight grows from 0."""
    final_weights: Literal["online", "momentum"] = "online"
    """Which weights the trained model has. "momentum" averages over the last 1 / (1 - momentum)
    steps and may be had with any objective."""
    itm_rows: int = Field(default=16, ge=0)
    """Products of each batch that enter ITM, each as one matched and two mismatched pairs; 0
    leaves ITM out."""
    itm_temperature: float = Field(default=0.5, gt=0)
    """Temperature of the draw of ITM negatives: the smaller, the harder. At the temperature of the
    contrast itself, as in ALBEF, 300 steps taught ITM nothing on the generated world (AUC .49);
    at 0.5 they reach .89."""
    modality_dropout: float = Field(default=0.0, ge=0, lt=0.5)
    """Chance that a product with both is seen by its image alone, and that by its text alone."""
    hidden_share: float = Field(default=0.3, gt=0, lt=1)
    """Share of the tokens hidden in the second sight of a product without image."""
    learning_rate: float = Field(default=7e-4, gt=0)
    """Peak, for parts that start random."""
    text_learning_rate: float = Field(default=1e-4, gt=0)
    """Peak, for layers that start pretrained."""
    warmup_steps: int = Field(default=40, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    alarms: bool = True
    """Stop a run whose embeddings have collapsed."""
    compile: bool = False
    """Let torch.compile rewrite the encoders: worth its minutes on a GPU in long runs."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Stage1Config:
        if self.part_rows is not None and self.part_rows > self.batch:
            raise ValueError(
                f"part_rows={self.part_rows} is more than batch={self.batch}; leave it out to "
                "embed the whole batch at once"
            )
        if self.objective == "all_texts" and self.trainable_text_layers:
            raise ValueError(
                "objective='all_texts' needs trainable_text_layers=0, so that the texts are "
                f"encoded once; got {self.trainable_text_layers}"
            )
        for name in ("smoothing", "cutmix"):
            if getattr(self, name) and self.objective != "all_texts":
                raise ValueError(
                    f"{name}={getattr(self, name)} changes the targets of objective='all_texts' "
                    "alone"
                )
        if self.source_px is not None and self.trainable_image_layers is not None:
            raise ValueError(
                f"source_px={self.source_px} needs images in new views; leave out "
                "trainable_image_layers, or source_px"
            )
        if self.cutmix and self.trainable_image_layers is not None:
            raise ValueError("cutmix needs images in new views; leave out trainable_image_layers")
        if (self.small_px is None) != (self.small_share == 0):
            raise ValueError(
                f"small_px={self.small_px} and small_share={self.small_share} go together: give "
                "both or neither"
            )
        return self
