"""Does training on many ranks give what one rank gives? Shown on the user's own configuration.

Shape letters: N training rows.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from experiments.config import RunConfig
from experiments.pipeline import Run
from experiments.progress import Progress, Silent
from experiments.torchrun import fit_on_ranks
from experiments.training import new_model
from experiments.variants import BASELINE
from ranking.sharded_checkpoint import same_checkpoint
from ranking.tower import TowerRanker

TOLERANCE = 1e-4
"""Weights of many ranks may differ by this from those of one that sums in as many parts."""


@dataclass(frozen=True, kw_only=True)
class ShardingVerdict:
    """What one rank and many made of the same start."""

    ranks: int
    steps: int
    weight_difference: float
    """Largest absolute difference of any weight, the one rank summing its gradients in parts."""
    whole_batch_difference: float
    """The same where the one rank sums over whole batches: how far another order of sums alone has
    taken the weights after so many steps. It grows without bound and is no fault."""
    momentum_difference: float
    """Largest absolute difference of any row's sum of squared gradients."""
    round_trip_exact: bool
    """Whether a checkpoint that went from one rank to many and back is the same, bit for bit."""

    @property
    def agrees(self) -> bool:
        """Whether all of it holds."""
        return self.weight_difference <= TOLERANCE and self.round_trip_exact

    def to_metrics(self) -> dict[str, float]:
        """Return the figures, flat."""
        return {
            "ranks": float(self.ranks),
            "steps": float(self.steps),
            "weight_difference": self.weight_difference,
            "whole_batch_difference": self.whole_batch_difference,
            "momentum_difference": self.momentum_difference,
            "round_trip_exact": float(self.round_trip_exact),
            "agrees": float(self.agrees),
        }


def verify_sharding(
    config: RunConfig,
    *,
    ranks: int = 2,
    steps: int = 200,
    column_wise: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> ShardingVerdict:
    """Train some steps on one rank and on many from one start, and compare every weight.

    Without dropout, whose masks depend on the number of ranks; in float32, so that the comparison
    shows mistakes and not roundings.

    Args:
        config: As for ``train``; its first variant is compared, ``production`` by default.
        ranks: How many.
        steps: Compared after so many; at most an epoch.
        column_wise: Features whose tables are split by columns. Row-wise Adagrad then works on
            parts of rows, so weights differ.
        progress: Told of the stages.

    Raises:
        ValueError: If the variant is no network, the batch cannot be shared, or a rank failed.
    """
    if ranks < 2 or steps < 1:
        raise ValueError(f"ranks={ranks} and steps={steps} must be at least 2 and 1")
    if config.tower.batch_size % ranks:
        raise ValueError(
            f"batch_size={config.tower.batch_size} cannot be shared by {ranks} ranks; make it a "
            f"multiple of {ranks} (--tower.batch-size)"
        )
    progress = progress or Silent()
    with tempfile.TemporaryDirectory(prefix="verify-sharding-") as scratch:
        folder = Path(scratch)
        quiet = {"dropout": 0.0, "vector_dropout": 0.0, "bf16": "off"}
        once = config.model_copy(
            update={
                "out": folder / "run",
                "variants": (config.variants or (BASELINE,))[:1],
                "tower": config.tower.model_copy(update=quiet),
                "track": False,
            }
        )
        job_folder = folder / "job"
        with progress.stage("features and the first weights"):
            one = _write_job_(once, job_folder, column_wise)
        steps = min(steps, -(-one // config.tower.batch_size))
        states = {name: folder / name for name in ("one", "many", "whole")}
        fit = partial(fit_on_ranks, job_folder, of=ranks)
        with progress.stage(f"{steps} steps on one rank, in {ranks} parts"):
            fit(1, states["one"], steps, parts=ranks)
        with progress.stage(f"{steps} steps on {ranks} ranks"):
            fit(ranks, states["many"], steps)
        with progress.stage(f"{steps} steps on one rank, whole batches"):
            fit(1, states["whole"], steps)
        with progress.stage("a checkpoint there and back"):
            there = folder / "there"
            shutil.copytree(states["one"], there)
            fit(ranks, there, 0)
            fit(1, there, 0)
            exact = same_checkpoint(states["one"] / "state", there / "state")
        one, many, whole = (_whole(states[name] / "state") for name in states)
    apart, by_order = _differences(one, many), _differences(many, whole)
    return ShardingVerdict(
        ranks=ranks,
        steps=steps,
        weight_difference=apart["weights"],
        whole_batch_difference=by_order["weights"],
        momentum_difference=apart["momenta"],
        round_trip_exact=exact,
    )


def _differences(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest differences of weights, and of rows' sums of squared gradients."""
    if left.keys() != right.keys():
        raise ValueError(f"the runs hold other weights: {sorted(left.keys() ^ right.keys())[:5]}")
    found = {"weights": 0.0, "momenta": 0.0}
    for name, value in left.items():
        kind = "momenta" if name.endswith(".momentum") else "weights"
        if value.numel():
            found[kind] = max(found[kind], float((value - right[name]).abs().max()))
    return found


def _write_job_(config: RunConfig, folder: Path, column_wise: tuple[str, ...]) -> int:
    """Write the fit of the run's first variant as a job; return its training rows."""
    line = Run(config)
    variant = line.variants[0]
    model = new_model(variant, config)
    if not isinstance(model, TowerRanker):
        raise ValueError(
            f"variant {variant.name!r} is no network with id tables, so nothing of it is sharded; "
            "choose another with --variants, such as production or dashclip"
        )
    parts = line.parts_of(variant)
    few = parts.validation.take(np.arange(min(len(parts.validation), config.tower.batch_size)))
    job, network, _ = model.begin_fit_(parts.train, few, line.joined(variant), seed=config.seed)
    replace(job, column_wise=column_wise).write_(folder, network)
    return len(parts.train)


def _whole(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint, tables put together from their shards."""
    parts: dict[str, list[tuple[int, int, torch.Tensor]]] = {}
    for path in sorted(folder.glob("rank-*.safetensors")):
        for key, tensor in load_file(path).items():
            name, kind = key.rsplit(".", 1)
            if kind == "best":
                continue
            _, table, row, column = name.split("-")
            parts.setdefault(f"table-{table}.{kind}", []).append((int(row), int(column), tensor))
    whole = {}
    for name, shards in parts.items():
        columns: dict[int, list[torch.Tensor]] = {}
        for _, column, tensor in sorted(shards, key=lambda shard: shard[:2]):
            columns.setdefault(column, []).append(tensor)
        halves = [torch.cat(rows) for _, rows in sorted(columns.items())]
        if name.endswith(".momentum"):
            whole[name] = torch.stack(halves).mean(0)
        else:
            whole[name] = torch.cat(halves, dim=1)
    dense = load_file(folder / "dense.safetensors")
    kinds = ("dense.", "average.")
    return whole | {name: value.float() for name, value in dense.items() if name.startswith(kinds)}
