"""Folders that are written whole or not at all, and verified before they are read.

One flipped bit loads silently from safetensors, parquet and ONNX, and a truncated LightGBM file
kills the process; so every folder carries ``manifest.json`` with the SHA-256 of each other file,
and nothing is parsed before its sum agrees.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from features.file_sum import file_sha256

MANIFEST = "manifest.json"


@contextmanager
def published_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``folder`` at the end, or vanishes on any error.

    The caller writes files into it and finishes with ``write_manifest``.

    Raises:
        ValueError: If ``folder`` exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already; nothing is overwritten. Choose a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        for path in temporary.rglob("*"):
            _sync(path)
        _sync(temporary)
        # mkdtemp makes it private to the user; a published folder follows the umask.
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_manifest(folder: Path, **fields: Any) -> None:
    """Write ``manifest.json``: ``fields`` and the SHA-256 of every file in ``folder``.

    Args:
        folder: A folder whose other files are complete.
        fields: Whatever else the manifest should say, JSON values.
    """
    sha256 = {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != MANIFEST
    }
    text = json.dumps({**fields, "sha256": sha256}, indent=2, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder, without verifying any file.

    Raises:
        ValueError: If there is none, or it is not one.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ValueError(f"{path} does not exist; is {folder} a saved model or bundle?")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("sha256"), dict):
        raise ValueError(f"{path} lists no 'sha256' sums; was it edited?")
    return manifest


def read_verified(folder: Path, name: str) -> bytes:
    """Return the bytes of one file, after its SHA-256 agreed with the manifest.

    Raises:
        ValueError: If the file is missing, unlisted or changed.
    """
    path, expected = _listed(Path(folder), name)
    content = path.read_bytes()
    _same_sum(path, expected, hashlib.sha256(content).hexdigest())
    return content


def verified_file(folder: Path, name: str) -> Path:
    """Return the path of one file that is too large to read at once, as ``read_verified``.

    Raises:
        ValueError: If the file is missing, unlisted or changed.
    """
    path, expected = _listed(Path(folder), name)
    _same_sum(path, expected, file_sha256(path))
    return path


def verify_folder(folder: Path) -> dict[str, Any]:
    """Verify every file of a folder and return its manifest.

    Raises:
        ValueError: If a listed file is missing or changed, or an unlisted one is present.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, expected in manifest["sha256"].items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing; was the folder copied whole?")
        _same_sum(folder / name, expected, file_sha256(folder / name))
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    unlisted = present - set(manifest["sha256"]) - {MANIFEST}
    if unlisted:
        raise ValueError(f"{folder} holds files that {MANIFEST} does not list: {sorted(unlisted)}")
    return manifest


def _listed(folder: Path, name: str) -> tuple[Path, str]:
    """The path of a file that is there, and the SHA-256 that it should have."""
    expected = read_manifest(folder)["sha256"].get(name)
    path = folder / name
    if expected is None or not path.is_file():
        raise ValueError(f"{path} is missing or not in {MANIFEST}; was the folder copied whole?")
    return path, expected


def _same_sum(path: Path, expected: str, found: str) -> None:
    if expected != found:
        raise ValueError(
            f"{path} has SHA-256 {found[:12]}…, but {MANIFEST} says {expected[:12]}…; "
            "the file was changed or damaged after it was written"
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
