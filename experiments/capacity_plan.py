"""Is one machine enough, how would the tables be sharded, and how long does a pass take?

Placement comes from torchrec's planner, memory from what each rank keeps, speed from training for a
few seconds here: one process alone, or two ranks that exchange rows if several are asked for.

Shape letters: N rows, F sparse features, C dense columns.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.plan_config import PlanConfig
from experiments.torchrun import fit_on_ranks
from features.examples import Examples
from ranking.sharded_checkpoint import read_record
from ranking.sharding_plan import GIB, PlannedShard, plan_tables
from ranking.tower import TowerRanker
from ranking.training_checkpoints import RANKS_STATE

MEASURED_ROWS = 40_000
"""Rows that the speed is measured on: a few seconds."""
MEASURED_RANKS, MEASURED_STEPS = 2, 200
"""Ranks that the speed of one among several is measured with, and their steps."""
MEASURED_TABLE_ROWS = 100_000
"""Tables are cut to this for the measurement; row-wise updates cost the same in larger ones, but
for the processor's caches."""
BYTES_A_WEIGHT = 16
"""A dense weight in float32, its gradient and two moments."""


@dataclass(frozen=True, kw_only=True)
class CapacityPlan:
    """What a training of this size needs."""

    shards: tuple[PlannedShard, ...] | None
    """None if the planner finds no way to fit the tables."""
    table_gib: float
    """All tables with the optimizer's state."""
    dense_gib: float
    """All other weights with gradients and moments, on every rank."""
    data_gib: float
    """The rows of a pass, over all machines."""
    rank_gib: float
    """What the fullest rank holds while it trains: its part of the tables, on processors also as it
    was at the best check, and the dense weights."""
    disk_gib: float
    """What the folder of the run takes up on a disk at most: two states, as one is written beside
    the one before, and where there are several ranks all tables as they begin."""
    memory_gib: float
    """What a rank may use."""
    one_machine: bool
    """Whether tables, dense weights and rows fit one machine of this kind at once."""
    rows_per_second: float
    """Of all ranks together."""
    measured: bool
    """Whether that comes from a measurement here."""
    hours: float
    """Of one pass."""

    @property
    def feasible(self) -> bool:
        """Whether the ranks asked for can hold the tables."""
        return self.shards is not None

    def by_table(self) -> list[tuple[str, str, str, int]]:
        """Table, kind of sharding, ranks that hold it, and its rows."""
        rows = []
        for name in dict.fromkeys(shard.table for shard in self.shards or ()):
            parts = [shard for shard in self.shards or () if shard.table == name]
            ranks = Counter(shard.rank for shard in parts)
            held = ", ".join(str(rank) for rank in sorted(ranks))
            whole = max(part.rows for part in parts)
            if parts[0].sharding == "row_wise":
                whole = sum(part.rows for part in parts)
            rows.append((name, parts[0].sharding, held, whole))
        return rows

    def verdict(self) -> str:
        """One sentence."""
        if self.shards is None:
            return (
                f"the tables need {self.table_gib:.1f} GiB and do not fit ranks of "
                f"{self.memory_gib:.1f} GiB: take more ranks, hash large features into fewer "
                "rows, or make embeddings narrower"
            )
        where = "one machine is enough" if self.one_machine else "one machine is not enough"
        return (
            f"{where}: tables {self.table_gib:.2f} GiB, rows {self.data_gib:.2f} GiB; the fullest "
            f"rank holds {self.rank_gib:.2f} of {self.memory_gib:.1f} GiB, the run takes up to "
            f"{self.disk_gib:.2f} on disk; a pass takes {self._duration()} at "
            f"{self.rows_per_second:,.0f} rows a second"
        )

    def _duration(self) -> str:
        return f"{self.hours:.1f} hours" if self.hours >= 1 else f"{60 * self.hours:.1f} minutes"

    def to_metrics(self) -> dict[str, float]:
        """Return the figures, flat."""
        names = ("table_gib", "dense_gib", "data_gib", "rank_gib", "disk_gib")
        names += ("rows_per_second", "hours")
        figures = {name: float(getattr(self, name)) for name in names}
        flags = {"feasible": float(self.feasible), "one_machine": float(self.one_machine)}
        return figures | flags


def make_plan(
    config: PlanConfig, *, measure: Callable[[PlanConfig], float] | None = None
) -> CapacityPlan:
    """Plan a training.

    Args:
        config: What is to be trained, and where.
        measure: Rows a second of one rank; by default ``measured_speed``, unless the
            configuration names a speed.

    Raises:
        ValueError: If a table is not NAME=ROWS.
    """
    sizes, width = config.sizes, config.tower.embedding_dim
    a_rank = config.memory_gib
    if config.device == "cpu":
        a_rank /= config.ranks_per_machine
    found = plan_tables(
        sizes,
        width,
        ranks=config.ranks,
        device=config.device,
        memory_gib=a_rank,
        batch=config.tower.batch_size,
        column_wise=config.column_wise,
    )
    table_gib = sum(4 * rows * (width + 1) for rows in sizes.values()) / GIB
    dense_gib = BYTES_A_WEIGHT * _dense_weights(config) / GIB
    row_bytes = config.row_bytes or 4 * (len(sizes) + config.dense + 1)
    data_gib = config.rows * row_bytes / GIB
    # The weights of the best check are kept in the memory of the processor.
    best_gib = sum(4 * rows * width for rows in sizes.values()) / GIB
    held = Counter[int]()
    for shard in found or ():
        held[shard.rank] += shard.bytes
        if config.device == "cpu":
            held[shard.rank] += shard.weight_bytes
    fullest = max(held.values(), default=0) / GIB + dense_gib
    if found is not None and fullest > a_rank:
        found = None
    speed, measured_with = config.rows_per_second, 1
    if speed is None:
        speed = (measure or measured_speed)(config)
        measured_with = min(config.ranks, MEASURED_RANKS)
    speed *= config.ranks * (config.scaling if config.ranks > measured_with else 1.0)
    # Rows need not lie in memory at once (they are memory-mapped), but are fast only if they do.
    whole = table_gib + dense_gib + (best_gib + data_gib if config.device == "cpu" else 0.0)
    return CapacityPlan(
        shards=None if found is None else tuple(found),
        table_gib=table_gib,
        dense_gib=dense_gib,
        data_gib=data_gib,
        rank_gib=fullest,
        disk_gib=2 * (table_gib + best_gib + dense_gib) + (config.ranks > 1) * table_gib,
        memory_gib=a_rank,
        one_machine=found is not None and whole <= config.memory_gib,
        rows_per_second=speed,
        measured=config.rows_per_second is None,
        hours=config.rows / speed / 3600,
    )


def measured_speed(config: PlanConfig) -> float:
    """Rows a second of one rank here, on random rows; tables are cut to a size that fits.

    One process alone is timed as a whole. Where several ranks are asked for, two train together and
    exchange rows; each has as many rows a step as it would have of the batch, and half the cores.
    """
    ranks = min(config.ranks, MEASURED_RANKS)
    batch = ranks * max(1, config.tower.batch_size // config.ranks)
    tower = config.tower.model_copy(
        update={"max_epochs": 1, "checks_per_epoch": 1, "batch_size": batch}
    )
    rows = max(MEASURED_ROWS, 4 * batch) if ranks == 1 else MEASURED_STEPS * batch
    draw = np.random.default_rng(0)
    sizes = [min(size + 1, MEASURED_TABLE_ROWS) for size in config.sizes.values()]
    sparse = [draw.integers(0, size, rows) for size in sizes]
    examples = _examples(config, sizes, np.stack(sparse, 1).astype(np.int32), draw)
    few = examples.take(slice(0, 2 * batch))
    if ranks == 1:
        TowerRanker(tower).fit(few, few, None, seed=0)
        began = time.monotonic()
        TowerRanker(tower).fit(examples, few, None, seed=0)
        return rows / (time.monotonic() - began)
    job, network, _ = TowerRanker(tower).begin_fit_(examples, few, None, seed=0)
    with tempfile.TemporaryDirectory(prefix="plan-") as scratch:
        folder, state = Path(scratch) / "job", Path(scratch) / "state"
        job.write_(folder, network)
        fit_on_ranks(folder, ranks, state, MEASURED_STEPS)
        return batch / read_record(state / RANKS_STATE)["step_seconds"] / ranks


def _dense_weights(config: PlanConfig) -> int:
    """Weights beside the tables, counted on a network of tiny tables."""
    sizes = [2] * len(config.sizes)
    draw = np.random.default_rng(0)
    examples = _examples(config, sizes, np.zeros((2, len(sizes)), np.int32), draw)
    _, network, _ = TowerRanker(config.tower).begin_fit_(examples, examples, None, seed=0)
    return sum(p.numel() for p in network.parameters()) - 2 * config.tower.embedding_dim * len(
        sizes
    )


def _examples(
    config: PlanConfig, sizes: list[int], sparse_NF: np.ndarray, draw: np.random.Generator
) -> Examples:
    rows = len(sparse_NF)
    nothing = np.full(rows, -1, np.int32)
    return Examples(
        sparse_names=tuple(config.sizes),
        sparse_NF=sparse_NF,
        vocabulary_sizes=tuple(sizes),
        dense_names=tuple(f"dense_{column}" for column in range(config.dense)),
        dense_NC=draw.standard_normal((rows, config.dense)).astype(np.float32),
        product_N=nothing,
        query_N=nothing,
        history_NL=np.zeros((rows, 0), np.int32),
        user_N=np.arange(rows),
        request_N=np.arange(rows),
        time_us_N=np.zeros(rows, np.int64),
        label_N=(np.arange(rows) % 2).astype(np.float32),
    )
