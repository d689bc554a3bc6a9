"""What a checkpoint of both encoders holds between them: cross-attention, projections, ITM head.

Shape letter: D text width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from embeddings.checkpoint_families import CROSS_ATTENTION
from embeddings.encoders import MultimodalEncoder, TextEncoder
from embeddings.pretrained import ENDS, Checkpoint, fill_, opened

_HEADS = (
    "text_projection",
    "visual_projection",
    "text_proj",
    "vision_proj",
    "itm_head",
    "logit_scale",
)


def has_cross_attention(folder: Path) -> bool:
    """Whether a checkpoint holds BLIP's cross-attention from text to image."""
    with opened(folder) as file:
        return any(".crossattention." in name for name in list(file.keys()))


@torch.no_grad()
def load_fusion_(
    encoder: MultimodalEncoder, text: TextEncoder, folder: Path, enc_for_cls: tuple[int, int] | None
) -> None:
    """Fill the multimodal encoder from a BLIP checkpoint, exactly.

    Args:
        encoder: With post-norm cross-attention in some or all of the last layers.
        text: Already filled from the same checkpoint.
        folder: The checkpoint.
        enc_for_cls: Vocabulary rows of [ENC] and of the [CLS] that it stands in for, where the
            multimodal encoder starts at layer 0; None leaves the offset between them at zero.

    Raises:
        ValueError: If a tensor is missing or has another shape.
    """
    checkpoint = Checkpoint(folder, "text")
    for depth, cross in enumerate(encoder.cross, start=len(text.layers) - len(encoder.cross)):
        layer = f"{checkpoint.family.layers}.{depth}"
        wanted = {
            f"{ours}.{end}": tuple(f"{layer}.{part}.{end}" for part in parts)
            for ours, parts in CROSS_ATTENTION.items()
            for end in ENDS
        }
        fill_(cross, checkpoint.tensors(wanted), folder)
    if enc_for_cls is not None:
        # [CLS] always stands at position 0, so from one to the other it is a constant step.
        enc_1D, cls_1D = text.embed(torch.tensor(enc_for_cls)[:, None])
        encoder.enc_D.copy_((enc_1D - cls_1D)[0])


@dataclass(frozen=True, kw_only=True)
class Projections:
    """What a whole checkpoint puts on its two encoders."""

    text: nn.Linear
    """From a text's vector to the space that both share."""
    image: nn.Linear
    temperature: float | None
    """Of the contrast it was trained with, if the checkpoint tells."""
    itm_head: nn.Linear | None
    """BLIP's judgement of a pair at [ENC]: two logits, the second for a match."""


def read_projections(folder: Path) -> Projections | None:
    """Read the projections of a whole checkpoint; None if it has none.

    SigLIP's encoders meet without a projection, so theirs is the identity.
    """
    with opened(folder) as file:
        tensors = {
            name: file.get_tensor(name).float()
            for name in list(file.keys())
            if name.split(".")[0] in _HEADS or name == "text_model.head.weight"
        }
    temperature = None
    if "logit_scale" in tensors:
        temperature = float(tensors["logit_scale"].neg().exp())
    for text, image in (("text_projection", "visual_projection"), ("text_proj", "vision_proj")):
        if f"{text}.weight" in tensors and f"{image}.weight" in tensors:
            return Projections(
                text=_linear(tensors, text),
                image=_linear(tensors, image),
                temperature=temperature,
                itm_head=_linear(tensors, "itm_head") if "itm_head.weight" in tensors else None,
            )
    if "text_model.head.weight" not in tensors:
        return None
    identity = {"one.weight": torch.eye(len(tensors["text_model.head.weight"]))}
    return Projections(
        text=_linear(identity, "one"),
        image=_linear(identity, "one"),
        temperature=temperature,
        itm_head=None,
    )


@torch.no_grad()
def _linear(tensors: Mapping[str, Tensor], name: str) -> nn.Linear:
    weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    out = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    out.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return out
