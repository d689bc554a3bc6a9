"""Id tables spread over the ranks of a torchrun job by torchrec, updated by row-wise Adagrad.

Each rank holds some tables whole (table-wise), some columns of a table (column-wise) or, with CUDA,
some rows of it (row-wise); torchrec exchanges looked-up rows and their gradients.

Shape letters: B batch of this rank, F sparse features, E width of an id embedding, V table rows,
S rows of a shard, D columns of a shard.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

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
from ranking.fused_tables import EPSILON, TABLE_DEVIATION
from ranking.sharding_plan import collective_plan, sharders


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

    def gathered(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each whole table in turn and its rows' sums, (V, E) and (V,); a collective call.

        Only the first rank is given them. Where columns of a table lie apart, a row's sum is the
        mean over the columns, which is what it would have been in one piece.
        """
        mine = self.shards()
        rank = dist.get_rank()
        for number, size in enumerate(self.sizes):
            whole_VE = torch.zeros(size, self.width, device=self._device)
            sum_V = torch.zeros(size, device=self._device)
            for shard in (each for each in mine if each.table == number):
                whole_VE[shard.rows, shard.columns] = shard.weight_SD.detach()
                sum_V[shard.rows] += shard.weight_SD.shape[1] / self.width * shard.momentum_S
            if dist.get_world_size() > 1:
                dist.reduce(whole_VE, 0)
                dist.reduce(sum_V, 0)
            if rank == 0:
                yield whole_VE, sum_V

    @torch.no_grad()
    def scatter_(self, tables: Sequence[Tensor], sums: Sequence[Tensor]) -> None:
        """Copy this rank's parts out of whole tables, each (V, E), and their rows' sums, (V,)."""
        for shard in self.shards():
            shard.weight_SD.copy_(tables[shard.table][shard.rows, shard.columns])
            shard.momentum_S.copy_(sums[shard.table][shard.rows])

    @torch.no_grad()
    def draw_again_(self, rows: int, seed: int) -> None:
        """Begin tables of at least so many rows anew, and forget what Adagrad has seen of them.

        A rank draws only the tables that it holds a part of, and the same numbers whatever the
        number of ranks.
        """
        for shard in self.shards():
            if self.sizes[shard.table] < rows:
                continue
            generator = torch.Generator().manual_seed(seed * 1_000_003 + shard.table)
            whole_VE = torch.empty(self.sizes[shard.table], self.width)
            whole_VE.normal_(0.0, TABLE_DEVIATION, generator=generator)
            whole_VE[0] = 0.0
            shard.weight_SD.copy_(whole_VE[shard.rows, shard.columns])
            shard.momentum_S.zero_()
