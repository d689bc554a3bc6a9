"""Files of tensors, written from where the tensors lie and read where the file lies.

A model whose id tables fill half of a machine must be stored and read there too, so neither
direction makes a copy in memory of all that the file holds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_tensors_(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file whole, or leave what was there; it is on the disk on return.

    Args:
        path: Of the file; beside it ``.NAME.part`` stays where writing failed.
        tensors: By name; one that is not contiguous, or on a device, is copied.

    Raises:
        OSError: If it cannot be written, as on a full disk.
    """
    unfinished = path.with_name(f".{path.name}.part")
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(content, unfinished)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)
