"""The threads and the precision that a training run settles on, and keeps when it goes on."""

from __future__ import annotations

from typing import Any

import torch

from embeddings.encoders import TextEncoder
from embeddings.hardware import hardware_choice
from embeddings.model import DashClip
from embeddings.precision import Precision, choose_precision
from features.kept_memory import keep_freed_memory_


def settle_arithmetic_(model: DashClip, recorded: dict[str, Any] | None) -> dict[str, Any]:
    """As ``settled_arithmetic_``, for a model whose every tower computes so from here on."""
    precision, recorded = settled_arithmetic_(model.text, model.device, recorded)
    model.use_precision(precision)
    return recorded


def settled_arithmetic_(
    text: TextEncoder, device: torch.device, recorded: dict[str, Any] | None
) -> tuple[Precision, dict[str, Any]]:
    """Set threads and precision by the hardware, or as an interrupted run had them: its bits go
    on only if sums are rounded as they were.

    Args:
        text: The text encoder, which a lower precision is tried on.
        recorded: What this function returned to the interrupted run; None chooses anew.

    Returns:
        The precision, and a record that JSON holds: threads, dtype, reason, hardware.
    """
    keep_freed_memory_()
    if recorded is None:
        hardware = hardware_choice()
        precision = choose_precision(text, device, hardware=hardware)
        recorded = {
            "threads": hardware.threads,
            "dtype": str(precision.dtype).removeprefix("torch."),
            "reason": precision.reason,
            "hardware": hardware.model_dump(mode="json"),
        }
    torch.set_num_threads(recorded["threads"])
    dtype = getattr(torch, recorded["dtype"])
    return Precision(dtype=dtype, reason=recorded["reason"]), recorded
