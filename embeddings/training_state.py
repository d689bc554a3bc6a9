"""Everything a training run needs to go on after a kill as if nothing had happened.

A state is a file of tensors and a small record that names it with its SHA-256. The record is
replaced last and atomically, so a kill at any moment leaves the state before or the state after.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from embeddings.tensor_file import write_tensors_
from features.file_sum import file_sha256

RECORD = "state.json"


def write_state_(folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write a state and remove the one before it.

    Args:
        folder: Made if it is not there.
        tensors: By name.
        record: What JSON holds: step, place in the data, history.

    Raises:
        OSError: If the disk is full; the state before remains.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"state-{record['step']}.safetensors"
    write_tensors_(folder / name, tensors)
    full = {**record, "file": name, "sha256": file_sha256(folder / name)}
    _write_whole_(folder / RECORD, json.dumps(full).encode())
    for old in folder.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink()


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the state in ``folder``, or None if there is none.

    Tensors are read from the file as they are touched; what is written into them stays in memory.

    Raises:
        ValueError: If a file was damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = file_sha256(folder / record["file"])
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder} holds a damaged training state ({error}); remove the folder to train anew"
        ) from error
    if found != record["sha256"]:
        raise ValueError(
            f"{folder / record['file']} does not have the SHA-256 of its record: the file was "
            "damaged; remove the folder to train anew"
        )
    return load_file(folder / record["file"]), record


def read_state_of(
    folder: Path, identity: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the state in ``folder`` if the very same run wrote it, None if there is none.

    Raises:
        ValueError: If another run wrote it, or a file was damaged.
    """
    found = read_state(folder)
    if found is not None and found[1]["identity"] != identity:
        raise ValueError(
            f"{folder} holds the state of another run, cut off at step {found[1]['step']}; "
            "remove it to train anew, or repeat the command it was begun with"
        )
    return found


def trained_names(module: nn.Module) -> list[str]:
    """What training changes in a module: parameters with gradient, and buffers."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return [name for name in module.state_dict() if name not in frozen]


def take(prefix: str, module: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Some tensors of a module, named ``prefix.NAME``."""
    state = module.state_dict()
    return {f"{prefix}.{name}": state[name].detach() for name in names}


@torch.no_grad()
def put_back_(
    prefix: str, module: nn.Module, names: Iterable[str], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what ``take`` took out.

    Raises:
        ValueError: If a tensor is missing or has another shape.
    """
    for name, tensor in take(prefix, module, names).items():
        found = tensors.get(name)
        if found is None or found.shape != tensor.shape:
            raise ValueError(
                f"the training state has no tensor {name} of shape {tuple(tensor.shape)}; it is "
                "of another version or architecture, remove its folder to train anew"
            )
        tensor.copy_(found)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments and step counts of an optimizer, by the parameters' order."""
    return {
        f"optimizer.{index}.{key}": value.detach()
        for index, slots in optimizer.state_dict()["state"].items()
        for key, value in slots.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer_(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` took out."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _write_whole_(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.part")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
