"""Stage 2: product-query alignment (PQC)."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict

from embeddings.model import DashClip
from embeddings.stage1 import Progress


class Stage2Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def train_stage2(
    model: DashClip,
    products: pl.DataFrame,
    queries: pl.DataFrame,
    relevance: pl.DataFrame,
    config: Stage2Config | None = None,
    *,
    seed: int,
    out: str | Path | None = None,
    image_root: str | Path | None = None,
    progress: Progress | None = None,
) -> DashClip:
    raise NotImplementedError
