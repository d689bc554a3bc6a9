"""The `adtower` command: what must be set before torch is loaded, then the command line."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import MutableMapping
from importlib.metadata import version
from pathlib import Path

BUNDLE_COMMANDS = ("verify", "score", "serve", "skew", "mlflow", "triton")
"""Commands over a bundle alone; ``experiments.cli_bundle`` has them."""

EMBED_COMMANDS = ("index", "compact", "approximate", "export", "evaluate")
"""Words after ``embed`` that are commands of their own; ``experiments.cli_embed`` has them."""


SPINS = "3000"
"""Rounds that an idle OpenMP thread waits before it sleeps: a few microseconds, which bridge the
gaps between the operations of a step."""


def others_run(path: Path = Path("/proc/loadavg")) -> bool:
    """Whether other processes are computing at this moment, of several looks; not known: yes."""
    looks = []
    for _ in range(5):
        try:
            running = int(path.read_text().split()[3].split("/")[0])
        except (OSError, ValueError, IndexError):
            return True
        looks.append(running > 1)
        time.sleep(0.002)
    return sum(looks) > len(looks) // 2


def settle_waiting_(environment: MutableMapping[str, str], busy: bool) -> None:
    """Say how idle OpenMP threads wait, unless the user has.

    Threads that sleep at once cost a training step on a quiet machine a third of its speed; those
    that spin on slow it tenfold and more as soon as anything else runs.
    """
    if environment.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        return
    if busy:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        environment["GOMP_SPINCOUNT"] = SPINS


def main() -> None:
    """Run the command line."""
    if sys.argv[1:] == ["--version"]:
        print(f"adtower {version('adtower')}")
        return
    settle_waiting_(os.environ, others_run())
    # Notes of torch to its developers, about packages that adtower does not use.
    for name in ("torch.fx._symbolic_trace", "torch.onnx._internal.exporter._registration"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if sys.argv[1:2] and sys.argv[1] in BUNDLE_COMMANDS:
        # They must run where torch is not installed, and start at once where it is.
        from experiments.cli_bundle import main as run_command_line
    elif sys.argv[1:2] == ["embed"] and sys.argv[2:3] and sys.argv[2] in EMBED_COMMANDS:
        from experiments.cli_embed import main as run_command_line
    else:
        from experiments.cli import main as run_command_line
    run_command_line()


if __name__ == "__main__":
    main()
