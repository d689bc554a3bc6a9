"""Hidden layers with a backward pass by hand, and the product that they and the crosses share.

What torch does by itself writes each layer's output three times: the bias spread out, the product
added to it, and ReLU over that. In bfloat16 oneDNN does all three in one.

Shape letters: B batch, W width of a layer's input, O of its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ranking.dropout import drawn, scale_of


def linear(x_BW: Tensor, weight_OW: Tensor, bias_O: Tensor, *, relu: bool = False) -> Tensor:
    """Return ``x @ weight.T + bias``, or what is positive of it, (B, O); without gradient."""
    on_processor = x_BW.dtype == torch.bfloat16 and x_BW.device.type == "cpu"
    if on_processor and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        kind = "relu" if relu else "none"
        return torch.ops.mkldnn._linear_pointwise(x_BW, weight_OW, bias_O, kind, [], "")
    out_BO = torch.addmm(bias_O, x_BW, weight_OW.t())
    return out_BO.relu_() if relu else out_BO


def hidden_layers(
    x_BW: Tensor, layers: Sequence[tuple[Tensor, Tensor]], *, dropout: float = 0.0
) -> Tensor:
    """Return ``x <- max(W x + b, 0)`` once a layer, shape (B, O) of the last.

    Args:
        x_BW: The input.
        layers: (W, b) of each, shapes (O, W) and (O,).
        dropout: Share of each layer's output that is zeroed, as ``ranking.dropout.Dropout`` does.
    """
    weights = [weight.to(x_BW.dtype) for layer in layers for weight in layer]
    return _HiddenLayers.apply(dropout, x_BW, *weights)  # pyright: ignore[reportReturnType]


class _HiddenLayers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dropout: float, x_BW: Tensor, *weights: Tensor) -> Tensor:
        ctx.scale = scale_of(dropout)
        seen = [x_BW]
        for weight_OW, bias_O in zip(weights[::2], weights[1::2], strict=True):
            out_BO = linear(seen[-1], weight_OW, bias_O, relu=True)
            if dropout:
                out_BO.mul_(ctx.scale).masked_fill_(drawn(out_BO.shape, dropout), 0.0)
            seen.append(out_BO)
        ctx.save_for_backward(*weights[::2], *seen)
        return seen[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d_x,) = grads
        layers = len(ctx.saved_tensors) // 2
        weights, seen = ctx.saved_tensors[:layers], ctx.saved_tensors[layers:]
        d_weights: list[Tensor] = []
        for layer in reversed(range(layers)):
            x_BW, out_BO = seen[layer : layer + 2]
            # What was dropped is zero like what ReLU cut off, and no gradient passes either.
            d_out_BO = torch.ops.aten.threshold_backward(d_x, out_BO, 0)
            if ctx.scale != 1.0:
                d_out_BO.mul_(ctx.scale)
            d_weights = [d_out_BO.t() @ x_BW, d_out_BO.sum(0), *d_weights]
            d_x = d_out_BO @ weights[layer] if layer or ctx.needs_input_grad[1] else None
        return None, d_x, *d_weights
