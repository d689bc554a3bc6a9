"""Low-rank adapters: pretrained linear maps stay as they are, and a thin sum beside them trains.

W becomes W + (alpha / rank) up @ down (Hu et al. 2021, arXiv:2106.09685).

Shape letters: O outputs and I inputs of a linear map, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class AdaptedLinear(nn.Module):
    """A linear map with an adapter beside it; the same map, until ``up_OR`` has trained."""

    def __init__(
        self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        bound, device = 1 / math.sqrt(base.in_features), base.weight.device
        down_RI = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.down_RI = nn.Parameter(down_RI.to(device))
        self.up_OR = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    @property
    def weight(self) -> Tensor:
        """The adapted weight, (O, I), for those who use a part of it."""
        return self.base.weight + self.scale * (self.up_OR @ self.down_RI)

    @property
    def bias(self) -> Tensor | None:
        """The map's own bias, (O,)."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        # In this order no gradient of the size of the weight is ever made.
        return self.base(x) + self.scale * F.linear(F.linear(x, self.down_RI), self.up_OR)


def add_lora_(
    modules: Iterable[nn.Module], rank: int, alpha: float, generator: torch.Generator
) -> list[nn.Parameter]:
    """Freeze modules and give each linear map inside them a low-rank adapter.

    Their outputs are the same as before until the adapters have trained.

    Args:
        modules: What contains the linear maps; all its own parameters are frozen.
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
    if any(has_lora(module) for module in modules):
        raise ValueError("these layers have adapters already; call merge_lora_ before new ones")
    places = [
        (parent, name, child)
        for module in modules
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
    if not places:
        raise ValueError("there is no linear map to adapt; are all layers frozen?")
    for module in modules:
        module.requires_grad_(requires_grad=False)
    adapters: list[nn.Parameter] = []
    for parent, name, linear in places:
        adapted = AdaptedLinear(linear, rank, alpha, generator)
        setattr(parent, name, adapted)
        adapters += [adapted.down_RI, adapted.up_OR]
    return adapters


def has_lora(module: nn.Module) -> bool:
    """Whether any part of a module has an adapter."""
    return any(isinstance(part, AdaptedLinear) for part in module.modules())


@torch.no_grad()
def merge_lora_(module: Module) -> Module:
    """Add every adapter into its weight and take it off; the module is then plain and trainable.

    Returns:
        The same module, which gives what it gave before. One without adapters is left as it is.
    """
    if not has_lora(module):
        return module
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, AdaptedLinear):
                child.base.weight.copy_(child.weight)
                setattr(parent, name, child.base)
    return module.requires_grad_(requires_grad=True)
