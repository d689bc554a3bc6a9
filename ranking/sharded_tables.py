"""Id tables spread over the ranks of a torchrun job by torchrec, updated by row-wise Adagrad.

Each rank holds some tables whole (table-wise), some columns of a table (column-wise) or, with CUDA,
some rows of it (row-wise); torchrec exchanges looked-up rows and their gradients.

Shape letters: B batch of this rank, F sparse features, E width of an id embedding, V table rows,
S rows of a shard, D columns of a shard.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.optim import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv
from torchrec.optim import RowWiseAdagrad

from embeddings.ranks import Ranks
from ranking.fused_tables import EPSILON, TABLE_DEVIATION, FirstRows
from ranking.sharding_plan import collective_plan, sharders

GATHERED_ROWS = 262_144
"""Rows of a table that are gathered at a time."""

DRAWN_ROWS = 65_536
"""Rows of a table that are drawn at a time."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What this rank holds of one table: views into what trains."""

    table: int
    row: int
    """First row."""
    column: int
    """First column."""
    weight_SD: Tensor
    momentum_S: Tensor
    """Row-wise Adagrad's sum of mean squared gradients, over the columns of the shard."""

    @property
    def rows(self) -> slice:
        """Rows of the table that these are."""
        return slice(self.row, self.row + len(self.weight_SD))

    @property
    def columns(self) -> slice:
        """Columns of the table that these are."""
        return slice(self.column, self.column + self.weight_SD.shape[1])

    def own(self, top: int, bottom: int) -> slice:
        """Rows of the shard that are these rows of the table."""
        return slice(top - self.row, bottom - self.row)


class ShardedTables(nn.Module):
    """One id table a sparse feature, sharded; stands where ``ranking.model.FusedTables`` does.

    Every rank of the group builds it with the same arguments; ``scatter_`` gives it weights.

    Args:
        names: Sparse features.
        sizes: Rows of each table.
        width: Columns of every table, E.
        learning_rate: Of row-wise Adagrad.
        ranks: The group; a group of one is legal.
        column_wise: Features whose tables are split by columns over the ranks.
    """

    def __init__(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        width: int,
        *,
        learning_rate: float,
        ranks: Ranks,
        column_wise: Sequence[str] = (),
    ) -> None:
        super().__init__()
        logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
        self.names, self.sizes, self.width = tuple(names), tuple(sizes), width
        tables = [
            EmbeddingBagConfig(
                name=f"table_{number}",
                embedding_dim=width,
                num_embeddings=size,
                feature_names=[name],
            )
            for number, (name, size) in enumerate(zip(names, sizes, strict=True))
        ]
        collection = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
        apply_optimizer_in_backward(
            RowWiseAdagrad, collection.parameters(), {"lr": learning_rate, "eps": EPSILON}
        )
        halved = [f"table_{self.names.index(name)}" for name in column_wise]
        plan = collective_plan(collection, ranks, column_wise=halved)
        group = dist.group.WORLD
        assert group is not None, "no process group is open"
        self.collection = DistributedModelParallel(
            collection,
            env=ShardingEnv.from_process_group(group),
            device=ranks.device,
            plan=plan,
            sharders=sharders(),
        )
        self.frozen_W: Tensor | None = None
        """True for the columns of ``forward`` whose tables do not learn; None for none."""
        self._device = ranks.device

    def forward(self, sparse_BF: Tensor) -> Tensor:
        """Return the rows of all features side by side, shape (B, F * E); a collective call."""
        batch, features = sparse_BF.shape
        device = sparse_BF.device
        bags = KeyedJaggedTensor(
            keys=list(self.names),
            values=sparse_BF.t().reshape(-1),
            lengths=torch.ones(batch * features, dtype=torch.int32, device=device),
            offsets=torch.arange(batch * features + 1, dtype=torch.int32, device=device),
            stride=batch,
        )
        # The order of columns depends on the plan, so they are read by name.
        by_name = self.collection(bags).to_dict()
        out_BW = torch.cat([by_name[name] for name in self.names], dim=1)
        if self.frozen_W is not None:
            # A row whose gradient is zero is not moved, nor is its sum.
            out_BW = torch.where(self.frozen_W.to(out_BW.device), out_BW.detach(), out_BW)
        return out_BW

    def freeze(self, rows: int) -> None:
        """Let no table of at least so many rows learn any more."""
        large = torch.tensor([size >= rows for size in self.sizes])
        if bool(large.any()):
            self.frozen_W = large.repeat_interleave(self.width)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Change the rate at which the backward pass updates the tables."""
        optimizer = self.collection.fused_optimizer
        for group in optimizer.param_groups:
            cast(dict[str, float], group)["lr"] = learning_rate
        # The fused optimizer's step moves no weight; it only hands the rate to the kernel.
        optimizer.step()

    def shards(self) -> list[Shard]:
        """Return what this rank holds, by table, row and column."""
        state: dict[str, Any] = self.collection.fused_optimizer.state_dict()["state"]
        found = []
        for name, weight in self.collection.state_dict().items():
            local = weight.local_shards()
            if not local:
                continue
            number = int(name.split(".")[-2].removeprefix("table_"))
            momentum = state[name][f"table_{number}.momentum1"].local_shards()
            for own, mean_square in zip(local, momentum, strict=True):
                row, column = own.metadata.shard_offsets
                found.append(
                    Shard(
                        table=number,
                        row=int(row),
                        column=int(column),
                        weight_SD=own.tensor,
                        momentum_S=mean_square.tensor,
                    )
                )
        return sorted(found, key=lambda shard: (shard.table, shard.row, shard.column))

    @torch.no_grad()
    def gather_(self, tables: Sequence[Tensor], sums: Sequence[Tensor]) -> None:
        """Fill whole tables and their rows' sums on the first rank; a collective call.

        No rank holds more than some rows of a whole table for it. Where columns of a table lie
        apart, a row's sum is the mean over the columns, which is what it would have been in one
        piece.

        Args:
            tables: Each (V, E); nothing is written into those of other ranks.
            sums: Each (V,), likewise.
        """
        mine = self.shards()
        for number, size in enumerate(self.sizes):
            for start in range(0, size, GATHERED_ROWS):
                rows = slice(start, min(start + GATHERED_ROWS, size))
                part_VE = torch.zeros(rows.stop - start, self.width, device=self._device)
                sum_V = torch.zeros(rows.stop - start, device=self._device)
                for shard in (each for each in mine if each.table == number):
                    top, bottom = max(start, shard.rows.start), min(rows.stop, shard.rows.stop)
                    if top < bottom:
                        there, here = slice(top - start, bottom - start), shard.own(top, bottom)
                        part_VE[there, shard.columns] = shard.weight_SD[here]
                        share = shard.weight_SD.shape[1] / self.width
                        sum_V[there] += share * shard.momentum_S[here]
                if dist.get_world_size() > 1:
                    dist.reduce(part_VE, 0)
                    dist.reduce(sum_V, 0)
                if dist.get_rank() == 0:
                    tables[number][rows].copy_(part_VE)
                    sums[number][rows].copy_(sum_V)

    @torch.no_grad()
    def scatter_(self, first: FirstRows) -> None:
        """Fill what this rank holds of each table, and its rows' sums."""
        for shard in self.shards():
            weight_SD, sum_S = first(shard.table, shard.rows, shard.columns)
            shard.weight_SD.copy_(weight_SD)
            shard.momentum_S.copy_(sum_S)

    @torch.no_grad()
    def draw_again_(self, rows: int, seed: int) -> None:
        """Begin tables of at least so many rows anew, and forget what Adagrad has seen of them.

        A rank draws no more than some rows beside those that it holds, and the same numbers
        whatever the number of ranks.
        """
        for shard in self.shards():
            if self.sizes[shard.table] < rows:
                continue
            for block in range(shard.rows.start // DRAWN_ROWS, -(-shard.rows.stop // DRAWN_ROWS)):
                start = block * DRAWN_ROWS
                drawn = np.random.SeedSequence((seed, shard.table, block))
                generator = torch.Generator().manual_seed(
                    int(drawn.generate_state(1, np.uint64)[0] >> 1)
                )
                height = min(DRAWN_ROWS, self.sizes[shard.table] - start)
                block_VE = torch.empty(height, self.width)
                block_VE.normal_(0.0, TABLE_DEVIATION, generator=generator)
                if block == 0:
                    block_VE[0] = 0.0
                top, bottom = max(start, shard.row), min(start + height, shard.rows.stop)
                shard.weight_SD[shard.own(top, bottom)] = block_VE[
                    top - start : bottom - start, shard.columns
                ].to(self._device)
            shard.momentum_S.zero_()
