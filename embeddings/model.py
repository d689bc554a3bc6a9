"""DashCLIP's encoders as one thing that embeds products and queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

Mode = Literal["multimodal", "text", "image"]


class DashClip:
    """Embeds products and queries; trained by ``train_stage1`` and ``train_stage2``."""

    stage: int
    """0 before training, 1 after image-text, 2 after product-query alignment."""
    source: str
    """Where the first text weights came from, one line."""
    history: dict[str, list[dict[str, float]]]

    @property
    def dim(self) -> int:
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        raise NotImplementedError

    def embed_products(
        self,
        products: pl.DataFrame,
        mode: Mode = "multimodal",
        *,
        image_root: str | Path | None = None,
    ) -> NDArray[np.float32]:
        """(P, D) unit rows; zeros for a product that has nothing of what ``mode`` asks for."""
        raise NotImplementedError

    def embed_queries(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """(Q, D) unit rows."""
        raise NotImplementedError

    def save_(self, folder: str | Path) -> Path:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: str | Path) -> DashClip:
        raise NotImplementedError
