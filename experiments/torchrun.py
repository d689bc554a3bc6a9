"""Fits on several ranks of this machine, started by torchrun."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch


def fit_on_ranks(
    job: Path, ranks: int, state: Path, steps: int, *, of: int | None = None, parts: int = 1
) -> None:
    """Fit a job for some steps on so many ranks; see ``ranking.sharding_check``.

    On processors the ranks share the cores. GPUs are used where there is one for each of ``of``
    ranks.

    Args:
        job: Folder that ``FitJob.write_`` wrote.
        ranks: Processes.
        state: Folder for the state; one that is there is taken up.
        steps: Fitted until so many.
        of: The most ranks of the fits that are compared, which all compute on the same; by default
            these.
        parts: A single rank sums its gradients as so many.

    Raises:
        ValueError: If it fails; with the end of what it said.
    """
    of = ranks if of is None else of
    # The packages may run from a checkout: the ranks must find them where this process did.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    threads = str(max(1, (os.cpu_count() or 1) // of))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads}
    if torch.cuda.device_count() < of:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    words = ("-m", "ranking.sharding_check", job, state, steps, parts)
    done = subprocess.run(
        torchrun(ranks, *words),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(
            f"training on {ranks} rank{'s' * (ranks > 1)} failed (exit code {done.returncode}):\n"
            + _own_words(done.stderr)
        )


def torchrun(ranks: int, *words: object) -> list[str]:
    """Return the command that starts a script or module on so many ranks of this machine.

    Args:
        ranks: Processes.
        words: The script, or ``-m`` and the module, and its arguments.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return [sys.executable, *launcher, f"--master-port={port}", *map(str, words)]


def _own_words(stderr: str) -> str:
    """What the ranks said themselves, without what torchrun adds."""
    said = [line for line in stderr.splitlines() if line.startswith("[rank")]
    return "\n".join(said[-20:]) or stderr[-2000:]
