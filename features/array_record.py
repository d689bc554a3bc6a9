"""Arrays that several processes read: written once, mapped into each, held in memory once.

A record is a dataclass of arrays and JSON values, as ``Examples`` and ``Vectors`` are. An array
that is mapped from a file already is not copied: the record says where it lies.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Record = TypeVar("Record")

_VALUES = "values.json"


def write_record(record: Any, folder: Path) -> None:
    """Write a dataclass of arrays and JSON values to a folder.

    Mapped arrays must be as their files are: what was written into them in memory is not seen.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    elsewhere = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            place = _place(value)
            if place is None:
                np.save(folder / f"{name}.npy", value)
            else:
                elsewhere[name] = place
    plain = {name: v for name, v in values.items() if not isinstance(v, np.ndarray)}
    text = json.dumps({"plain": plain, "elsewhere": elsewhere})
    (folder / _VALUES).write_text(text, encoding="utf-8")


def map_record(kind: type[Record], folder: Path) -> Record:
    """Read what ``write_record`` wrote, its arrays mapped from the files and not copied.

    Writing into such an array changes this process's copy of the page alone.

    Args:
        kind: The dataclass that was written.
        folder: Where it was written to.

    Raises:
        ValueError: If a file that the record names is not there, or has another size.
    """
    values = json.loads((folder / _VALUES).read_text(encoding="utf-8"))
    plain = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values["plain"].items()
    }
    # Copy on write: torch takes arrays as they are only if they could be written to.
    arrays = {
        path.stem: np.load(path, mmap_mode="c", allow_pickle=False) for path in folder.glob("*.npy")
    }
    arrays |= {name: _mapped(place) for name, place in values["elsewhere"].items()}
    return kind(**plain, **arrays)


def _place(array: NDArray[Any]) -> dict[str, Any] | None:
    """Where the bytes of an array lie in a file, if they are mapped from one."""
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    if not (isinstance(root, np.memmap) and isinstance(root.base, mmap.mmap) and root.filename):
        return None
    path = Path(root.filename).resolve()
    start, first = (each.__array_interface__["data"][0] for each in (root, array))
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "dtype": array.dtype.str,
        "shape": array.shape,
        "strides": array.strides,
        "offset": root.offset + first - start,
    }


def _mapped(place: Mapping[str, Any]) -> NDArray[Any]:
    path = Path(place["file"])
    if not path.is_file() or path.stat().st_size != place["bytes"]:
        found = f"{path.stat().st_size} bytes" if path.is_file() else "no file"
        raise ValueError(
            f"{path} should have {place['bytes']} bytes, and this process finds {found}; rows that "
            "several processes train on must lie where all of them find them, under one path, and "
            "stay as they are meanwhile"
        )
    return np.ndarray(
        place["shape"],
        place["dtype"],
        buffer=np.memmap(path, np.uint8, mode="c"),
        offset=place["offset"],
        strides=place["strides"],
    )
