"""The three encoders of DashCLIP: text (BERT), image (a small ViT), and both together.

The multimodal encoder owns no transformer of its own. It runs the text encoder's last layers with
cross-attention to the image tokens put between self-attention and feed-forward (the dotted line
of the paper's Figure 1: all other weights are shared), and is read at its first token, [ENC].

Shape letters: B rows, L text tokens, D text width, I image tokens, C image width, E embedding of
one attention head, S pixels a side.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file
from torch import Tensor, nn

STEM_CHANNELS = 32
"""Channels after the first halving of the image; each further halving doubles them."""

SHORT_TOKENS = 64
"""Up to here attention on a processor is written out."""


class TextShape(BaseModel):
    """Sizes of a BERT text encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: int
    width: int
    layers: int
    heads: int
    feed_forward: int
    positions: int
    norm_epsilon: float = 1e-12


class ImageShape(BaseModel):
    """Sizes of the vision transformer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pixels: int
    """Side of the square image."""
    patch: int
    """Side of the square that one token stands for; a power of two that divides ``pixels``."""
    width: int
    layers: int
    heads: int


def attention(
    q_BLD: Tensor, k_BID: Tensor, v_BID: Tensor, heads: int, attend_BI: Tensor | None = None
) -> Tensor:
    """Multi-head attention of L tokens to I tokens, those where ``attend_BI`` is False left out.

    Returns:
        Shape (B, L, D).
    """
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q_BLD, k_BID, v_BID))
    mask = None if attend_BI is None else attend_BI[:, None, None, :]
    if q.is_cuda or k.shape[2] > SHORT_TOKENS:
        mixed_BHLE = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    else:
        # PyTorch's fused kernel for processors is made for long sequences: forward and backward
        # of 96 x 12 heads x 18 tokens cost it 72 ms in bfloat16, and these lines 12 ms.
        score_BHLI = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            score_BHLI = score_BHLI.masked_fill(~mask, float("-inf"))
        mixed_BHLE = score_BHLI.softmax(-1) @ v
    return mixed_BHLE.transpose(1, 2).flatten(2)


class TextLayer(nn.Module):
    """One post-norm BERT layer; query, key and value share one matrix product."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.attention_out = nn.Linear(shape.width, shape.width)
        self.attention_norm = nn.LayerNorm(shape.width, eps=shape.norm_epsilon)
        self.up = nn.Linear(shape.width, shape.feed_forward)
        self.down = nn.Linear(shape.feed_forward, shape.width)
        self.output_norm = nn.LayerNorm(shape.width, eps=shape.norm_epsilon)

    def attend(self, x_BLD: Tensor, attend_BL: Tensor, *, first_only: bool = False) -> Tensor:
        """Self-attention with its residual; ``first_only`` gives the first token alone."""
        width = x_BLD.shape[-1]
        if first_only:
            # The last layer before a read-out at token 0 needs keys of all tokens but only one
            # query, which spares three quarters of the layer.
            weight, bias = self.qkv.weight, self.qkv.bias
            kept_BLD = x_BLD[:, :1]
            q = F.linear(kept_BLD, weight[:width], bias[:width])
            k, v = F.linear(x_BLD, weight[width:], bias[width:]).chunk(2, dim=-1)
        else:
            kept_BLD = x_BLD
            q, k, v = self.qkv(x_BLD).chunk(3, dim=-1)
        mixed = attention(q, k, v, self.heads, attend_BL)
        return self.attention_norm(kept_BLD + self.attention_out(mixed))

    def feed(self, x_BLD: Tensor) -> Tensor:
        """The feed-forward half with its residual."""
        return self.output_norm(x_BLD + self.down(F.gelu(self.up(x_BLD))))

    def forward(self, x_BLD: Tensor, attend_BL: Tensor) -> Tensor:
        return self.feed(self.attend(x_BLD, attend_BL))


class TextEncoder(nn.Module):
    """BERT without dropout, runnable in parts so that frozen layers can be cached."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.shape = shape
        self.words = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.positions, shape.width)
        self.norm = nn.LayerNorm(shape.width, eps=shape.norm_epsilon)
        self.layers = nn.ModuleList(TextLayer(shape) for _ in range(shape.layers))

    def embed(self, id_BL: Tensor) -> Tensor:
        """Token ids to the input of layer 0, (B, L, D)."""
        position_L = torch.arange(id_BL.shape[1], device=id_BL.device)
        return self.norm(self.words(id_BL) + self.positions(position_L))

    def run(self, x_BLD: Tensor, attend_BL: Tensor, *, first: int, last: int) -> Tensor:
        """Apply the layers ``first`` to ``last - 1``."""
        for layer in self.layers[first:last]:
            x_BLD = layer(x_BLD, attend_BL)
        return x_BLD

    def forward(self, id_BL: Tensor, attend_BL: Tensor) -> Tensor:
        """Token ids to the states of the last layer, (B, L, D)."""
        return self.run(self.embed(id_BL), attend_BL, first=0, last=len(self.layers))


def mean_pool(x_BLD: Tensor, attend_BL: Tensor) -> Tensor:
    """Mean over real tokens, (B, D): the read-out MiniLM was trained with."""
    weight_BL1 = attend_BL[:, :, None].to(x_BLD.dtype)
    return (x_BLD * weight_BL1).sum(1) / weight_BL1.sum(1)


class ImageLayer(nn.Module):
    """One pre-norm transformer layer over image patches."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_BIC: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x_BIC)).chunk(3, dim=-1)
        x_BIC = x_BIC + self.attention_out(attention(q, k, v, self.heads))
        return x_BIC + self.down(F.gelu(self.up(self.feed_norm(x_BIC))))


class ImageEncoder(nn.Module):
    """A small vision transformer behind a convolutional stem.

    On two cores the number of steps decides, so the cheap network wins. Image-text contrast with
    frozen text on a world of 3,000 products, one seed each, held-out Recall@10 among 400: stem
    and one layer of width 128 .72 (30 processor-seconds, 560 steps), the same with width 192 .70,
    stem and two layers of width 192 .42; plain patches with three layers of width 128 .46 and
    with four of width 192 .25 (35 seconds, 438 and 200 steps). The stem was not tried against
    plain patches at equal depth; that early convolutions help is Xiao et al. 2021,
    arXiv:2106.14881.
    """

    def __init__(self, shape: ImageShape) -> None:
        super().__init__()
        halvings = shape.patch.bit_length() - 1
        if shape.patch != 2**halvings or halvings < 1 or shape.pixels % shape.patch:
            raise ValueError(
                f"patch={shape.patch} must be a power of two that divides image "
                f"pixels={shape.pixels}; try 8"
            )
        self.shape = shape
        channels = [3, *(STEM_CHANNELS * 2**depth for depth in range(halvings))]
        self.stem = nn.ModuleList(
            nn.Conv2d(narrow, wide, 3, stride=2, padding=1)
            for narrow, wide in itertools.pairwise(channels)
        )
        # One group, so no statistics over the batch that a momentum copy would have to follow.
        self.stem_norms = nn.ModuleList(nn.GroupNorm(1, wide) for wide in channels[1:])
        self.patches = nn.Linear(channels[-1], shape.width)
        self.positions = nn.Parameter(torch.zeros((shape.pixels // shape.patch) ** 2, shape.width))
        self.layers = nn.ModuleList(
            ImageLayer(shape.width, shape.heads) for _ in range(shape.layers)
        )
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, pixel_BSS3: Tensor) -> Tensor:
        """Images as floats around zero, channels last, to tokens (B, I, C)."""
        x = pixel_BSS3.permute(0, 3, 1, 2)
        for convolution, norm in zip(self.stem, self.stem_norms, strict=True):
            x = F.gelu(norm(convolution(x)))
        x_BIC = self.patches(x.flatten(2).transpose(1, 2)) + self.positions
        for layer in self.layers:
            x_BIC = layer(x_BIC)
        return self.norm(x_BIC)


class CrossAttention(nn.Module):
    """Text tokens look at image tokens; silent until trained.

    Pre-norm with a zero output, unlike BERT's post-norm: an untrained multimodal encoder then
    equals the text encoder, and one without an image always does.
    """

    def __init__(self, text_width: int, image_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(text_width)
        self.query = nn.Linear(text_width, text_width)
        self.keys_values = nn.Linear(image_width, 2 * text_width)
        self.out = nn.Linear(text_width, text_width)

    def forward(self, x_BLD: Tensor, keys_values_BI2D: Tensor) -> Tensor:
        k, v = keys_values_BI2D.chunk(2, dim=-1)
        q = self.query(self.norm(x_BLD))
        return x_BLD + self.out(attention(q, k, v, self.heads))


class MultimodalEncoder(nn.Module):
    """Cross-attention and the [ENC] token; the text encoder lends everything else.

    [ENC] stands where [CLS] stood. It enters where training begins: below that depth the frozen
    layers see [CLS], and their state there plus ``enc_D`` (zero at first) is what the layers
    above read. With no frozen layer this is an embedding of its own, initialised from [CLS].
    """

    def __init__(self, text: TextShape, image: ImageShape, fusion_layers: int) -> None:
        super().__init__()
        self.enc_D = nn.Parameter(torch.zeros(text.width))
        self.cross = nn.ModuleList(
            CrossAttention(text.width, image.width, text.heads) for _ in range(fusion_layers)
        )

    def keys_values(self, image_BIC: Tensor) -> list[Tensor]:
        """Image tokens as keys and values for each fusion layer, each (B, I, 2D).

        They depend on the image alone, so mismatched pairs reuse them by row number.
        """
        return [
            cross.keys_values(image_BIC)
            for cross in self.cross
            if isinstance(cross, CrossAttention)
        ]

    def forward(
        self,
        text: TextEncoder,
        x_BLD: Tensor,
        attend_BL: Tensor,
        keys_values: list[Tensor] | None,
        *,
        first: int,
    ) -> Tensor:
        """Read a product at [ENC].

        Args:
            text: The text encoder whose layers are shared.
            x_BLD: States below layer ``first``, with [CLS] as token 0.
            attend_BL: True for real tokens.
            keys_values: From ``keys_values``, or None for products without an image.
            first: The first layer to run, at or below the first fusion layer.

        Returns:
            The state of [ENC] after the last layer, shape (B, D).
        """
        x_BLD = torch.cat([x_BLD[:, :1] + self.enc_D.to(x_BLD.dtype), x_BLD[:, 1:]], dim=1)
        last = len(text.layers)
        fusion_first = last - len(self.cross)
        for depth in range(first, last):
            layer = text.layers[depth]
            assert isinstance(layer, TextLayer)
            x_BLD = layer.attend(x_BLD, attend_BL, first_only=depth == last - 1)
            if depth >= fusion_first and keys_values is not None:
                cross = self.cross[depth - fusion_first]
                x_BLD = cross(x_BLD, keys_values[depth - fusion_first])
            x_BLD = layer.feed(x_BLD)
        return x_BLD[:, 0]


@torch.no_grad()
def initialise_(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight of an untrained module: truncated normal .02, convolutions by their
    fan-in, biases 0, norms 1."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(part.weight, std=0.02, generator=generator)
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, generator=generator)
        if isinstance(part, nn.Linear | nn.Conv2d) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.LayerNorm | nn.GroupNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
        if isinstance(part, ImageEncoder):
            nn.init.trunc_normal_(part.positions, std=0.02, generator=generator)
    for part in module.modules():
        if isinstance(part, CrossAttention):
            nn.init.zeros_(part.out.weight)


def read_text_shape(folder: Path) -> TextShape:
    """Read the sizes of a BERT checkpoint from its config.json.

    Raises:
        ValueError: If it is no BERT with absolute positions and GELU.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key, wanted in (
        ("model_type", "bert"),
        ("hidden_act", "gelu"),
        ("position_embedding_type", "absolute"),
    ):
        if config.get(key, wanted) != wanted:
            raise ValueError(
                f"{folder}/config.json has {key}={config[key]!r}; the text encoder reads "
                f"checkpoints with {wanted!r} only"
            )
    return TextShape(
        vocabulary=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        feed_forward=config["intermediate_size"],
        positions=config["max_position_embeddings"],
        norm_epsilon=config["layer_norm_eps"],
    )


@torch.no_grad()
def load_bert_(encoder: TextEncoder, folder: Path) -> None:
    """Fill a text encoder from a Hugging Face BERT checkpoint, exactly.

    The embedding of token type 0 is added into the position table: with one segment the sum is
    the same.

    Raises:
        ValueError: If a tensor is missing or has another shape.
    """
    tensors = load_file(folder / "model.safetensors")
    prefix = "bert." if "bert.embeddings.word_embeddings.weight" in tensors else ""

    def take(*names: str) -> Tensor:
        for name in names:
            if prefix + name not in tensors:
                raise ValueError(f"{folder}/model.safetensors has no tensor {prefix + name!r}")
        return torch.cat([tensors[prefix + name].float() for name in names])

    state = {
        "words.weight": take("embeddings.word_embeddings.weight"),
        "positions.weight": take("embeddings.position_embeddings.weight")
        + take("embeddings.token_type_embeddings.weight")[0],
    }
    for end in ("weight", "bias"):
        state[f"norm.{end}"] = take(f"embeddings.LayerNorm.{end}")
        for depth in range(encoder.shape.layers):
            ours, theirs = f"layers.{depth}", f"encoder.layer.{depth}"
            state |= {
                f"{ours}.qkv.{end}": take(
                    *(f"{theirs}.attention.self.{part}.{end}" for part in ("query", "key", "value"))
                ),
                f"{ours}.attention_out.{end}": take(f"{theirs}.attention.output.dense.{end}"),
                f"{ours}.attention_norm.{end}": take(f"{theirs}.attention.output.LayerNorm.{end}"),
                f"{ours}.up.{end}": take(f"{theirs}.intermediate.dense.{end}"),
                f"{ours}.down.{end}": take(f"{theirs}.output.dense.{end}"),
                f"{ours}.output_norm.{end}": take(f"{theirs}.output.LayerNorm.{end}"),
            }
    own = encoder.state_dict()
    for name, tensor in state.items():
        if own[name].shape != tensor.shape:
            raise ValueError(
                f"{folder}: tensor for {name} has shape {tuple(tensor.shape)}, but config.json "
                f"says {tuple(own[name].shape)}"
            )
    encoder.load_state_dict(state)
