"""What ``experiments.torchrun`` runs on every rank: fit a job for some steps.

``python -m torch.distributed.run --nproc-per-node 2 -m ranking.sharding_check JOB STATE STEPS``
takes up the state in STATE, if there is one, fits the job until STEPS, and leaves its state there.
A fourth word is the number of ranks that a single one sums its gradients as.
"""

from __future__ import annotations

import datetime
import gc
import sys
from pathlib import Path

import torch.distributed as dist

from embeddings.ranks import Ranks, open_group_
from ranking.fit_job import FitJob
from ranking.sharded_fit import train_together
from ranking.training_checkpoints import Cadence


def main(job_folder: Path, state: Path, steps: int, *, parts: int = 1) -> None:
    """Fit on all ranks of this torchrun job."""
    if not dist.is_initialized():
        # A group of one, too, so that one rank runs what many run.
        open_group_(datetime.timedelta(minutes=5))
    ranks = Ranks(rank=dist.get_rank(), world=dist.get_world_size())
    job = FitJob.read(job_folder)
    network = job.network(job_folder, rows=not ranks.rank)
    train_together(
        job,
        network,
        ranks,
        folder=job_folder,
        checkpoint=state,
        cadence=Cadence(every_steps=1000),
        max_steps=steps,
        parts=parts,
    )
    del network
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    job_folder, state, steps, *words = sys.argv[1:]
    main(Path(job_folder), Path(state), int(steps), parts=int(words[0]) if words else 1)
