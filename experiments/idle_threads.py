"""How idle OpenMP threads wait: it must be settled before torch is loaded, and cannot be changed.

Threads that sleep at once cost a training step on a quiet machine a third of its speed; those that
spin on slow it tenfold and more as soon as anything else runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path

SPINS = "3000"
"""Rounds that an idle OpenMP thread waits before it sleeps: a few microseconds, which bridge the
gaps between the operations of a step."""

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

_OURS = "ADTOWER_SETTLED_WAITING"
"""Set where the choice was adtower's and not the user's."""


def others_run(path: Path = Path("/proc/loadavg"), *, patience_s: float = 0.0) -> bool:
    """Whether other processes are computing, of several looks; not known: yes.

    Args:
        path: What tells how many processes run.
        patience_s: Look again for so long where some do: a command that is over in a moment
            should not decide how the hours after it go.
    """
    busy = _busy(path, looks=5, every_s=0.002)
    if busy and patience_s:
        busy = _busy(path, looks=20, every_s=patience_s / 20)
    return busy


def settle_waiting_(environment: MutableMapping[str, str], busy: bool) -> None:
    """Say how idle OpenMP threads wait, unless the user has."""
    if environment.keys() & set(VARIABLES):
        return
    environment[_OURS] = "1"
    if busy:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        environment["GOMP_SPINCOUNT"] = SPINS


def as_the_user_had(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what ``settle_waiting_`` has chosen."""
    if _OURS not in environment:
        return dict(environment)
    return {k: v for k, v in environment.items() if k not in (*VARIABLES, _OURS)}


def _busy(path: Path, *, looks: int, every_s: float) -> bool:
    running = []
    for _ in range(looks):
        try:
            running.append(int(path.read_text().split()[3].split("/")[0]))
        except (OSError, ValueError, IndexError):
            return True
        time.sleep(every_s)
    return sum(count > 1 for count in running) > looks // 2
