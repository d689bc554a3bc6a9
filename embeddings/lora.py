"""Low-rank adapters: pretrained linear maps stay as they are, and a thin sum beside them trains.

W becomes W + (alpha / rank) up @ down (Hu et al. 2021, arXiv:2106.09685). The adapter is a
parametrization of the weight, so whoever reads ``linear.weight`` reads the adapted one.

Shape letters: O outputs and I inputs of a linear map, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Module = TypeVar("Module", bound=nn.Module)


class LowRank(nn.Module):
    """What is added to one weight; nothing, until ``up_OR`` has trained."""

    def __init__(
        self, outputs: int, inputs: int, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.scale = alpha / rank
        bound = 1 / math.sqrt(inputs)
        down_RI = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
        self.down_RI = nn.Parameter(down_RI)
        self.up_OR = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, weight_OI: Tensor) -> Tensor:
        return weight_OI + self.scale * (self.up_OR @ self.down_RI)


def add_lora_(
    modules: Iterable[nn.Module], rank: int, alpha: float, generator: torch.Generator
) -> list[nn.Parameter]:
    """Freeze modules and give each of their linear maps a low-rank adapter.

    Their outputs are the same as before until the adapters have trained.

    Args:
        modules: All linear maps in them are adapted, all parameters of theirs frozen.
        rank: Columns and rows of an adapter's two factors.
        alpha: Scale of the adapters; with ``alpha = rank`` their product is added as it is.
        generator: Draws the first factor on the processor; the second starts at zero.

    Returns:
        The parameters to train, in the order of the modules.

    Raises:
        ValueError: If ``rank`` or ``alpha`` is not positive, a map has an adapter already, or there
            is no linear map to adapt.
    """
    if rank < 1 or alpha <= 0:
        raise ValueError(f"rank={rank} must be at least 1 and alpha={alpha} above 0; try 8 and 16")
    modules = list(modules)
    linears = [
        part for module in modules for part in module.modules() if isinstance(part, nn.Linear)
    ]
    if not linears:
        raise ValueError("there is no linear map to adapt; are all layers frozen?")
    if any(parametrize.is_parametrized(linear) for linear in linears):
        raise ValueError("these layers have adapters already; call merge_lora_ before new ones")
    for module in modules:
        module.requires_grad_(requires_grad=False)
    adapters: list[nn.Parameter] = []
    for linear in linears:
        low_rank = LowRank(linear.out_features, linear.in_features, rank, alpha, generator)
        low_rank.to(linear.weight.device)
        parametrize.register_parametrization(linear, "weight", low_rank)
        adapters += [low_rank.down_RI, low_rank.up_OR]
    return adapters


def has_lora(module: nn.Module) -> bool:
    """Whether any part of a module has an adapter."""
    return any(isinstance(part, LowRank) for part in module.modules())


@torch.no_grad()
def merge_lora_(module: Module) -> Module:
    """Add every adapter into its weight and take it off; the module is then plain and trainable.

    Returns:
        The same module, which gives what it gave before. One without adapters is left as it is.
    """
    if not has_lora(module):
        return module
    for part in list(module.modules()):
        if isinstance(part, nn.Linear) and parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    return module.requires_grad_(requires_grad=True)
