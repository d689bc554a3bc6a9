"""Arrays that several processes read: written once, mapped into each, held in memory once.

A record is a dataclass of arrays and plain values, as ``Examples`` and ``Vectors`` are.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from experiments.records import read_json, write_json

Record = TypeVar("Record")

_VALUES = "values.json"


def write_record(record: Any, folder: Path) -> None:
    """Write a dataclass of arrays and JSON values to a folder, one file an array."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            np.save(folder / f"{name}.npy", value)
    plain = {name: v for name, v in values.items() if not isinstance(v, np.ndarray)}
    write_json(folder / _VALUES, plain)


def map_record(kind: type[Record], folder: Path) -> Record:
    """Read what ``write_record`` wrote, its arrays mapped from the files and not copied.

    Writing into such an array changes this process's copy of the page alone.

    Args:
        kind: The dataclass that was written.
        folder: Where it was written to.
    """
    plain = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in read_json(folder / _VALUES).items()
    }
    arrays = {
        path.stem: np.load(path, mmap_mode="c", allow_pickle=False) for path in folder.glob("*.npy")
    }
    return kind(**plain, **arrays)
