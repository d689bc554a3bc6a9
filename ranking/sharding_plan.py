"""Which rank holds which part of which id table, by torchrec's planner.

Data-parallel tables are never planned: a table that every rank holds whole would need an optimizer
of its own.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ModuleSharder,
    ShardingPlan,
    ShardingType,
)

from embeddings.ranks import Ranks

Device = Literal["cpu", "cuda"]

GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """A part of one table, and the rank that holds it."""

    table: str
    sharding: str
    """table_wise, column_wise or row_wise."""
    rank: int
    rows: int
    columns: int

    @property
    def weight_bytes(self) -> int:
        """Weights in float32."""
        return 4 * self.rows * self.columns

    @property
    def bytes(self) -> int:
        """Weights in float32, and row-wise Adagrad's one number a row."""
        return self.weight_bytes + 4 * self.rows


def collective_plan(
    collection: EmbeddingBagCollection, ranks: Ranks, *, column_wise: Sequence[str] = ()
) -> ShardingPlan:
    """Let all ranks agree on a plan; a collective call.

    Args:
        collection: The tables, on the meta device.
        ranks: The open group.
        column_wise: Tables split by columns; the planner chooses for the others.
    """
    device: Device = "cuda" if ranks.device.type == "cuda" else "cpu"
    with _quiet():
        planner = EmbeddingShardingPlanner(
            topology=Topology(
                world_size=ranks.world, compute_device=device, local_world_size=ranks.world
            ),
            constraints=_constraints(collection, device, ranks.world, column_wise),
        )
        return planner.collective_plan(collection, sharders(), dist.group.WORLD)


def plan_tables(
    sizes: dict[str, int],
    width: int,
    *,
    ranks: int,
    device: Device,
    memory_gib: float,
    batch: int,
    column_wise: Sequence[str] = (),
) -> list[PlannedShard] | None:
    """Plan tables for a machine that need not be this one.

    Args:
        sizes: Rows of each table.
        width: Columns of every table.
        ranks: Processes, or GPUs.
        device: What they compute on.
        memory_gib: What each of them may use.
        batch: Rows of a global batch.
        column_wise: Tables that must be split by columns.

    Returns:
        The shards; None if the planner finds no way to fit them.
    """
    tables = [
        EmbeddingBagConfig(
            name=name, embedding_dim=width, num_embeddings=rows, feature_names=[name]
        )
        for name, rows in sizes.items()
    ]
    collection = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    memory = int(memory_gib * GIB)
    with _quiet():
        planner = EmbeddingShardingPlanner(
            topology=Topology(
                world_size=ranks,
                compute_device=device,
                local_world_size=ranks,
                hbm_cap=memory if device == "cuda" else 0,
                ddr_cap=memory,
            ),
            batch_size=max(1, batch // ranks),
            constraints=_constraints(collection, device, ranks, column_wise),
        )
        try:
            plan = planner.plan(_Tables(collection), sharders())
        except PlannerError:
            return None
    shards = []
    for placed in plan.plan.values():
        for name, parameter in cast(EmbeddingModuleShardingPlan, placed).items():
            assert isinstance(parameter.sharding_spec, EnumerableShardingSpec)
            for shard in parameter.sharding_spec.shards:
                rows, columns = shard.shard_sizes
                shards.append(
                    PlannedShard(
                        table=name,
                        sharding=parameter.sharding_type,
                        rank=int(cast(Any, shard.placement).rank()),
                        rows=rows,
                        columns=columns,
                    )
                )
    return shards


def sharders() -> list[ModuleSharder[nn.Module]]:
    """What torchrec is told to shard: collections of embedding bags."""
    return [cast(ModuleSharder[nn.Module], EmbeddingBagCollectionSharder())]


class _Tables(nn.Module):
    """The planner looks for tables below a module, not in it."""

    def __init__(self, collection: EmbeddingBagCollection) -> None:
        super().__init__()
        self.collection = collection


def _constraints(
    collection: EmbeddingBagCollection, device: Device, ranks: int, column_wise: Sequence[str]
) -> dict[str, ParameterConstraints]:
    kinds = [ShardingType.TABLE_WISE.value, ShardingType.COLUMN_WISE.value]
    if device == "cuda":
        kinds.append(ShardingType.ROW_WISE.value)
    chosen = {}
    for config in collection.embedding_bag_configs():
        # A shard's columns must be a multiple of four for fbgemm.
        part = 4 * -(-config.embedding_dim // (4 * ranks))
        forced = config.name in column_wise
        chosen[config.name] = ParameterConstraints(
            sharding_types=[ShardingType.COLUMN_WISE.value] if forced else kinds,
            min_partition=part if forced else None,
        )
    return chosen


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the planner's notes, which are for those who build topologies by hand."""
    logger = logging.getLogger("torchrec")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
