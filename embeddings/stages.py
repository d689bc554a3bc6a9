"""What both training stages share: whom they tell, and when a finished one is not trained again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from embeddings import checkpoint
from embeddings.model import DashClip

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called after each step with stage, steps done, steps in all, and metrics."""


def finished_stage(out: str | Path | None, run: dict[str, object]) -> DashClip | None:
    """Return the model in ``out`` if the very same run made it, None if there is nothing.

    Raises:
        ValueError: If ``out`` holds the model of another run.
    """
    record = checkpoint.read_record(Path(out)) if out is not None else None
    if out is None or record is None:
        return None
    wanted = json.loads(json.dumps(run))
    differing = sorted(key for key in wanted if record["run"].get(key) != wanted[key])
    if differing:
        raise ValueError(
            f"{out} holds a model of another run (different: {', '.join(differing)}); name "
            "another folder, or remove it to train again"
        )
    return DashClip.load(out)


def digest_of(*parts: object) -> str:
    """SHA-256 over arrays and lists of texts, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(json.dumps(part).encode())
    return digest.hexdigest()
