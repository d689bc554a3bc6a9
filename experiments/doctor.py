"""What this machine offers adtower, and what to do about what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "note", "problem"]

PINNED = (
    "torch",
    "torchrec",
    "fbgemm_gpu-cpu",
    "transformers",
    "lightgbm",
    "onnxruntime",
    "mlflow",
    "polars",
    "numpy",
    "scikit-learn",
)
EXTRAS = {"ray": "ray", "llm": "openai"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's report."""

    what: str
    found: str
    state: State
    advice: str = ""
    """What to do, where ``state`` is not ok."""


def examine() -> list[Finding]:
    """Look at versions, processor, memory, accelerators and weights.

    Returns:
        The findings, problems included; nothing is changed and nothing is fetched.
    """
    return [*_versions(), *_hardware(), *_accelerator(), *_weights(), *_extras()]


def _versions() -> list[Finding]:
    python = platform.python_version()
    findings = [
        Finding(what="python", found=python, state="ok")
        if python.startswith("3.11.")
        else Finding(
            what="python",
            found=python,
            state="note",
            advice="the locked requirements are for Python 3.11; others are untested",
        )
    ]
    for name in PINNED:
        version = _installed(name)
        if version is None and name == "fbgemm_gpu-cpu":
            name, version = "fbgemm_gpu", _installed("fbgemm_gpu")
        findings.append(
            Finding(what=name, found=version, state="ok")
            if version
            else Finding(what=name, found="missing", state="problem", advice="run: make setup")
        )
    return findings


def _hardware() -> list[Finding]:
    import torch

    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    bf16 = _cpu_has("avx512_bf16", "amx_bf16")
    return [
        Finding(
            what="threads",
            found=f"{threads} of {cores} cores",
            state="ok" if threads <= (cores or 1) else "problem",
            advice="more threads than cores spin against each other: set OMP_NUM_THREADS",
        ),
        Finding(
            what="memory",
            found=f"{gib:.0f} GiB",
            state="ok" if gib >= 6 else "note",
            advice="the demo peaks below 6 GB; take fewer --products and --requests",
        ),
        Finding(
            what="free disk here",
            found=f"{free:.0f} GiB",
            state="ok" if free >= 2 else "problem",
            advice="a run writes vectors, models and a report: free at least 2 GiB",
        ),
        Finding(
            what="bf16 on the processor",
            found="yes (avx512_bf16 or AMX)" if bf16 else "no",
            state="ok" if bf16 else "note",
            advice="training stays in float32, which is slower and otherwise the same",
        ),
    ]


def _accelerator() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        return [Finding(what="CUDA", found=f"{torch.version.cuda}, {name}", state="ok")]
    if torch.version.cuda:
        return [
            Finding(
                what="CUDA",
                found=f"torch is built for {torch.version.cuda}, no device is seen",
                state="problem",
                advice="check nvidia-smi and CUDA_VISIBLE_DEVICES, or install CPU wheels of torch",
            )
        ]
    return [
        Finding(
            what="CUDA",
            found="torch is a CPU build",
            state="note",
            advice="for a GPU: make setup ACCELERATOR=cuda in a fresh .venv",
        )
    ]


def _weights() -> list[Finding]:
    from embeddings.weights import find_text_weights

    try:
        weights = find_text_weights("minilm")
    except ValueError as error:
        return [Finding(what="text weights", found="missing", state="problem", advice=str(error))]
    return [
        Finding(what="text weights", found=f"{weights.source}, {weights.sha256[:12]}", state="ok")
    ]


def _extras() -> list[Finding]:
    return [
        Finding(
            what=f"extra {extra}",
            found=_installed(package) or "not installed",
            state="ok" if _installed(package) else "note",
            advice=f"only if you need it: pip install {package}",
        )
        for extra, package in EXTRAS.items()
    ]


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_has(*flags: str) -> bool:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return False
    words = set(info.read_text(encoding="utf-8", errors="replace").split())
    return any(flag in words for flag in flags)
