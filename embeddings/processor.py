"""What the processor is and how much of it this process may use; nothing is measured."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where a container says what share of the cores it is given."""


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The cores at hand."""

    model: str
    logical_cores: int
    """Hardware threads this process may run on."""
    physical_cores: int
    """Cores behind them; torch's own number of threads."""
    flags: frozenset[str]
    """Instruction sets; empty where the system does not tell."""


def read_processor(cpuinfo: Path = CPUINFO, quota: Path = QUOTA) -> Processor:
    """Read what the system says, no more than affinity and the container's quota allow.

    Args:
        cpuinfo: In the format of Linux; may be missing.
        quota: Two numbers, microseconds given and of how many, or "max"; may be missing.
    """
    allowed = os.sched_getaffinity(0)
    model, flags, cores = platform.processor() or platform.machine(), frozenset(), set()
    for block in _blocks(cpuinfo):
        model = block.get("model name", model)
        flags = flags or frozenset(block.get("flags", "").split())
        number = int(block.get("processor", -1))
        if number in allowed:
            cores.add((block.get("physical id", ""), block.get("core id", str(number))))
    limit = _quota_cores(quota) or len(allowed)
    return Processor(
        model=model,
        logical_cores=min(len(allowed), limit),
        physical_cores=min(len(cores) or len(allowed), limit),
        flags=flags,
    )


def _blocks(cpuinfo: Path) -> list[dict[str, str]]:
    if not cpuinfo.is_file():
        return []
    blocks = []
    for text in cpuinfo.read_text(encoding="utf-8").strip().split("\n\n"):
        pairs = (line.partition(":") for line in text.splitlines())
        blocks.append({name.strip(): value.strip() for name, _, value in pairs})
    return blocks


def _quota_cores(quota: Path) -> int | None:
    if not quota.is_file():
        return None
    given, _, period = quota.read_text(encoding="utf-8").strip().partition(" ")
    if not (given.isdigit() and period.isdigit() and int(period)):
        return None
    return max(1, round(int(given) / int(period)))
