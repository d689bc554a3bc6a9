"""Where the rows of id tables lie: in memory, in a file that is mapped, or with other ranks.

The first rank of a torchrun job brings all tables together, to score and to save, and its machine
need not have memory for them: it maps them from a file, and what it does not touch the system
writes out and forgets.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

MAPPED_BYTES = 64 * 2**20
"""Fewer lie in memory, in a file or not: what is small is in memory anyway."""

_WITHOUT_ROWS: list[bool] = []
"""Not empty inside ``without_rows``."""

_FOLDERS: list[Path] = []
"""The innermost ``rows_in_file`` last."""


@contextmanager
def without_rows() -> Iterator[None]:
    """Build id tables that have sizes and names and no rows: other ranks hold those."""
    _WITHOUT_ROWS.append(True)
    try:
        yield
    finally:
        _WITHOUT_ROWS.pop()


@contextmanager
def rows_in_file(folder: Path) -> Iterator[None]:
    """Let large tables that are built or read inside lie in mapped files.

    Args:
        folder: Where the files take their room; they have no names, and go with the tables.
    """
    _FOLDERS.append(Path(folder))
    try:
        yield
    finally:
        _FOLDERS.pop()


def new_rows(*shape: int) -> Tensor:
    """Return zeros in float32 of this shape, where rows should lie just now.

    Raises:
        OSError: If they should lie in a file and the disk has no room for them.
    """
    if _WITHOUT_ROWS:
        return torch.empty(shape, device="meta")
    if not _FOLDERS or 4 * math.prod(shape) < MAPPED_BYTES:
        return torch.zeros(shape)
    handle, path = tempfile.mkstemp(prefix=".rows-", dir=_FOLDERS[-1])
    try:
        # A hole in a file that finds no room later would end the process without a word.
        os.posix_fallocate(handle, 0, 4 * math.prod(shape))
        return torch.from_file(path, shared=True, size=math.prod(shape)).view(shape)
    finally:
        os.close(handle)
        Path(path).unlink()
