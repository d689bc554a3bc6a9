"""Where a training keeps its state, so that a kill costs a minute and no bit of the result.

A state is a safetensors file and a JSON record that names it with its SHA-256; the record is
replaced last and atomically (``embeddings.training_state``). It is only taken up by the training
that wrote it: same settings, same rows, same seed. Ranks keep theirs otherwise
(``ranking.sharded_checkpoint``).

Shape letters: N rows, F sparse features, C dense columns.
"""

from __future__ import annotations

import shutil
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embeddings.training_state import read_state, write_state_
from features.examples import Examples
from ranking.fit_job import FitJob

RANKS_STATE = "state"
"""Folder inside that of a training where ranks of a torchrun job keep their common state."""

# A state of large tables takes seconds to write; training goes on at least so many times as long.
_SHARE_OF_TIME = 20.0


class Cadence:
    """When a state should be written.

    Args:
        every_seconds: From one state to the next, at least.
        every_steps: Write after so many steps instead, whatever the time.
    """

    def __init__(self, every_seconds: float = 60.0, every_steps: int | None = None) -> None:
        self.every_seconds, self.every_steps = every_seconds, every_steps
        self._next = time.monotonic() + every_seconds

    def due(self, step: int) -> bool:
        """Whether a state should be written after this step."""
        if self.every_steps is not None:
            return step % self.every_steps == 0
        return time.monotonic() >= self._next

    def written_(self, seconds: float) -> None:
        """Take note that a state was just written, and of how long that took."""
        self._next = time.monotonic() + max(self.every_seconds, _SHARE_OF_TIME * seconds)


class Checkpoints:
    """The state of one training in a folder.

    Args:
        folder: Made when the first state is written.
        identity: What the training is, JSON values; another one's state is refused.
        cadence: When states are written; once a minute by default.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], cadence: Cadence | None = None
    ) -> None:
        self.folder, self.identity = Path(folder), dict(identity)
        self.cadence = cadence or Cadence()

    def due(self, step: int) -> bool:
        """Whether a state should be written after this step."""
        return self.cadence.due(step)

    def write_(self, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write a state in place of the one before.

        Raises:
            ValueError: If the disk is full; the state before remains.
        """
        began = time.monotonic()
        try:
            write_state_(self.folder, tensors, {**record, "step": step, "identity": self.identity})
        except OSError as error:
            for part in self.folder.glob(".*.part"):
                part.unlink()
            raise not_written(self.folder, step, error) from error
        self.cadence.written_(time.monotonic() - began)

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the state to go on from, or None if there is none.

        Raises:
            ValueError: If it is another training's, or a file was damaged.
        """
        found = read_state(self.folder)
        if found is not None:
            refuse_other_training(self.folder, found[1]["identity"], self.identity)
        return found

    def remove_(self) -> None:
        """Remove the state, once what the training made is safe."""
        shutil.rmtree(self.folder, ignore_errors=True)


def refuse_other_training(
    folder: Path, recorded: Mapping[str, Any], own: Mapping[str, Any]
) -> None:
    """Refuse to go on from the state of another training.

    Raises:
        ValueError: Naming what differs.
    """
    differing = sorted(name for name in {*recorded, *own} if recorded.get(name) != own.get(name))
    if differing:
        raise ValueError(
            f"{folder} holds the checkpoint of another training: "
            + ", ".join(
                f"{name} was {recorded.get(name)!r} and is {own.get(name)!r}" for name in differing
            )
            + ". Repeat that training's command, or remove the folder to train anew"
        )


def not_written(folder: Path, step: int, error: Exception) -> ValueError:
    """Return the error that a state could not be written, with what to do."""
    reason = getattr(error, "strerror", None) or error
    return ValueError(
        f"the checkpoint of step {step} could not be written to {folder}: {reason}; the one before "
        "it remains. Make room on the disk and repeat the command, which goes on from there"
    )


def kept_in(folder: Path, job: FitJob, network: nn.Module) -> Checkpoints:
    """Return the checkpoints of a fit by this process alone.

    Raises:
        ValueError: If ranks of a torchrun job have left a state there.
    """
    if left_by_ranks(folder):
        raise ValueError(
            f"{folder} holds the state of a training on several ranks, which one process cannot "
            "take up. Repeat its command under torchrun, with two ranks or more, or remove the "
            "folder to train anew"
        )
    threads = {"threads": torch.get_num_threads()}
    return Checkpoints(folder, {**identity_of(job, network), **threads})


def left_by_ranks(folder: Path) -> bool:
    """Whether ranks of a torchrun job have left a state in the folder of a training."""
    at = Path(folder) / RANKS_STATE
    return at.is_dir() or before(at).is_dir()


def before(state: Path) -> Path:
    """Return where the state before lies, between the two renames that put one in its place."""
    return Path(state).with_name(f".{Path(state).name}.old")


def identity_of(job: FitJob, network: nn.Module) -> dict[str, Any]:
    """Return what a fit is known again by: its settings, rows and first weights."""
    vectors = "none" if job.vectors is None else job.vectors.fingerprint
    return {
        **{f"setting {name}": value for name, value in job.config.model_dump(mode="json").items()},
        "features": list(job.signature.sparse_names) + list(job.signature.dense_names),
        "seed": job.seed,
        "training rows": rows_checksum(job.train),
        "rows read in runs of": job.train.run_rows,
        "validation rows": rows_checksum(job.validation),
        "vectors": vectors,
        "first weights": _checksum(p.detach().numpy() for p in network.parameters()),
    }


def rows_checksum(examples: Examples) -> int:
    """Return a checksum of what a model reads of these rows, to know them again by."""
    arrays = (
        examples.sparse_NF,
        examples.dense_NC,
        examples.product_N,
        examples.query_N,
        examples.history_NL,
        examples.label_N,
        examples.weight_N,
    )
    return _checksum(array for array in arrays if array is not None)


def _checksum(arrays: Iterable[NDArray]) -> int:
    found = 0
    for array in arrays:
        found = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, found)
    return found
