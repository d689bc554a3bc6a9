"""How many threads and which arithmetic are fastest here: measured once a machine, then recorded.

A stopwatch read at every run would make the same seed give other numbers, since threads and
arithmetic decide how sums are rounded. So the probe runs once; its answer lies in the user's cache
folder under the processor, its cores, torch's version and the threads asked for, and every later
run reads it there. A run records the answer it used. The stopwatch also has little to say: it can
take bfloat16 away from a processor that claims to have it, and move the number of threads off one
a core, only by ``CLEARLY`` and never by the little that two readings differ. Beside busy
neighbours it is not asked: two threads that wait for each other can look fifty times as slow.

Environment:
    ADTOWER_PROBE: "off" measures nothing and goes by what the processor says of itself; "anew"
        measures again and replaces the record.
    OMP_NUM_THREADS: fixes the threads; the probe then decides on the arithmetic alone.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from embeddings.processor import Processor, read_processor

CLEARLY = 1.2
"""How many times as fast something has to be to be taken instead of what is usual."""

FAST_FLAGS = ("avx512_bf16", "amx_bf16")
"""Processors without one of these emulate bfloat16, many times slower than float32."""

ROUNDS = 25
PROBE_SECONDS = 1.5

DType = Literal["float32", "bfloat16"]

Measure = Callable[[int, torch.dtype], float]
"""Seconds that a fixed piece of work takes with some threads in some arithmetic."""

LOADAVG = Path("/proc/loadavg")
CROWDED_SHARE = 1 / 8
"""Others that run on more than this share of the machine's cores make timings worthless."""


class HardwareChoice(BaseModel):
    """Threads and arithmetic for this machine, and why. Round trips through JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int = Field(ge=1)
    """For ``torch.set_num_threads``. Another number may round sums otherwise."""
    dtype: DType
    """What is fastest; an encoder still has to stay accurate in it, see ``choose_precision``."""
    reasons: tuple[str, ...]
    """Why, in words: threads, then arithmetic."""
    timings_ms: dict[str, float] = {}
    """Best time of the probe's block by "dtype x threads"; empty if nothing was measured."""
    processor: str
    """The processor's name."""
    fast_flags: tuple[str, ...]
    """Those of ``FAST_FLAGS`` that the processor has."""
    logical_cores: int
    """Hardware threads at hand when this was chosen."""
    physical_cores: int
    """Cores at hand when this was chosen."""
    torch_version: str
    """Kernels change with it."""

    def to_json(self) -> str:
        """The record as JSON; ``HardwareChoice.model_validate_json`` reads it."""
        return self.model_dump_json(indent=2)

    def apply_(self) -> None:
        """Make torch use these threads in this process."""
        torch.set_num_threads(self.threads)

    def describe(self) -> str:
        """One line for people."""
        return f"{self.dtype} on {self.threads} threads ({'; '.join(self.reasons)})"


def hardware_choice(
    *,
    threads: int | None = None,
    processor: Processor | None = None,
    measure: Measure | None = None,
    crowded: Callable[[], bool] | None = None,
    folder: Path | None = None,
) -> HardwareChoice:
    """What to use on this machine: as recorded, or probed now and recorded.

    Args:
        threads: Fixes the threads; OMP_NUM_THREADS does so if None.
        processor: What the machine has; read from the system if None.
        measure: Replaces the stopwatch.
        crowded: Replaces the look at what else runs.
        folder: Where the record lies; ``cache_folder()`` if None. Where nothing can be written
            nothing is measured either, because the next reading might come out differently.

    Raises:
        ValueError: If ADTOWER_PROBE or OMP_NUM_THREADS or ``threads`` makes no sense.
    """
    processor = processor or read_processor()
    threads = threads if threads is not None else _threads_asked_for()
    mode = os.environ.get("ADTOWER_PROBE", "")
    if mode not in ("", "off", "anew"):
        raise ValueError(f"ADTOWER_PROBE={mode!r} is not one of 'off', 'anew', or unset")
    if mode == "off":
        return choose_by_rule(processor, threads=threads)
    folder = folder or cache_folder()
    identity = f"{processor.model} {processor.logical_cores} {processor.physical_cores} {threads}"
    identity += f" {sorted(processor.flags & set(FAST_FLAGS))} {torch.__version__}"
    record = folder / f"hardware-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".hardware.lock"):
            if mode != "anew":
                known = _read_record(record)
                if known is not None:
                    return known
            choice = probe_hardware(processor, threads=threads, measure=measure, crowded=crowded)
            partial = record.with_suffix(".part")
            partial.write_text(choice.to_json() + "\n", encoding="utf-8")
            partial.replace(record)
            return choice
    except OSError:
        return choose_by_rule(processor, threads=threads)


def probe_hardware(
    processor: Processor,
    *,
    threads: int | None = None,
    measure: Measure | None = None,
    crowded: Callable[[], bool] | None = None,
) -> HardwareChoice:
    """Time a block of an encoder in every candidate setting and choose; about two seconds.

    All candidates take turns and the best time of each counts, so that what else happens meanwhile
    disturbs all alike. Where much else runs from the start the choice is ``choose_by_rule``'s.

    Args:
        processor: What the machine has.
        threads: Fixes the threads.
        measure: Replaces the stopwatch.
        crowded: Replaces the look at what else runs.
    """
    measure = measure or time_block
    rule = choose_by_rule(processor, threads=threads)
    if (crowded or is_crowded)():
        return rule.model_copy(
            update={"reasons": (*rule.reasons, "not timed, because the machine was busy")}
        )
    counts = sorted({1, processor.physical_cores, processor.logical_cores})
    if threads is not None:
        counts = [threads]
    dtypes: tuple[DType, ...] = ("float32", "bfloat16") if rule.fast_flags else ("float32",)
    best = _best_times(measure, [(dtype, count) for dtype in dtypes for count in counts])
    dtype, why_dtype = _choose_dtype(rule, best)
    chosen, why_threads = rule.threads, rule.reasons[0]
    fastest = min(counts, key=lambda count: best[dtype, count])
    gain = best[dtype, rule.threads] / best[dtype, fastest]
    if gain >= CLEARLY:
        chosen, why_threads = fastest, f"{gain:.2f} times as fast as {rule.threads} threads"
    return rule.model_copy(
        update={
            "threads": chosen,
            "dtype": dtype,
            "reasons": (why_threads, why_dtype),
            "timings_ms": {
                f"{dtype} x {count}": round(1e3 * seconds, 3)
                for (dtype, count), seconds in sorted(best.items())
            },
        }
    )


def choose_by_rule(processor: Processor, *, threads: int | None = None) -> HardwareChoice:
    """What the processor says of itself, without a stopwatch: its cores, and bfloat16 by flag.

    Raises:
        ValueError: If ``threads`` is below 1.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads} must be at least 1")
    flags = tuple(flag for flag in FAST_FLAGS if flag in processor.flags)
    return HardwareChoice(
        threads=threads or processor.physical_cores,
        dtype="bfloat16" if flags else "float32",
        reasons=(
            "threads asked for" if threads else "one thread a core",
            f"this processor has {flags[0]}" if flags else "this processor has no bfloat16",
        ),
        processor=processor.model,
        fast_flags=flags,
        logical_cores=processor.logical_cores,
        physical_cores=processor.physical_cores,
        torch_version=torch.__version__,
    )


def cache_folder() -> Path:
    """Where adtower keeps what it learned about this machine."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "adtower"


@torch.no_grad()
def time_block(threads: int, dtype: torch.dtype) -> float:
    """Seconds for one layer of a small text encoder: matrix products, attention, norm.

    Leaves torch at ``threads``.
    """
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    rows, length, width, heads = 64, 32, 384, 12
    x_BLD = torch.randn(rows, length, width, generator=generator)
    qkv, up, down = (
        torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
        for outputs, inputs in ((3 * width, width), (4 * width, width), (width, 4 * width))
    )
    start = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in F.linear(x_BLD, qkv).chunk(3, -1)
        )
        mixed_BLD = (((q @ k.transpose(-1, -2)).softmax(-1)) @ v).transpose(1, 2).flatten(2)
        x_BLD = F.layer_norm(x_BLD + mixed_BLD, (width,))
        F.linear(F.gelu(F.linear(x_BLD, up)), down)
    return time.perf_counter() - start


def is_crowded() -> bool:
    """Whether other threads run on much of the machine; False where the system does not tell."""
    if not LOADAVG.is_file():
        return False
    running = []
    for _ in range(9):
        time.sleep(0.02)
        now, _, _ = LOADAVG.read_text(encoding="utf-8").split()[3].partition("/")
        # The one that reads is always among them.
        running.append(int(now) - 1)
    return sorted(running)[len(running) // 2] > CROWDED_SHARE * (os.cpu_count() or 1)


def _best_times(
    measure: Measure, settings: list[tuple[DType, int]]
) -> dict[tuple[DType, int], float]:
    best: dict[tuple[DType, int], float] = {}
    own_threads, spent = torch.get_num_threads(), 0.0
    try:
        for turn in range(ROUNDS):
            for dtype, count in settings:
                seconds = measure(count, getattr(torch, dtype))
                spent += seconds
                # The first turn also loads kernels and starts threads.
                if turn:
                    best[dtype, count] = min(seconds, best.get((dtype, count), seconds))
            if turn and spent > PROBE_SECONDS:
                break
    finally:
        torch.set_num_threads(own_threads)
    return best


def _choose_dtype(rule: HardwareChoice, best: dict[tuple[DType, int], float]) -> tuple[DType, str]:
    if not rule.fast_flags:
        return "float32", rule.reasons[1]
    fastest = {
        dtype: min(seconds for (timed, _), seconds in best.items() if timed == dtype)
        for dtype in ("float32", "bfloat16")
    }
    gain = fastest["float32"] / fastest["bfloat16"]
    if gain >= CLEARLY:
        return "bfloat16", f"bfloat16 is {gain:.2f} times as fast as float32"
    return "float32", f"bfloat16 is only {gain:.2f} times as fast as float32"


def _threads_asked_for() -> int | None:
    text = os.environ.get("OMP_NUM_THREADS", "").strip()
    if not text:
        return None
    # OpenMP allows a list, one number a nesting level; the first is the one that counts here.
    first = text.split(",")[0]
    if not first.isdigit() or int(first) < 1:
        raise ValueError(f"OMP_NUM_THREADS={text!r} must be a whole number of at least 1")
    return int(first)


def _read_record(record: Path) -> HardwareChoice | None:
    if not record.is_file():
        return None
    try:
        return HardwareChoice.model_validate_json(record.read_text(encoding="utf-8"))
    except ValueError:
        # Cut off or written by another version: measuring again replaces it.
        return None
