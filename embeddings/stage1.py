"""Stage 1: continual pre-training on the catalogue (ITC + ITM)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict

from embeddings.model import DashClip

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called with stage, step, total steps and metrics."""


class Stage1Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def train_stage1(
    products: pl.DataFrame,
    config: Stage1Config | None = None,
    *,
    seed: int,
    out: str | Path | None = None,
    image_root: str | Path | None = None,
    progress: Progress | None = None,
) -> DashClip:
    raise NotImplementedError
