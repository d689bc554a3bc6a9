"""Weights that follow those that train: the momentum encoders, and an average to end with."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def momentum_copy(online: Module) -> Module:
    """Copy a module for ``follow_``; what is frozen is shared, not copied."""
    shared = {id(p): p for p in online.parameters() if not p.requires_grad}
    follower = copy.deepcopy(online, shared)
    for parameter in follower.parameters():
        parameter.requires_grad = False
    return follower.eval()


@torch.no_grad()
def follow_(follower: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move every trained parameter a little towards the online one, and copy the buffers.

    Buffers (statistics of a normalisation, for one) are copied: left alone, they would stay what
    they were at the start.

    Args:
        follower: From ``momentum_copy``.
        online: The module that trains.
        momentum: Share of the follower that stays; .995 in ALBEF and BLIP.
    """
    slow, fast = [], []
    for own, source in zip(follower.parameters(), online.parameters(), strict=True):
        if own is not source:
            slow.append(own)
            fast.append(source)
    if slow:
        torch._foreach_lerp_(slow, fast, 1 - momentum)
    for own, source in zip(follower.buffers(), online.buffers(), strict=True):
        own.copy_(source)


class AverageWeights:
    """The average of some parameters over the steps of a training.

    A plain mean over the first ``1 / (1 - decay)`` steps, an exponential one from then on, so that
    the weights it began with are forgotten at once.

    Args:
        parameters: Those that train.
        decay: Share of the average that stays at a step.

    Source:
        Polyak and Juditsky 1992, Acceleration of stochastic approximation by averaging.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self._parameters: list[Tensor] = list(parameters)
        self._decay = decay
        self._averages = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def take_in_(self, step: int) -> None:
        """Let the parameters of now count, after so many steps in all."""
        torch._foreach_lerp_(self._averages, self._parameters, max(1 - self._decay, 1 / step))

    @torch.no_grad()
    def put_in_(self) -> None:
        """Give the parameters the average."""
        torch._foreach_copy_(self._parameters, self._averages)

    def tensors(self) -> dict[str, Tensor]:
        """The average as it stands, for a training state."""
        return {f"average.{number}": value for number, value in enumerate(self._averages)}

    @torch.no_grad()
    def restore_(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what ``tensors`` returned."""
        for number, value in enumerate(self._averages):
            value.copy_(tensors[f"average.{number}"])
