"""How a click network is fitted: the settings of the training loop."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainConfig(BaseModel):
    """How a click network is fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=1024, ge=1)
    """Impressions a step."""
    max_epochs: int = Field(default=3, ge=1)
    """Passes over the training rows at most; training mostly stops earlier."""
    checks_per_epoch: int = Field(default=4, ge=1)
    """How often an epoch the validation rows are scored."""
    lr: float = Field(default=2e-3, gt=0)
    """First learning rate of the dense layers (AdamW)."""
    sparse_lr: float = Field(default=0.05, gt=0)
    """First learning rate of the id tables (row-wise Adagrad)."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """AdamW's decay of the weight matrices, towers and head alike."""
    warm_up_steps: int = Field(default=0, ge=0)
    """Steps over which both rates rise evenly to their first value."""
    patience: int = Field(default=1, ge=1)
    """Checks without a better validation log loss until the rate drops."""
    lr_drop: float = Field(default=0.1, gt=0, lt=1)
    """What the learning rates are multiplied with at a drop."""
    lr_drops: int = Field(default=1, ge=0)
    """Drops after which training stops."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep an exponential average of the dense weights (0.999, say) and score with it; None scores
    with the weights themselves. Id tables have no average."""
    large_table_rows: int = Field(default=1_000_000, ge=1)
    """Id tables of so many rows or more count as large; they overfit in the second epoch."""
    large_tables: Literal["draw_again", "freeze", "train"] = "draw_again"
    """What becomes of large tables after an epoch: begin anew each epoch, while the dense layers
    learn on (MEDA, arXiv:2305.19531; validation then counts at the end of an epoch), learn no
    more, or learn on. What the dense layers make of ids they have seen before is what overfits,
    so freezing the tables does not help against it."""
    negative_rate: float = Field(default=1.0, gt=0, le=1)
    """Share of the non-clicks that an epoch reads, drawn anew each; the logit learns to allow for
    those left out, so scores need no correction."""
    bf16: Literal["auto", "on", "off"] = "auto"
    """Whether dense layers compute in bfloat16; "auto" asks the processor."""


def use_bf16(choice: Literal["auto", "on", "off"]) -> bool:
    """Whether to compute dense layers in bfloat16.

    "auto" asks for the processor's own instructions: with them the layers run several times
    faster, without them bfloat16 is emulated and collapses. No timing, so that the answer on one
    machine is always the same.
    """
    if choice != "auto":
        return choice == "on"
    # Here, so that settings can be read before torch is loaded.
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
