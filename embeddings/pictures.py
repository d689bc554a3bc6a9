"""Where the image tokens of a training batch come from: pixels in a new view at every step, or the
states of frozen layers, computed once.

Shape letters: P products, B rows of a batch, S pixels a side, I image tokens, C image width,
K draws of a view.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embeddings.augment import apply_views
from embeddings.cached_text import CACHE_LIMIT_BYTES
from embeddings.model import EMBED_BATCH, DashClip, scale_pixels
from embeddings.view_config import ViewConfig


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Parts of other images that are pasted into the images of a batch."""

    row_B: Tensor
    """Whose image a part comes from."""
    view_BK: Tensor
    """The draws of that image's view."""
    into_B: Tensor
    """Rows that receive one."""
    box: tuple[float, float, float, float]
    """Top, left, bottom, right of the part as shares of the side."""


class Pictures(Protocol):
    """The image side of the training data."""

    def tokens(
        self, model: DashClip, row_B: Tensor, view_BK: Tensor, patch: Patch | None = None
    ) -> Tensor:
        """Image tokens (B, I, C) of some products, each seen as its draws say."""
        ...

    def expect(self, row_B: Tensor) -> None:
        """Be told which rows come next, to have them ready."""
        ...


class PixelPictures:
    """Decoded images through all image layers, in a new view each time.

    On a GPU the next batch is gathered and copied while the current one is computed.
    """

    def __init__(
        self, pixel_PSS3: NDArray[np.uint8], views: ViewConfig, device: torch.device
    ) -> None:
        self._pixel_PSS3, self._views, self._device = pixel_PSS3, views, device
        self.pixels: int | None = None
        """Side of the views that the encoder is given; that of the images kept if None."""
        self._ahead = ThreadPoolExecutor(1) if device.type == "cuda" else None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._coming: list[tuple[Tensor, Future[Tensor]]] = []
        """The batch at hand and the one after it."""

    def expect(self, row_B: Tensor) -> None:
        """Begin to copy some rows to the GPU; nothing to do on a processor."""
        if self._ahead is not None:
            self._coming = [*self._coming[-1:], (row_B, self._ahead.submit(self._copy, row_B))]

    def tokens(
        self, model: DashClip, row_B: Tensor, view_BK: Tensor, patch: Patch | None = None
    ) -> Tensor:
        """Image tokens of some products, (B, I, C)."""
        view_BSS3 = self._seen(row_B, view_BK)
        if patch is not None:
            into_B = patch.into_B
            pasted_NSS3 = self._seen(patch.row_B[into_B], patch.view_BK[into_B])
            side = view_BSS3.shape[1]
            top, left, bottom, right = (round(side * edge) for edge in patch.box)
            place_N = torch.where(into_B)[0].to(self._device)
            mixed_NSS3 = view_BSS3[place_N]
            mixed_NSS3[:, top:bottom, left:right] = pasted_NSS3[:, top:bottom, left:right]
            view_BSS3 = view_BSS3.index_copy(0, place_N, mixed_NSS3)
        return model.image(view_BSS3)

    def _seen(self, row_B: Tensor, view_BK: Tensor) -> Tensor:
        pixel_BSS3 = scale_pixels(self._bytes(row_B), self._device)
        return apply_views(pixel_BSS3, view_BK, self._views, pixels=self.pixels)

    def _bytes(self, row_B: Tensor) -> Tensor:
        found = [copied for rows, copied in self._coming if torch.equal(rows, row_B)]
        if found:
            assert self._stream is not None
            bytes_BSS3 = found[0].result()
            torch.cuda.current_stream().wait_stream(self._stream)
            bytes_BSS3.record_stream(torch.cuda.current_stream())
            return bytes_BSS3
        return torch.from_numpy(self._pixel_PSS3[row_B.numpy()]).to(self._device)

    def _copy(self, row_B: Tensor) -> Tensor:
        pinned_BSS3 = torch.from_numpy(self._pixel_PSS3[row_B.numpy()]).pin_memory()
        with torch.cuda.stream(self._stream):
            return pinned_BSS3.to(self._device, non_blocking=True)


class CachedPictures:
    """Images through their frozen layers once, and at every step through the rest.

    Each image has one view only, as it is.
    """

    def __init__(self, model: DashClip, pixel_PSS3: NDArray[np.uint8]) -> None:
        self._pixel_PSS3 = pixel_PSS3
        self._depth = model.architecture.frozen_image_layers
        self._state_PIC: Tensor | None = None
        shape = model.architecture.image
        size = len(pixel_PSS3) * shape.tokens * shape.width * model.precision.dtype.itemsize
        if size <= CACHE_LIMIT_BYTES:
            rows = torch.arange(len(pixel_PSS3))
            parts = [self._frozen(model, row_B).cpu() for row_B in rows.split(EMBED_BATCH)]
            self._state_PIC = torch.cat(parts).to(model.precision.dtype)

    def expect(self, row_B: Tensor) -> None:
        """Nothing to do: the states are at hand."""

    def tokens(
        self, model: DashClip, row_B: Tensor, view_BK: Tensor, patch: Patch | None = None
    ) -> Tensor:
        """Image tokens of some products, (B, I, C); images are kept whole."""
        assert patch is None
        if self._state_PIC is not None:
            x_BIC = self._state_PIC.index_select(0, row_B).to(model.device)
        else:
            x_BIC = self._frozen(model, row_B)
        image = model.image
        return image.finish(image.run(x_BIC, first=self._depth, last=len(image.layers)))

    @torch.no_grad()
    def _frozen(self, model: DashClip, row_B: Tensor) -> Tensor:
        pixel_BSS3 = scale_pixels(self._pixel_PSS3[row_B.numpy()], model.device)
        with model.precision.autocast(model.device):
            return model.image.run(model.image.embed(pixel_BSS3), first=0, last=self._depth)
