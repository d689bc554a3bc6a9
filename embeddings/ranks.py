"""Training on several processes started by torchrun: who does what, and what is exchanged.

Every rank holds the whole data and computes the contrast of the whole (global) batch from
embeddings that were gathered; gradients flow into its own rows only and are summed over ranks.
So the sum is the gradient of one process with the same global batch, exactly.

Shape letters: B rows of this rank, G rows of all ranks, D embedding size.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

_LEFT: list[bool] = []
"""Not empty once this process has left its group."""
_APART: list[bool] = []
"""Not empty while this process works without its group."""


@contextmanager
def apart() -> Iterator[None]:
    """Work as one process, whatever group is open: the others do something else meanwhile."""
    _APART.append(True)
    try:
        yield
    finally:
        _APART.pop()


def open_group_(timeout: timedelta | None = None) -> None:
    """Open the process group that torchrun's environment asks for, one rank a GPU if there are.

    Args:
        timeout: How long ranks wait for each other; torch's own by default.
    """
    cuda = torch.cuda.is_available()
    if cuda:
        # torchrec and NCCL take the current device for this rank's.
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timeout)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """The process group that is open, or that torchrun's environment asks for; else alone."""
        if not dist.is_available() or _APART:
            return cls()
        if not dist.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) < 2 or _LEFT:
                return cls()
            open_group_()
        return cls(rank=dist.get_rank(), world=dist.get_world_size())

    @property
    def device(self) -> torch.device:
        """The GPU of this rank, or the processor."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def own(self, count: int) -> slice:
        """This rank's rows of a global batch of ``count``.

        Raises:
            ValueError: If the ranks cannot share it evenly.
        """
        if count % self.world:
            raise ValueError(
                f"a global batch of {count} cannot be shared by {self.world} ranks; make it a "
                f"multiple of {self.world}"
            )
        share = count // self.world
        return slice(self.rank * share, (self.rank + 1) * share)

    def gather(self, own_BD: Tensor) -> Tensor:
        """All ranks' rows in rank order, shape (G, D); only this rank's carry a gradient."""
        if self.world == 1:
            return own_BD
        parts = [torch.empty_like(own_BD) for _ in range(self.world)]
        dist.all_gather(parts, own_BD.detach().contiguous())
        parts[self.rank] = own_BD
        return torch.cat(parts)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks of a tensor without gradient."""
        if self.world == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def sum_gradients_(
        self, parameters: Iterable[nn.Parameter], replicated: Iterable[nn.Parameter]
    ) -> None:
        """Replace each gradient by its sum over ranks.

        Args:
            parameters: What trains, in the same order on every rank.
            replicated: Those whose whole gradient every rank has already (the temperature):
                averaged instead.
        """
        if self.world == 1:
            return
        trained = list(parameters)
        whole = {id(parameter) for parameter in replicated}
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            elif id(parameter) in whole:
                parameter.grad /= self.world
        gradients = [p.grad for p in trained if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(part.view_as(gradient))

    def leave_(self) -> None:
        """Close the process group, for good; what follows is done by each rank alone."""
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()
            _LEFT.append(True)

    def agree(self, value: int) -> int:
        """The first rank's value, on all ranks."""
        if self.world == 1:
            return value
        shared = torch.tensor([value], device=self.device)
        dist.broadcast(shared, 0)
        return int(shared)
