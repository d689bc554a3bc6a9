"""What stage 1 trains on, and what is drawn for each of its steps.

Shape letters: P products, N of them that train, G rows of a global batch, K draws of a view,
L tokens, S pixels a side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embeddings.augment import draw_views
from embeddings.images import ImageTable
from embeddings.schedule import Batches, generator_at

if TYPE_CHECKING:
    from embeddings.stage1_config import Stage1Config

WHOLE, IMAGE_ONLY, TEXT_ONLY = 0, 1, 2
"""Kinds of rows: with image and text, or with one of them shown twice."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The products that train: those with an image, and all others that have a text if any has."""

    ids: list[str]
    texts: list[str]
    pixel_NSS3: NDArray[np.uint8]
    group_N: Tensor
    kind_N: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(
        cls, ids: list[str], texts: list[str], images: ImageTable, group_P: NDArray[np.int64]
    ) -> TrainingData:
        """Choose the rows: none if no product has both modalities."""
        has_text_P = np.array([len(text) > 0 for text in texts], bool)
        row_N = np.flatnonzero(images.present_P | has_text_P)
        if not bool((images.present_P & has_text_P).any()):
            row_N = row_N[:0]
        kind_N = np.full(len(row_N), WHOLE)
        kind_N[~has_text_P[row_N]] = IMAGE_ONLY
        kind_N[~images.present_P[row_N]] = TEXT_ONLY
        return cls(
            ids=[ids[row] for row in row_N.tolist()],
            texts=[texts[row] for row in row_N.tolist()],
            pixel_NSS3=images.pixel_PSS3 if len(row_N) == len(ids) else images.pixel_PSS3[row_N],
            group_N=torch.from_numpy(group_P[row_N]),
            kind_N=torch.from_numpy(kind_N),
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of a global batch and all that was drawn for them."""

    row_G: Tensor
    """Rows of the catalogue."""
    group_G: Tensor
    kind_G: Tensor
    view_GK: Tensor
    """Draws of each image's view."""
    second_GK: Tensor
    """Draws of the second view of a product without text."""
    hidden_GL: Tensor
    """Tokens hidden in the second sight of a product without image, as uniform draws."""

    mixed_G: Tensor
    """Rows whose image has a part of the image of the row before it (CutMix)."""
    box: tuple[float, float, float, float]
    """That part: top, left, bottom, right as shares of the side."""

    @property
    def own_share(self) -> float:
        """Share of a mixed image that is its own."""
        top, left, bottom, right = self.box
        return 1 - (bottom - top) * (right - left)

    @property
    def whole_G(self) -> Tensor:
        return self.kind_G == WHOLE


class BatchDraws:
    """The batches of a run in order, each with the random numbers of its own place."""

    def __init__(self, config: Stage1Config, data: TrainingData, seed: int) -> None:
        self._config, self._data, self._seed = config, data, seed
        self.order = Batches(len(data), config.batch, seed)
        """Where the run is in the data."""

    def draw(self) -> tuple[Batch, tuple[int, int]]:
        """The next batch with a negative in it, and the place in the data it was drawn from."""
        config, data = self._config, self._data
        place = (self.order.epoch, self.order.position)
        row_G = self.order.next()
        while not bool((data.group_N[row_G] != data.group_N[row_G[0]]).any()):
            row_G = self.order.next()
        after = self.order.epoch * (self.order.count // self.order.batch)
        index = after + self.order.position
        generator = generator_at(self._seed, "batch", index)
        view_GK = draw_views(len(row_G), config.views, generator)
        kind_G = data.kind_N[row_G].clone()
        second_GK, hidden_GL = view_GK, torch.zeros(len(row_G), 0)
        if config.modality_dropout or bool((kind_G != WHOLE).any()):
            draw_G = torch.rand(len(row_G), generator=generator)
            whole_G = kind_G == WHOLE
            kind_G[whole_G & (draw_G < config.modality_dropout)] = IMAGE_ONLY
            kind_G[whole_G & (draw_G > 1 - config.modality_dropout)] = TEXT_ONLY
            second_GK = draw_views(len(row_G), config.views, generator)
            hidden_GL = torch.rand(len(row_G), config.max_text_tokens, generator=generator)
        mixed_G, box = torch.zeros(len(row_G), dtype=torch.bool), (0.0, 0.0, 0.0, 0.0)
        if config.cutmix and bool((kind_G == WHOLE).all()):
            share, area, top, left = torch.rand(4, generator=generator).tolist()
            if share < config.cutmix:
                # Those that enter ITM stay whole.
                mixed_G[config.itm_rows :] = True
                box = cutmix_box(area, top, left)
        batch = Batch(
            mixed_G=mixed_G,
            box=box,
            row_G=row_G,
            group_G=data.group_N[row_G],
            kind_G=kind_G,
            view_GK=view_GK,
            second_GK=second_GK,
            hidden_GL=hidden_GL,
        )
        return batch, place


def cutmix_box(area: float, top: float, left: float) -> tuple[float, float, float, float]:
    """A square of a share of an image's area, anywhere inside: top, left, bottom, right from 0 to
    1, for three uniform draws."""
    side = math.sqrt(area)
    top, left = top * (1 - side), left * (1 - side)
    return top, left, top + side, left + side
