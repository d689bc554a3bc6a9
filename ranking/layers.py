"""Layers that click networks are made of: the crosses of DCN-v2 and plain hidden layers.

Shape letters: B batch, W width of a layer.

Source: Wang et al. 2021 (DCN-v2), arXiv:2008.13535, equations 1 (full) and 2 (low rank).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ranking.crosses import crossed
from ranking.dropout import Dropout
from ranking.hidden_layers import hidden_layers


class CrossNetwork(nn.Module):
    """DCN-v2 crosses: ``x <- x0 * (W x + b) + x``, with ``W`` full or of low rank.

    Args:
        width: Size of the input and output.
        layers: Number of crosses; 0 returns the input.
        rank: Rank of each ``W``; None for a full matrix.
    """

    def __init__(self, width: int, layers: int, rank: int | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(width, width)
            if rank is None
            else nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            for _ in range(layers)
        )

    def forward(self, start_BW: Tensor) -> Tensor:
        """Return the crossed features, shape (B, W)."""
        if not torch.is_grad_enabled():
            x_BW = start_BW
            for layer in self.layers:
                x_BW = torch.addcmul(x_BW, start_BW, layer(x_BW))
            return x_BW
        return crossed(start_BW, [list(layer.parameters()) for layer in self.layers])


def lowered_dtype(device: str) -> torch.dtype | None:
    """Return the precision that layers compute in here, of inputs in any; None for that of each."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def as_computed(x_BW: Tensor) -> Tensor:
    """Return the features in the precision that layers compute in here, once for all of them."""
    low = lowered_dtype(x_BW.device.type)
    return x_BW if low is None else x_BW.to(low)


def side_by_side(embedded_BE: Tensor, dense_BC: Tensor) -> Tensor:
    """Return both as one, shape (B, E + C), in the precision that layers compute in here.

    The gradient of the embeddings comes back in one float32 piece, as their tables take it.
    """
    low = lowered_dtype(embedded_BE.device.type)
    if low is None or not embedded_BE.requires_grad or dense_BC.requires_grad:
        return torch.cat([embedded_BE, dense_BC], dim=1)
    return _SideBySide.apply(embedded_BE, dense_BC, low)  # pyright: ignore[reportReturnType]


class _SideBySide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embedded_BE: Tensor, dense_BC: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.width = embedded_BE.shape[1]
        out_BW = embedded_BE.new_empty(
            (len(embedded_BE), ctx.width + dense_BC.shape[1]), dtype=dtype
        )
        out_BW[:, : ctx.width].copy_(embedded_BE)
        out_BW[:, ctx.width :].copy_(dense_BC)
        return out_BW

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][:, : ctx.width].float().contiguous(), None, None


class HiddenLayers(nn.Sequential):
    """Linear, ReLU and Dropout, once a layer."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what the last layer gives; the input itself where there are none."""
        input_BW = as_computed(input)
        by_hand = (
            torch.is_grad_enabled()
            and (input_BW.dtype, input_BW.device.type) == (torch.bfloat16, "cpu")
            and input_BW.ndim == 2
        )
        if not by_hand or not len(self):
            return super().forward(input)
        layers = [(x.weight, x.bias) for x in self if isinstance(x, nn.Linear)]
        shares = {x.p for x in self if isinstance(x, Dropout)} if self.training else {0.0}
        (share,) = shares
        return hidden_layers(input_BW, layers, dropout=share)


def mlp_of(width: int, layers: Sequence[int], dropout: float) -> HiddenLayers:
    """Return Linear, ReLU, Dropout for every width in ``layers``; nothing for none."""
    modules: list[nn.Module] = []
    for out in layers:
        modules += [nn.Linear(width, out), nn.ReLU(inplace=True), Dropout(dropout)]
        width = out
    return HiddenLayers(*modules)
