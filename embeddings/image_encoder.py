"""The image encoder: a vision transformer, behind convolutions where it is small and trained here,
behind plain patches where a checkpoint says so.

Shape letters: B rows, I image tokens, C image width, S pixels a side, G patches a side, N channels.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from embeddings.transformer import Activation, TransformerLayer, activate, attention

STEM_CHANNELS = 32
"""Channels after the first halving of the image; each further halving doubles them."""

GROUP_CHANNELS = 16
"""Channels that the norms of a residual block treat together."""


class ImageShape(BaseModel):
    """Everything about a vision transformer but its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pixels: int
    """Side of the square image."""
    patch: int
    """Side of the square that one token stands for; divides ``pixels``, and is a power of two
    behind the convolution stem."""
    width: int
    layers: int
    heads: int
    feed_forward: int | None = None
    """Hidden units of each layer; None is four times the width."""
    stem: Literal["convolutions", "patches"] = "convolutions"
    """How pixels become tokens: by strided 3x3 convolutions, or by one linear map of each patch."""
    stem_blocks: tuple[int, ...] = ()
    """Residual blocks after each halving of the convolution stem, a number a halving; empty is
    none."""
    class_token: bool = False
    """A learned token stands before the patches."""
    input_norm: bool = False
    """Tokens are normalised before the first layer (CLIP)."""
    pool: Literal["mean", "first", "attention"] = "mean"
    """Read-out: mean over tokens, the class token, or a learned query that attends (SigLIP)."""
    activation: Activation = "gelu"
    norm_epsilon: float = 1e-5
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Of red, green and blue in [0, 1]; subtracted before the first weight."""
    pixel_std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    """Divides what is left. The defaults are what ``scale_pixels`` gives."""

    @property
    def side(self) -> int:
        """Patches a side, G."""
        return self.pixels // self.patch

    @property
    def tokens(self) -> int:
        """Image tokens, I."""
        return self.side**2 + self.class_token


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside an identity, each after its norm and GELU (He et al. 2016,
    arXiv:1603.05027). It starts as the identity, so a deeper stem trains from the first step."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = channels // GROUP_CHANNELS
        self.norms = nn.ModuleList(nn.GroupNorm(groups, channels) for _ in range(2))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)
        )

    def forward(self, x_BNSS: Tensor) -> Tensor:
        out_BNSS = x_BNSS
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            out_BNSS = convolution(F.gelu(norm(out_BNSS)))
        return x_BNSS + out_BNSS


class AttentionPool(nn.Module):
    """SigLIP's read-out: one learned query attends to all tokens, then a feed-forward half."""

    def __init__(self, shape: ImageShape) -> None:
        super().__init__()
        width, hidden = shape.width, shape.feed_forward or 4 * shape.width
        self.heads = shape.heads
        self.activation: Activation = shape.activation
        self.probe_C = nn.Parameter(torch.zeros(width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=shape.norm_epsilon)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, token_BIC: Tensor) -> Tensor:
        width, weight, bias = token_BIC.shape[-1], self.qkv.weight, self.qkv.bias
        q_1C = F.linear(self.probe_C[None].to(token_BIC.dtype), weight[:width], bias[:width])
        k, v = F.linear(token_BIC, weight[width:], bias[width:]).chunk(2, dim=-1)
        q_B1C = q_1C.expand(len(token_BIC), 1, width)
        x_BC = self.out(attention(q_B1C, k, v, self.heads))[:, 0]
        return x_BC + self.down(activate(self.up(self.norm(x_BC)), self.activation))


class ImageEncoder(nn.Module):
    """A vision transformer, runnable in parts so that frozen layers can be cached.

    ``forward`` is ``finish(run(embed(pixel), first=0, last=layers))``.

    On two cores the number of steps decides, so the cheap network wins. Image-text contrast with
    frozen text on a world of 3,000 products, one seed each, held-out Recall@10 among 400: stem
    and one layer of width 128 .72 (30 processor-seconds, 560 steps), the same with width 192 .70,
    stem and two layers of width 192 .42; plain patches with three layers of width 128 .46 and
    with four of width 192 .25 (35 seconds, 438 and 200 steps). The stem was not tried against
    plain patches at equal depth; that early convolutions help is Xiao et al. 2021,
    arXiv:2106.14881.

    Raises:
        ValueError: If the patch does not fit the image, the heads the width, or the parts each
            other.
    """

    scale_3: Tensor | None
    shift_3: Tensor | None

    def __init__(self, shape: ImageShape) -> None:
        super().__init__()
        _refuse_misfits(shape)
        self.shape = shape
        scale_3, shift_3 = _pixel_step(shape)
        self.register_buffer("scale_3", scale_3, persistent=False)
        self.register_buffer("shift_3", shift_3, persistent=False)
        self.stem, self.stem_norms = nn.ModuleList(), nn.ModuleList()
        inputs = 3 * shape.patch**2
        if shape.stem == "convolutions":
            halvings = shape.patch.bit_length() - 1
            channels = [3, *(STEM_CHANNELS * 2**depth for depth in range(halvings))]
            self.stem.extend(
                nn.Conv2d(narrow, wide, 3, stride=2, padding=1)
                for narrow, wide in itertools.pairwise(channels)
            )
            # One group, so no statistics over the batch that a momentum copy would have to follow.
            self.stem_norms.extend(nn.GroupNorm(1, wide) for wide in channels[1:])
            inputs = channels[-1]
            self.stem_blocks = nn.ModuleList(
                nn.Sequential(*(ResidualBlock(wide) for _ in range(blocks)))
                for wide, blocks in zip(
                    channels[1:], shape.stem_blocks or (0,) * halvings, strict=True
                )
            )
        self.patches = nn.Linear(inputs, shape.width)
        self.class_C = nn.Parameter(torch.zeros(shape.width)) if shape.class_token else None
        self.positions = nn.Parameter(torch.zeros(shape.tokens, shape.width))
        epsilon = shape.norm_epsilon
        self.input_norm = nn.LayerNorm(shape.width, eps=epsilon) if shape.input_norm else None
        self.layers = nn.ModuleList(
            TransformerLayer(
                shape.width,
                shape.heads,
                shape.feed_forward or 4 * shape.width,
                norm="pre",
                activation=shape.activation,
                epsilon=epsilon,
            )
            for _ in range(shape.layers)
        )
        self.norm = nn.LayerNorm(shape.width, eps=epsilon)
        self.attention_pool = AttentionPool(shape) if shape.pool == "attention" else None

    def embed(self, pixel_BSS3: Tensor) -> Tensor:
        """Images as ``scale_pixels`` gives them to the input of layer 0, (B, I, C).

        Squares of another size are read with positions in between: training may begin with small
        ones.
        """
        shape, pixels = self.shape, pixel_BSS3.shape[1]
        if pixel_BSS3.shape[1:] != (pixels, pixels, 3) or pixels % shape.patch:
            raise ValueError(
                f"images have shape {tuple(pixel_BSS3.shape[1:])}, but the image encoder reads "
                f"({shape.pixels}, {shape.pixels}, 3), or other squares of a multiple of "
                f"{shape.patch} pixels"
            )
        if self.scale_3 is not None and self.shift_3 is not None:
            pixel_BSS3 = pixel_BSS3 * self.scale_3 + self.shift_3
        if shape.stem == "convolutions":
            # The permuted view keeps channels last in memory, and so do the convolutions.
            x_BNSS = pixel_BSS3.permute(0, 3, 1, 2)
            for convolution, norm, blocks in zip(
                self.stem, self.stem_norms, self.stem_blocks, strict=True
            ):
                x_BNSS = blocks(F.gelu(norm(convolution(x_BNSS))))
            patch_BIN = x_BNSS.flatten(2).transpose(1, 2)
        else:
            side, patch = pixels // shape.patch, shape.patch
            # A convolution with stride equal to its size is a linear map of each patch; written
            # like this it takes about half the time on a processor.
            grid_BGPGP3 = pixel_BSS3.reshape(-1, side, patch, side, patch, 3)
            patch_BIN = grid_BGPGP3.transpose(2, 3).reshape(-1, side * side, 3 * patch * patch)
        x_BIC = self.patches(patch_BIN)
        if self.class_C is not None:
            class_B1C = self.class_C.to(x_BIC.dtype).expand(len(x_BIC), 1, -1)
            x_BIC = torch.cat([class_B1C, x_BIC], dim=1)
        x_BIC = x_BIC + resized_positions(
            self.positions, pixels // shape.patch, int(shape.class_token)
        )
        return x_BIC if self.input_norm is None else self.input_norm(x_BIC)

    def run(self, x_BIC: Tensor, *, first: int, last: int) -> Tensor:
        """Apply the layers ``first`` to ``last - 1``."""
        for layer in self.layers[first:last]:
            x_BIC = layer(x_BIC)
        return x_BIC

    def finish(self, x_BIC: Tensor) -> Tensor:
        """States after the last layer to tokens, (B, I, C)."""
        return self.norm(x_BIC)

    def forward(self, pixel_BSS3: Tensor) -> Tensor:
        """Images as ``scale_pixels`` gives them to tokens, (B, I, C)."""
        return self.finish(self.run(self.embed(pixel_BSS3), first=0, last=len(self.layers)))

    def pool(self, token_BIC: Tensor) -> Tensor:
        """Tokens to one vector an image, (B, C)."""
        if self.attention_pool is not None:
            return self.attention_pool(token_BIC)
        return token_BIC.mean(1) if self.shape.pool == "mean" else token_BIC[:, 0]


def _pixel_step(shape: ImageShape) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Factor and summand from the scale of ``scale_pixels`` to the encoder's; None if equal."""
    fields = ImageShape.model_fields
    mean, std = fields["pixel_mean"].default, fields["pixel_std"].default
    if (shape.pixel_mean, shape.pixel_std) == (mean, std):
        return None, None
    mean_3, std_3, own_mean_3, own_std_3 = (
        torch.tensor(part) for part in (mean, std, shape.pixel_mean, shape.pixel_std)
    )
    return std_3 / own_std_3, (mean_3 - own_mean_3) / own_std_3


def resized_positions(position_IC: Tensor, side: int, extra: int) -> Tensor:
    """A square table of positions for another number of patches, bicubic.

    Args:
        position_IC: One row a token: ``extra`` that stand apart, then the patches by rows.
        side: Patches a side wanted, G.
        extra: Rows kept as they are.
    """
    apart_XC, grid_IC = position_IC[:extra], position_IC[extra:]
    own_side = round(len(grid_IC) ** 0.5)
    if own_side == side:
        return position_IC
    grid_1CGG = grid_IC.unflatten(0, (own_side, own_side)).permute(2, 0, 1)[None]
    wanted_1CGG = F.interpolate(grid_1CGG, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([apart_XC, wanted_1CGG[0].flatten(1).T])


def _refuse_misfits(shape: ImageShape) -> None:
    convolutions = shape.stem == "convolutions"
    power_of_two = shape.patch >= 2 and shape.patch & (shape.patch - 1) == 0
    if shape.patch < 1 or shape.pixels % shape.patch or (convolutions and not power_of_two):
        raise ValueError(
            f"patch={shape.patch} must be a{' power of two' if convolutions else ' number'} that "
            f"divides image pixels={shape.pixels}; try "
            f"{'8' if convolutions else f'pixels={max(1, shape.side) * shape.patch}'}"
        )
    if shape.stem_blocks and not convolutions:
        raise ValueError(
            f"stem_blocks={shape.stem_blocks} needs stem='convolutions'; {shape.stem!r} has none"
        )
    halvings = shape.patch.bit_length() - 1
    if shape.stem_blocks and (len(shape.stem_blocks) != halvings or min(shape.stem_blocks) < 0):
        raise ValueError(
            f"stem_blocks={shape.stem_blocks} must hold a count of 0 or more for each of the "
            f"{halvings} halvings that patch={shape.patch} means"
        )
    if shape.pool == "first" and not shape.class_token:
        raise ValueError("pool='first' reads the class token, but class_token=False")
