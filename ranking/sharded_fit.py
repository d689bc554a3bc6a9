"""How the ranks of a torchrun job come together for the fits of a run.

The first rank carries out the whole command; where a click network is fitted, it writes the fit as
a job, and the other ranks, which wait for jobs meanwhile, take part. A rank that dies makes
torchrun end all of them, with its exit code and signal in the message.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from embeddings.ranks import Ranks
from embeddings.training_state import RECORD
from ranking.contract import Progress
from ranking.fit_job import FitJob, first_rows
from ranking.fit_leader import LEADERS
from ranking.fused_tables import id_tables
from ranking.model import ClickNetwork
from ranking.row_memory import rows_in_file
from ranking.sample_weights import sample_weights
from ranking.sharded_checkpoint import read_record
from ranking.sharded_tables import ShardedTables
from ranking.sharded_training import ShardedTraining
from ranking.tower_config import TowerConfig
from ranking.train import Check, LabelledRows
from ranking.training_checkpoints import (
    RANKS_STATE,
    Cadence,
    identity_of,
    left_by_ranks,
    refuse_other_training,
)

POLL_SECONDS = 0.05
DONE = "done.json"


class Leader:
    """The first rank of a job that has others waiting.

    Args:
        folder: For jobs, on storage that all ranks share.
        ranks: The open group.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks, self.jobs = Path(folder), ranks, 0

    def train(
        self,
        job: FitJob,
        network: ClickNetwork,
        progress: Progress | None,
        checkpoints: Path | None,
    ) -> list[Check]:
        """Fit a network on all ranks and leave the learned weights in it.

        Raises:
            ValueError: If ``checkpoints`` holds the state of another training, or of one process.
        """
        if checkpoints is not None:
            job = replace(job, state_folder=checkpoints, identity=identity_of(job, network))
            _refuse_foreign_state(checkpoints, job.identity)
        self.jobs += 1
        at = self.folder / f"job-{self.jobs}"
        job.write_(at.with_name(f".{at.name}.part"), network)
        at.with_name(f".{at.name}.part").rename(at)
        checks = train_together(
            job, network, self.ranks, folder=at, checkpoint=job.state_folder, progress=progress
        )
        shutil.rmtree(at, ignore_errors=True)
        return checks


def _refuse_foreign_state(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse it before any rank is asked to take part."""
    if (folder / RECORD).is_file():
        raise ValueError(
            f"{folder} holds the state of a training by one process, which ranks cannot take up. "
            "Repeat its command without torchrun, or remove the folder to train anew"
        )
    if left_by_ranks(folder):
        refuse_other_training(folder, read_record(folder / RANKS_STATE)["identity"], identity)


@contextmanager
def leading(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Let the fits of the first rank be carried out by all of them, and release them at the end.

    Only the first rank ever holds whole tables, and large ones in files: its machine needs no more
    memory than the others'.

    Args:
        folder: For jobs, on storage that all ranks share; removed at the end.
        ranks: The open group.
    """
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    leader = Leader(folder, ranks)
    ranks.agree(0)
    LEADERS.append(leader)
    failed = True
    try:
        with rows_in_file(folder):
            yield
        failed = False
    finally:
        LEADERS.pop()
        whole = folder / f".{DONE}.part"
        whole.write_text(json.dumps({"jobs": leader.jobs, "failed": failed}), encoding="utf-8")
        whole.rename(folder / DONE)
    ranks.agree(0)
    shutil.rmtree(folder, ignore_errors=True)


def follow_(folder: Path, ranks: Ranks) -> int:
    """Take part in the leader's fits until it is done, or has refused what it was asked.

    Returns:
        How many fits there were.
    """
    folder = Path(folder)
    ranks.agree(0)
    jobs = 0
    while True:
        at = folder / f"job-{jobs + 1}"
        if at.exists():
            job = FitJob.read(at)
            network = job.network(at, rows=False)
            train_together(job, network, ranks, folder=at, checkpoint=job.state_folder)
            jobs += 1
        elif (folder / DONE).exists():
            if not json.loads((folder / DONE).read_text(encoding="utf-8"))["failed"]:
                ranks.agree(0)
            return jobs
        else:
            time.sleep(POLL_SECONDS)


def train_together(
    job: FitJob,
    network: ClickNetwork,
    ranks: Ranks,
    *,
    folder: Path | None = None,
    checkpoint: Path | None = None,
    cadence: Cadence | None = None,
    max_steps: int | None = None,
    parts: int = 1,
    progress: Progress | None = None,
) -> list[Check]:
    """Fit a network on all ranks; the first one's holds what was learned. A collective call.

    Args:
        job: The same on every rank.
        network: With the job's initial weights; where ``folder`` is given, the rows of its id
            tables are read from there, and only the first rank's need to have any.
        ranks: The open group.
        folder: Where the job was written to.
        checkpoint: Folder for the state; see ``ShardedTraining``.
        cadence: When states are written.
        max_steps: Stop after so many.
        parts: See ``ShardedTraining``.
        progress: Told of every check.
    """
    train, validation = job.tensors()
    with sharded_tables(network, job.config, ranks, folder=folder, column_wise=job.column_wise):
        training = ShardedTraining(
            network,
            job.config,
            seed=job.seed,
            ranks=ranks,
            checkpoint=checkpoint,
            identity=job.identity,
            cadence=cadence,
            parts=parts,
        )
        checks = training.run(
            LabelledRows(inputs=train, label_N=job.outcome_N, weight_N=sample_weights(job.train)),
            LabelledRows(inputs=validation, label_N=job.label_N),
            max_steps=max_steps,
            progress=progress if ranks.rank == 0 else None,
        )
        del training
    # torchrec's tables must be gone before the group is, or its teardown may abort.
    gc.collect()
    if ranks.world > 1:
        dist.barrier()
    return checks


@contextmanager
def sharded_tables(
    network: ClickNetwork,
    config: TowerConfig,
    ranks: Ranks,
    *,
    folder: Path | None = None,
    column_wise: tuple[str, ...] = (),
) -> Iterator[None]:
    """Put ``ShardedTables`` in the place of a network's id tables, with their weights and sums.

    At the end the first rank's own tables come back with what was learned; collective at both
    ends. When it fails the tables that were there before are put back, untouched but where rows
    came from a folder: then no rank holds whole tables meanwhile, and they are undefined.

    Args:
        network: The same on every rank.
        config: How tables learn.
        ranks: The open group.
        folder: Of the job, to read first rows from; None takes them from the network.
        column_wise: Features whose tables are split by columns.
    """
    whole = dict(id_tables(network))
    unknown = set(column_wise) - {name for tables in whole.values() for name in tables.names}
    if unknown:
        raise ValueError(f"column_wise names {sorted(unknown)}, which are no id tables here")
    network.to(ranks.device)
    sharded: dict[str, ShardedTables] = {}
    held = [] if folder is None or ranks.rank else list(whole.values())
    try:
        for tables in held:
            tables.release_()
        with first_rows(folder, network) if folder is not None else nullcontext() as reader:
            for name, tables in whole.items():
                placed = ShardedTables(
                    tables.names,
                    tables.sizes,
                    tables.width,
                    learning_rate=config.sparse_lr,
                    ranks=ranks,
                    column_wise=[each for each in column_wise if each in tables.names],
                )
                placed.scatter_(tables.first_rows if reader is None else reader(name))
                sharded[name] = placed
        for name, placed in sharded.items():
            _put_(network, name, placed)
        yield
        for tables in held:
            tables.hold_again_()
        for name, placed in sharded.items():
            placed.gather_(whole[name].weights(), whole[name].accumulators())
    except BaseException:
        for tables in held:
            tables.hold_again_()
        raise
    finally:
        for name, tables in whole.items():
            _put_(network, name, tables)
        network.to("cpu")


def _put_(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
