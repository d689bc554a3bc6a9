"""The momentum encoders: a copy of a module that follows it slowly and gets no gradient."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

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
