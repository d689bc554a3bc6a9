"""bfloat16 where it is fast and the encoder stays accurate, float32 elsewhere.

What is fast is looked up in the machine's record (``hardware``), never timed anew, because another
reading of a stopwatch would make the same seed give other numbers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from embeddings.encoders import TextEncoder
from embeddings.hardware import HardwareChoice, hardware_choice

MIN_COSINE = 0.999
"""bfloat16 is refused if any probe text's vector turns further than this from float32."""


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


def choose_precision(
    encoder: TextEncoder, device: torch.device, *, hardware: HardwareChoice | None = None
) -> Precision:
    """Pick bfloat16 if it is fast here and the encoder's vectors stay where they were.

    Args:
        encoder: What has to stay accurate.
        device: Where it runs. A GPU that has bfloat16 is fast in it.
        hardware: What a run recorded, or ``hardware_choice()`` if None; unused on a GPU.
    """
    if device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(dtype=torch.float32, reason="this GPU has no bfloat16")
    else:
        hardware = hardware or hardware_choice()
        if hardware.dtype == "float32":
            return Precision(dtype=torch.float32, reason=hardware.reasons[1])
    generator = torch.Generator().manual_seed(0)
    id_BL = torch.randint(encoder.shape.vocabulary, (16, 12), generator=generator).to(device)
    attend_BL = torch.ones_like(id_BL, dtype=torch.bool)
    with torch.no_grad():
        exact_BD = encoder.pool(encoder(id_BL, attend_BL), attend_BL)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            rough_BD = encoder.pool(encoder(id_BL, attend_BL), attend_BL).float()
    worst = float(F.cosine_similarity(exact_BD, rough_BD).min())
    if not worst >= MIN_COSINE:
        return Precision(
            dtype=torch.float32, reason=f"bfloat16 vectors have cosine {worst:.5f} to float32"
        )
    return Precision(dtype=torch.bfloat16, reason=f"bfloat16 keeps cosine {worst:.5f} to float32")
