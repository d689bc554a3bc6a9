"""What a training on ranks learns: weights that all share, shards of id tables, and their best.

Shape letters: S rows of a shard, D columns of a shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ranking.dense_weights import newest_share
from ranking.sharded_tables import Shard, ShardedTables


@dataclass(frozen=True, kw_only=True)
class BestWeights:
    """Weights as they were at the best check, in the memory of the processor."""

    dense: dict[str, Tensor]
    shards: list[Tensor]
    """This rank's, each (S, D), in their order."""


class ShardedWeights:
    """The weights of a network on one of the ranks that train it.

    Args:
        network: With ``ShardedTables`` for its id tables; its other weights are equal on every
            rank.
        ema_decay: Of averages of the weights that all share; None for no averages.
    """

    def __init__(self, network: nn.Module, ema_decay: float | None) -> None:
        self.network, self.ema_decay = network, ema_decay
        self.tables = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, ShardedTables)
        }
        held = {id(each) for group in self.tables.values() for each in group.parameters()}
        self.dense = {
            name: parameter
            for name, parameter in network.named_parameters()
            if id(parameter) not in held
        }
        """What all ranks share and the optimizer moves."""
        self.averages = (
            None
            if ema_decay is None
            else {name: value.detach().clone() for name, value in self.dense.items()}
        )
        """Of ``dense``, which then score; None scores with the weights themselves."""
        self.best: BestWeights | None = None
        """None before the first check that counts."""

    def dense_state(self) -> dict[str, Tensor]:
        """Return parameters and buffers that all ranks share.

        Not by ``state_dict``, whose keys torchrec's sharded tables rewrite on the way.
        """
        sharded = tuple(f"{name}." for name in self.tables)
        named = [*self.network.named_parameters(), *self.network.named_buffers()]
        return {name: value.detach() for name, value in named if not name.startswith(sharded)}

    def scoring_state(self) -> dict[str, Tensor]:
        """As ``dense_state``, with the averages where there are any."""
        return {**self.dense_state(), **(self.averages or {})}

    def shards(self) -> list[Shard]:
        """Return what this rank holds of all tables."""
        return [shard for group in self.tables.values() for shard in group.shards()]

    @torch.no_grad()
    def average_(self, step: int) -> None:
        """Let the averages follow the weights, as in a training alone (``DenseWeights``).

        Args:
            step: Steps taken, this one among them.
        """
        if self.averages is None:
            return
        assert self.ema_decay is not None
        share = newest_share(self.ema_decay, step)
        for name, average in self.averages.items():
            average.lerp_(self.dense[name].detach(), share)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the averages, where there are any, stand for the dense weights."""
        own = {name: self.dense[name].data for name in self.averages or {}}
        for name, average in (self.averages or {}).items():
            self.dense[name].data = average
        try:
            yield
        finally:
            for name, value in own.items():
                self.dense[name].data = value

    @torch.no_grad()
    def keep_best_(self) -> None:
        """Copy the weights into the memory of the processor, which GPUs have none to spare for.

        The copy before is written over: beside it there may be no room for another.
        """
        dense, shards = self.scoring_state(), [shard.weight_SD for shard in self.shards()]
        if self.best is None:
            self.best = BestWeights(
                dense={name: value.to("cpu", copy=True) for name, value in dense.items()},
                shards=[weight_SD.to("cpu", copy=True) for weight_SD in shards],
            )
            return
        for name, kept in self.best.dense.items():
            kept.copy_(dense[name])
        for kept_SD, weight_SD in zip(self.best.shards, shards, strict=True):
            kept_SD.copy_(weight_SD)

    @torch.no_grad()
    def take_back_best_(self) -> None:
        """Go on from the best weights; there are some."""
        assert self.best is not None
        self._put_back_dense_(self.best.dense)
        for shard, kept_SD in zip(self.shards(), self.best.shards, strict=True):
            shard.weight_SD.copy_(kept_SD)

    def leave_(self) -> None:
        """Leave in the network what scores: the best weights, or the last where none are best."""
        if self.best is not None:
            self.take_back_best_()
        elif self.averages is not None:
            self._put_back_dense_(self.scoring_state())

    def tensors(self) -> dict[str, Tensor]:
        """Return what a state holds of them beside the shards, by name."""
        held = {"dense": self.dense_state(), "average": self.averages or {}}
        held["best"] = {} if self.best is None else self.best.dense
        return {f"{kind}.{name}": value for kind, of in held.items() for name, value in of.items()}

    @torch.no_grad()
    def take_up_(self, tensors: Mapping[str, Tensor], best_shards: list[Tensor]) -> None:
        """Put back what ``tensors`` returned; the shards themselves are there already.

        Args:
            tensors: By name.
            best_shards: This rank's at the best check, if there was one.
        """
        names = self.dense_state()
        self._put_back_dense_({name: tensors[f"dense.{name}"] for name in names})
        for name, value in (self.averages or {}).items():
            value.copy_(tensors[f"average.{name}"])
        if any(name.startswith("best.") for name in tensors):
            dense = {name: tensors[f"best.{name}"] for name in names}
            self.best = BestWeights(dense=dense, shards=best_shards)

    @torch.no_grad()
    def _put_back_dense_(self, dense: Mapping[str, Tensor]) -> None:
        for part in (self.dense_state(), self.averages or {}):
            for name, value in part.items():
                value.copy_(dense[name])
