"""bfloat16 where the processor has it and the encoder stays accurate, float32 elsewhere.

The choice looks at processor flags and at accuracy, never at a stopwatch: a timing that comes out
differently would make the same seed give other numbers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from embeddings.encoders import TextEncoder, mean_pool

MIN_COSINE = 0.999
"""bfloat16 is refused if any probe text's vector turns further than this from float32."""

FAST_FLAGS = ("avx512_bf16", "amx_bf16")
"""Processors without one of these emulate bfloat16, many times slower than float32."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The arithmetic of the encoders, and why."""

    dtype: torch.dtype
    reason: str

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Run a block in this precision."""
        return torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16
        )


FLOAT32 = Precision(dtype=torch.float32, reason="asked for")


def choose_precision(encoder: TextEncoder, device: torch.device) -> Precision:
    """Pick bfloat16 if the hardware has it and the encoder's vectors stay where they were."""
    if device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(dtype=torch.float32, reason="this GPU has no bfloat16")
    else:
        flags = processor_flags()
        if not any(flag in flags for flag in FAST_FLAGS):
            return Precision(dtype=torch.float32, reason="this processor has no bfloat16")
    generator = torch.Generator().manual_seed(0)
    id_BL = torch.randint(encoder.shape.vocabulary, (16, 12), generator=generator).to(device)
    attend_BL = torch.ones_like(id_BL, dtype=torch.bool)
    with torch.no_grad():
        exact_BD = mean_pool(encoder(id_BL, attend_BL), attend_BL)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            rough_BD = mean_pool(encoder(id_BL, attend_BL), attend_BL).float()
    worst = float(F.cosine_similarity(exact_BD, rough_BD).min())
    if not worst >= MIN_COSINE:
        return Precision(
            dtype=torch.float32, reason=f"bfloat16 vectors have cosine {worst:.5f} to float32"
        )
    return Precision(dtype=torch.bfloat16, reason=f"bfloat16 keeps cosine {worst:.5f} to float32")


def processor_flags() -> frozenset[str]:
    """The instruction sets the processor says it has; empty where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return frozenset()
    for line in cpuinfo.read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()
