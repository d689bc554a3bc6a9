"""The crosses of DCN-v2 with a backward pass by hand.

What torch derives by itself keeps every product apart and adds the gradients of the input that all
crosses share in tensors of their own. By hand the products are fused and the sums stay in place,
in whatever precision the layers compute in.

Shape letters: B batch, W width, R rank.

Source: Wang et al. 2021 (DCN-v2), arXiv:2008.13535, equations 1 (full) and 2 (low rank).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ranking.hidden_layers import linear


def crossed(start_BW: Tensor, layers: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return ``x <- x0 * (U (V x) + b) + x`` once a layer, beginning at ``x = x0``, shape (B, W).

    Args:
        start_BW: x0.
        layers: Of each cross either (W, b), shapes (W, W) and (W,), or (V, U, b), shapes (R, W),
            (W, R) and (W,); the same kind for all.
    """
    if not layers:
        return start_BW
    weights = [weight.to(start_BW.dtype) for layer in layers for weight in layer]
    return _Crosses.apply(start_BW, len(layers[0]), *weights)  # pyright: ignore[reportReturnType]


class _Crosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, start_BW: Tensor, parts: int, *weights: Tensor) -> Tensor:
        x_BW, seen = start_BW, []
        for first in range(0, len(weights), parts):
            *reduce, expand, bias_W = weights[first : first + parts]
            inner = x_BW @ reduce[0].t() if reduce else x_BW
            y_BW = linear(inner, expand, bias_W)
            seen += [x_BW, inner, y_BW]
            x_BW = torch.addcmul(x_BW, start_BW, y_BW)
        ctx.parts = parts
        ctx.save_for_backward(start_BW, *weights, *seen)
        return x_BW

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_x_BW,) = grads
        start_BW, *rest = ctx.saved_tensors
        layers = len(rest) // (ctx.parts + 3)
        weights, seen = rest[: layers * ctx.parts], rest[layers * ctx.parts :]
        d_start_BW = torch.empty(0)
        d_weights: list[Tensor] = []
        for layer in reversed(range(layers)):
            *reduce, expand, _ = weights[layer * ctx.parts : (layer + 1) * ctx.parts]
            x_BW, inner, y_BW = seen[3 * layer : 3 * layer + 3]
            last = layer == layers - 1
            if last:
                d_start_BW = d_x_BW * y_BW
            else:
                d_start_BW.addcmul_(d_x_BW, y_BW)
            d_y_BW = d_x_BW * start_BW
            own = [d_y_BW.t() @ inner, d_y_BW.sum(0)]
            inner_grad, inward = d_y_BW, expand
            if reduce:
                inner_grad, inward = d_y_BW @ expand, reduce[0]
                own = [inner_grad.t() @ x_BW, *own]
            # The first gradient is the caller's; the others are our own to add to.
            add = torch.addmm if last else Tensor.addmm_
            d_x_BW = add(d_x_BW, inner_grad, inward)
            d_weights = own + d_weights
        return d_start_BW.add_(d_x_BW), None, *d_weights
