"""Checkpoints that ``save_pretrained`` wrote, read exactly into our encoders.

Text encoders are read from BERT, BLIP, CLIP and SigLIP, image encoders from ViT, CLIP, SigLIP and
BLIP; a checkpoint of CLIP, SigLIP or BLIP as a whole gives both. Only safetensors are opened.

Shape letters: I image tokens, C image width, G patches a side, X rows that stand apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from embeddings.checkpoint_families import (
    IMAGE_FAMILIES,
    ONLY,
    TEXT_FAMILIES,
    WHOLE,
)
from embeddings.encoders import TextEncoder, TextShape
from embeddings.image_encoder import ImageEncoder, ImageShape, resized_positions
from embeddings.transformer import Activation

Side = Literal["text", "image"]

WEIGHTS = "model.safetensors"

ENDS = ("weight", "bias")


class Checkpoint:
    """One encoder of a checkpoint folder: its family, its settings, its tensors.

    Args:
        folder: With config.json and model.safetensors.
        side: Which encoder.

    Raises:
        ValueError: If the checkpoint has no such encoder of a family that is read here.
    """

    def __init__(self, folder: Path, side: Side) -> None:
        self.folder = folder
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.kind = config.get("model_type", "bert")
        name, given = self.kind, config
        if self.kind in WHOLE:
            key = "text" if side == "text" else "vision"
            name = f"{self.kind}_{key}_model"
            # CLIP checkpoints of 2022 carry both; the former is what they were trained with.
            given = config.get(f"{key}_config_dict") or config.get(f"{key}_config") or {}
        families = TEXT_FAMILIES if side == "text" else IMAGE_FAMILIES
        if name not in families:
            raise ValueError(
                f"{folder}/config.json has model_type={self.kind!r}, which has no {side} encoder "
                f"that can be read; the {side} encoder reads {', '.join(families)}, or "
                f"{', '.join(WHOLE)} as a whole"
            )
        self.family = families[name]
        self.settings: dict[str, Any] = {**self.family.defaults, **given}
        allowed: dict[str, tuple[Any, ...]] = {key: (wanted,) for key, wanted in ONLY.items()}
        allowed["hidden_act"] = get_args(Activation)
        if name == "bert":
            allowed["is_decoder"] = (False,)
        for key, values in allowed.items():
            if self.settings.get(key, values[0]) not in values:
                raise ValueError(
                    f"{folder}/config.json has {key}={self.settings[key]!r}; the {side} encoder "
                    f"reads checkpoints with {' or '.join(map(repr, values))} only"
                )

    def square(self, key: str) -> int:
        """An image or patch size, in pixels a side."""
        value = self.settings[key]
        sides = {value} if isinstance(value, int) else set(value)
        if len(sides) != 1:
            raise ValueError(f"{self.folder}/config.json has {key}={value}; it must be square")
        return sides.pop()

    def state(self) -> dict[str, Tensor]:
        """The tensors of the encoder under our names, in float32.

        Raises:
            ValueError: If a tensor is missing or the file cannot be read.
        """
        family = self.family
        wanted: dict[str, tuple[str, ...]] = {
            ours: (theirs,) for ours, theirs in family.tables.items()
        }
        for ours, theirs in family.parts.items():
            for end in ENDS:
                if end == "bias" and ours in family.without_bias:
                    continue
                wanted[f"{ours}.{end}"] = (f"{theirs}.{end}",)
        for depth in range(self.settings["num_hidden_layers"]):
            for ours, parts in family.layer.items():
                for end in ENDS:
                    wanted[f"layers.{depth}.{ours}.{end}"] = tuple(
                        f"{family.layers}.{depth}.{part}.{end}" for part in parts
                    )
        return self.tensors(wanted)

    def tensors(self, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
        """Named tensors, each made of one or more of the file on top of each other."""
        anchor = next(iter(self.family.tables.values()))
        with opened(self.folder) as file:
            names = set(file.keys())
            prefixes = self.family.prefixes
            prefix = next((p for p in prefixes if p + anchor in names), prefixes[0])
            missing = [
                prefix + n for parts in wanted.values() for n in parts if prefix + n not in names
            ]
            if missing:
                raise ValueError(
                    f"{self.folder}/{WEIGHTS} has no tensor {missing[0]!r} ({len(missing)} missing "
                    f"in all), but config.json says model_type={self.kind!r}; do the two files "
                    "belong together?"
                )
            return {
                ours: torch.cat([file.get_tensor(prefix + name).float() for name in parts])
                for ours, parts in wanted.items()
            }


def read_text_shape(folder: Path) -> TextShape:
    """Read the sizes of a text encoder from a checkpoint's config.json.

    Raises:
        ValueError: If there is no text encoder in it that can be read.
    """
    checkpoint = Checkpoint(folder, "text")
    settings = checkpoint.settings
    shape: dict[str, Any] = dict(checkpoint.family.shape)
    if "readout.head" in checkpoint.family.parts:
        shape["head"] = settings.get("projection_size") or settings["hidden_size"]
        shape["pad_token"] = settings["pad_token_id"]
    if _read_by_first_token(folder):
        shape["pool"] = "first"
    return TextShape(
        vocabulary=settings["vocab_size"],
        width=settings["hidden_size"],
        layers=settings["num_hidden_layers"],
        heads=settings["num_attention_heads"],
        feed_forward=settings["intermediate_size"],
        positions=settings["max_position_embeddings"],
        norm_epsilon=settings["layer_norm_eps"],
        activation=settings["hidden_act"],
        **shape,
    )


def read_image_shape(folder: Path, pixels: int | None = None) -> ImageShape:
    """Read the sizes of an image encoder from a checkpoint's config.json.

    Args:
        folder: The checkpoint.
        pixels: Side of the images it is to read; the checkpoint's own if None.

    Raises:
        ValueError: If there is no image encoder in it that can be read.
    """
    checkpoint = Checkpoint(folder, "image")
    settings = checkpoint.settings
    shape: dict[str, Any] = {**checkpoint.family.shape, **_read_pixel_scale(folder)}
    return ImageShape(
        pixels=pixels or checkpoint.square("image_size"),
        patch=checkpoint.square("patch_size"),
        width=settings["hidden_size"],
        layers=settings["num_hidden_layers"],
        heads=settings["num_attention_heads"],
        feed_forward=settings["intermediate_size"],
        stem="patches",
        activation=settings["hidden_act"],
        norm_epsilon=settings["layer_norm_eps"],
        **shape,
    )


@torch.no_grad()
def load_text_(encoder: TextEncoder, folder: Path) -> None:
    """Fill a text encoder from a checkpoint, exactly.

    BERT's embedding of token type 0 is added into the position table: with one segment the sum is
    the same.

    Raises:
        ValueError: If a tensor is missing or has another shape.
    """
    checkpoint = Checkpoint(folder, "text")
    state = checkpoint.state()
    if checkpoint.family is TEXT_FAMILIES["bert"]:
        segment = checkpoint.tensors({"0": ("embeddings.token_type_embeddings.weight",)})["0"]
        state["positions.weight"] = state["positions.weight"] + segment[0]
    fill_(encoder, state, folder)


@torch.no_grad()
def load_image_(encoder: ImageEncoder, folder: Path) -> None:
    """Fill an image encoder from a checkpoint, exactly.

    Where the encoder reads images of another size, the table of positions is interpolated as by
    Hugging Face's ``interpolate_pos_encoding``.

    Raises:
        ValueError: If a tensor is missing or has another shape.
    """
    state = Checkpoint(folder, "image").state()
    # A patch lies in memory by row, column and colour, a convolution's weight by colour first.
    state["patches.weight"] = state["patches.weight"].permute(0, 2, 3, 1).flatten(1)
    state.setdefault("patches.bias", torch.zeros(len(state["patches.weight"])))
    for name in ("class_C", "attention_pool.probe_C"):
        if name in state:
            state[name] = state[name].flatten()
    shape = encoder.shape
    state["positions"] = resized_positions(
        state["positions"].flatten(0, -2), shape.side, int(shape.class_token)
    )
    fill_(encoder, state, folder)


def fill_(module: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    """Give a module all of its tensors.

    Raises:
        ValueError: If one has another shape.
    """
    own = module.state_dict()
    for name, tensor in state.items():
        if own[name].shape != tensor.shape:
            raise ValueError(
                f"{folder}: tensor for {name} has shape {tuple(tensor.shape)}, but config.json "
                f"says {tuple(own[name].shape)}"
            )
    module.load_state_dict(state)


def opened(folder: Path) -> Any:
    """Open a checkpoint's tensors without reading them.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    try:
        return safe_open(folder / WEIGHTS, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{folder}/{WEIGHTS} cannot be read: {error}; it may be cut short, or a pointer of "
            "Git LFS: fetch it again"
        ) from error


def _read_by_first_token(folder: Path) -> bool:
    """Whether sentence-transformers says that this checkpoint is read at [CLS]."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return False
    return bool(json.loads(path.read_text(encoding="utf-8")).get("pooling_mode_cls_token"))


def _read_pixel_scale(folder: Path) -> dict[str, tuple[float, ...]]:
    """Mean and deviation of the pixels, if the checkpoint brings its preprocessing."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}
    given = json.loads(path.read_text(encoding="utf-8"))
    if not given.get("do_normalize", True):
        return {"pixel_mean": (0.0, 0.0, 0.0), "pixel_std": (1.0, 1.0, 1.0)}
    return {
        ours: tuple(given[theirs])
        for ours, theirs in (("pixel_mean", "image_mean"), ("pixel_std", "image_std"))
        if theirs in given
    }
