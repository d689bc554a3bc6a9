"""Who carries out a fit: this process alone, or the ranks of a torchrun job that wait for it.

Apart from the work, so that a process of its own does not load what only many need.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ranking.contract import Progress

if TYPE_CHECKING:
    from ranking.fit_job import FitJob
    from ranking.model import ClickNetwork
    from ranking.train import Check

LEADERS: list[FitLeader] = []
"""The innermost ``ranking.sharded_fit.leading`` last; empty in a job of one process."""


class FitLeader(Protocol):
    """The first rank of a torchrun job, whose others wait for fits."""

    def train(
        self,
        job: FitJob,
        network: ClickNetwork,
        progress: Progress | None,
        checkpoints: Path | None,
    ) -> list[Check]:
        """Fit a network on all ranks and leave the learned weights in it.

        Args:
            checkpoints: Folder for the state of the training, for a repeat to go on from.
        """
        ...


def current_leader() -> FitLeader | None:
    """The leader in whose ``leading`` this code runs; None in a job of one process."""
    return LEADERS[-1] if LEADERS else None
