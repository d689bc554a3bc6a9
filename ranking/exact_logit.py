"""The last layer of a network that computes in bfloat16: logits in float32, little memory moved.

A float32 copy of all that the layer reads, and of its gradient, would be the largest tensors of a
step. Compiled kernels need none (``ranking.step_kernels``); without them both exist for a few rows
at a time, in the processor's cache.

Shape letters: B batch, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ranking.step_kernels import StepKernels, step_kernels

_ROWS = 512
"""Rows that are turned into float32 at a time; with fewer the calls cost more than they save."""


def exact_logit(seen: Sequence[Tensor], weight_W: Tensor, bias: Tensor) -> Tensor:
    """Return ``concatenated seen @ weight + bias`` in float32, shape (B,).

    Args:
        seen: What the layers before computed, on the processor, in any precision; their widths
            sum to W.
        weight_W: float32.
        bias: float32, one number.
    """
    weights = weight_W.split([part.shape[1] for part in seen])
    products = [
        _Product.apply(part_BW, own_W) for part_BW, own_W in zip(seen, weights, strict=True)
    ]
    return torch.stack(products).sum(0) + bias  # pyright: ignore[reportCallIssue, reportArgumentType]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_BW: Tensor, weight_W: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_BW, weight_W)
        kernels = _kernels_for(hidden_BW, weight_W)
        if kernels is not None:
            return kernels.logits(hidden_BW, weight_W)
        out_B = torch.empty(len(hidden_BW))
        for out_b, hidden_bW in zip(out_B.split(_ROWS), hidden_BW.split(_ROWS), strict=True):
            torch.mv(hidden_bW.float(), weight_W, out=out_b)
        return out_B

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        hidden_BW, weight_W = ctx.saved_tensors
        kernels = _kernels_for(hidden_BW, weight_W)
        if kernels is not None:
            return kernels.logit_gradients(hidden_BW, weight_W, grads[0].contiguous())
        d_hidden_BW = torch.empty_like(hidden_BW)
        d_weight_W = torch.zeros_like(weight_W)
        parts = (grads[0].contiguous(), hidden_BW, d_hidden_BW)
        for d_out_b, hidden_bW, d_hidden_bW in zip(
            *(part.split(_ROWS) for part in parts), strict=True
        ):
            d_weight_W.addmv_(hidden_bW.float().t(), d_out_b)
            torch.mul(d_out_b[:, None], weight_W, out=d_hidden_bW)
        return d_hidden_BW, d_weight_W


def _kernels_for(hidden_BW: Tensor, weight_W: Tensor) -> StepKernels | None:
    low = hidden_BW.dtype == torch.bfloat16 and hidden_BW.is_contiguous()
    return step_kernels() if low and weight_W.is_contiguous() else None
