"""What this machine offers adtower, and what to do about what is missing."""

from __future__ import annotations

import importlib.metadata
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.records import Environment, collect_environment

State = Literal["ok", "note", "problem"]

NEEDED = (
    "torch",
    "torchrec",
    "transformers",
    "lightgbm",
    "onnx",
    "onnxruntime",
    "mlflow",
    "polars",
    "numpy",
    "scikit-learn",
)
FBGEMM = ("fbgemm-gpu-cpu", "fbgemm-gpu")
"""The two builds of one library; either will do."""
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

    The first call on a machine takes two seconds more, to time the processor, and keeps what it
    found in the user's cache folder.

    Returns:
        The findings, problems included; nothing is fetched.
    """
    machine = collect_environment()
    return [
        *_versions(machine),
        *_hardware(machine),
        _probe(),
        _kernels(),
        _accelerator(machine),
        _weights(),
        *_extras(),
    ]


def _versions(machine: Environment) -> list[Finding]:
    supported = machine.python.startswith("3.11.")
    findings = [
        Finding(
            what="python",
            found=machine.python,
            state="ok" if supported else "note",
            advice="the locked requirements are for Python 3.11; others are untested",
        )
    ]
    fbgemm = next((name for name in FBGEMM if name in machine.versions), FBGEMM[0])
    for name in (*NEEDED, fbgemm):
        version = machine.versions.get(name)
        findings.append(
            Finding(
                what=name,
                found=version or "missing",
                state="ok" if version else "problem",
                advice="run: make setup",
            )
        )
    return findings


def _hardware(machine: Environment) -> list[Finding]:
    gib = machine.memory_bytes / 2**30
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return [
        Finding(
            what="threads",
            found=f"{machine.threads} of {machine.cores} cores",
            state="ok" if machine.threads <= machine.cores else "problem",
            advice="more threads than cores spin against each other: set OMP_NUM_THREADS",
        ),
        Finding(
            what="memory",
            found=f"{gib:.0f} GiB" if gib else "unknown",
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
            found="yes (avx512_bf16 or AMX)" if machine.bf16 else "no",
            state="ok" if machine.bf16 else "note",
            advice="training stays in float32, which is slower and otherwise the same",
        ),
    ]


def _probe() -> Finding:
    from embeddings.hardware import hardware_choice

    try:
        choice = hardware_choice()
    except ValueError as error:
        return Finding(what="hardware probe", found="refused", state="problem", advice=str(error))
    times = ", ".join(f"{name}: {ms:.1f} ms" for name, ms in choice.timings_ms.items())
    return Finding(
        what="hardware probe",
        found=choice.describe() + (f"; {times}" if times else ""),
        state="ok" if times else "note",
        advice="nothing was timed; on an idle machine: ADTOWER_PROBE=anew adtower doctor",
    )


def _kernels() -> Finding:
    from ranking.step_kernels import library

    what, slower = "compiled kernels", "click models train a tenth to a fifth slower"
    try:
        path = library()
    except OSError as error:
        return Finding(what=what, found="none", state="note", advice=f"{slower}: {error}")
    except ValueError as error:
        return Finding(what=what, found="refused", state="problem", advice=str(error))
    if path is None:
        advice = f"{slower}; unset ADTOWER_KERNELS"
        return Finding(what=what, found="switched off", state="note", advice=advice)
    return Finding(what=what, found=path.name, state="ok")


def _accelerator(machine: Environment) -> Finding:
    import torch

    built = torch.version.cuda
    if machine.cuda:
        return Finding(what="CUDA", found=f"{built}, {machine.cuda}", state="ok")
    if built:
        return Finding(
            what="CUDA",
            found=f"torch is built for {built}, no device is seen",
            state="problem",
            advice="check nvidia-smi and CUDA_VISIBLE_DEVICES, or install CPU wheels of torch",
        )
    return Finding(
        what="CUDA",
        found="torch is a CPU build",
        state="note",
        advice="for a GPU: make setup ACCELERATOR=cuda in a fresh .venv",
    )


def _weights() -> Finding:
    from embeddings.weights import find_text_weights

    try:
        weights = find_text_weights("minilm", require_pretrained=True)
    except ValueError as error:
        return Finding(what="text weights", found="missing", state="problem", advice=str(error))
    return Finding(what="text weights", found=weights.source, state="ok")


def _extras() -> list[Finding]:
    findings = []
    for extra, package in EXTRAS.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = None
        findings.append(
            Finding(
                what=f"extra {extra}",
                found=found or "not installed",
                state="ok" if found else "note",
                advice=f"only if you need it: pip install {package}",
            )
        )
    return findings
