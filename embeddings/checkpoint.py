"""A trained model as a folder: safetensors, tokenizer, and a record with every file's SHA-256."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from embeddings.store import publish_
from embeddings.tensor_file import write_tensors_
from features.file_sum import file_sha256

FORMAT = "adtower-dashclip-2"
RECORD = "model.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"


def fingerprint(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """SHA-256 over named tensors and texts."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def write_(
    folder: Path,
    tensors: Mapping[str, Tensor],
    tokenizer: str,
    record: Mapping[str, Any],
    *,
    layout: str = FORMAT,
) -> Path:
    """Write a model folder: first beside its place, then renamed, so it is whole or absent.

    Args:
        folder: Made if it is not there; a model in it is replaced.
        tensors: By name.
        tokenizer: Content of tokenizer.json.
        record: What JSON holds.
        layout: Names what the record means; a reader of another layout refuses the folder.

    Raises:
        ValueError: If ``folder`` exists and holds something other than a model.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / RECORD).is_file():
        raise ValueError(f"{folder} exists and holds no model; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write_tensors_(unfinished / WEIGHTS, tensors)
        (unfinished / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        sha256 = {name: file_sha256(unfinished / name) for name in (WEIGHTS, TOKENIZER)}
        content = {"format": layout, "sha256": sha256, **record}
        (unfinished / RECORD).write_text(json.dumps(content, indent=1), encoding="utf-8")
        publish_(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def read_record(folder: Path, layout: str = FORMAT) -> dict[str, Any] | None:
    """The record of the model in ``folder``, or None if there is no model."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if record.get("format") != layout:
        raise ValueError(f"{path} has format {record.get('format')!r}; this reader knows {layout}")
    return record


def read(folder: Path, layout: str = FORMAT) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Read tensors, tokenizer and record, refusing a file whose SHA-256 is not the recorded one.

    Raises:
        ValueError: If there is no model, or a file was damaged.
    """
    record = read_record(folder, layout)
    if record is None:
        raise ValueError(f"{folder} has no {RECORD}, so it holds no model")
    for name, expected in record["sha256"].items():
        if file_sha256(folder / name) != expected:
            raise ValueError(
                f"{folder / name} does not have the SHA-256 of its record: the file was damaged "
                "or replaced; train the stage again"
            )
    return load_file(folder / WEIGHTS), (folder / TOKENIZER).read_bytes().decode(), record
