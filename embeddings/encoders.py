"""The text encoder, and the two that share its layers: the query and the multimodal encoder.

The multimodal encoder owns no transformer of its own. It runs the text encoder's last layers with
cross-attention to the image tokens put between self-attention and feed-forward (the dotted line
of the paper's Figure 1: all other weights are shared), and is read at its token [ENC].

Shape letters: B rows, L text tokens, D text width, T width of a text's vector, I image tokens, C
image width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from embeddings.image_encoder import AttentionPool, ImageEncoder, ImageShape, ResidualBlock
from embeddings.transformer import Activation, Norm, TransformerLayer, attention

Pool = Literal["mean", "first", "last"]
"""Read-out: mean over tokens (MiniLM), the first token (BLIP), or the last one, which closes every
text (CLIP) or is padding up to the last position (SigLIP)."""


class TextShape(BaseModel):
    """Everything about a text encoder but its weights; the defaults are BERT's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: int
    width: int
    layers: int
    heads: int
    feed_forward: int
    positions: int
    norm_epsilon: float = 1e-12
    norm: Norm = "post"
    """"post" also normalises the embeddings (BERT), "pre" the last states (CLIP, SigLIP)."""
    causal: bool = False
    """A token sees only those before it (CLIP)."""
    activation: Activation = "gelu"
    pool: Pool = "mean"
    head: int = 0
    """Size of a linear map of what was read (SigLIP); 0 is none."""
    pad_token: int | None = None
    """Texts are filled to ``positions`` with this token, and it is attended to like any other
    (SigLIP); None leaves texts as long as they are."""

    @property
    def pooled_width(self) -> int:
        """Size T of a text's vector."""
        return self.head or self.width

    def layer(self) -> TransformerLayer:
        """One layer of this encoder, not initialised."""
        return TransformerLayer(
            self.width,
            self.heads,
            self.feed_forward,
            norm=self.norm,
            activation=self.activation,
            epsilon=self.norm_epsilon,
            causal=self.causal,
        )


class TextReadout(nn.Module):
    """From the states after the last layer to one vector a text."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.pool: Pool = shape.pool
        pre = shape.norm == "pre"
        self.norm = nn.LayerNorm(shape.width, eps=shape.norm_epsilon) if pre else nn.Identity()
        self.head = nn.Linear(shape.width, shape.head) if shape.head else nn.Identity()

    def forward(self, x_BLD: Tensor, attend_BL: Tensor) -> Tensor:
        """States and mask to vectors, (B, T)."""
        if self.pool == "mean":
            read_BD = mean_pool(self.norm(x_BLD), attend_BL)
        else:
            read_BD = self.norm(read_token(x_BLD, attend_BL, self.pool)[:, 0])
        return self.head(read_BD)


class TextEncoder(nn.Module):
    """A text transformer without dropout, runnable in parts so that frozen layers can be cached."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.shape = shape
        self.words = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.positions, shape.width)
        post = shape.norm == "post"
        self.norm = nn.LayerNorm(shape.width, eps=shape.norm_epsilon) if post else nn.Identity()
        self.layers = nn.ModuleList(shape.layer() for _ in range(shape.layers))
        self.readout = TextReadout(shape)

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
        """Token ids to the states after the last layer, (B, L, D), as ``pool`` takes them."""
        return self.run(self.embed(id_BL), attend_BL, first=0, last=len(self.layers))

    def pool(self, x_BLD: Tensor, attend_BL: Tensor) -> Tensor:
        """States after the last layer to one vector a text, (B, T), as the encoder was trained."""
        return self.readout(x_BLD, attend_BL)


def mean_pool(x_BLD: Tensor, attend_BL: Tensor) -> Tensor:
    """Mean over real tokens, (B, D): the read-out MiniLM was trained with."""
    weight_BL1 = attend_BL[:, :, None].to(x_BLD.dtype)
    return (x_BLD * weight_BL1).sum(1) / weight_BL1.sum(1)


def read_token(x_BLD: Tensor, attend_BL: Tensor, pool: Pool) -> Tensor:
    """The one token that stands for a text, (B, 1, D): the last real one under "last", else the
    first. Texts are padded at their end."""
    if pool != "last":
        return x_BLD[:, :1]
    last_B11 = _last(attend_BL)[:, None, None]
    return x_BLD.gather(1, last_B11.expand(-1, 1, x_BLD.shape[-1]))


def _last(attend_BL: Tensor) -> Tensor:
    """Place of the last real token of each text, (B,)."""
    place_L = torch.arange(attend_BL.shape[1], device=attend_BL.device)
    return (attend_BL * place_L).argmax(1)


class QueryEncoder(nn.Module):
    """The last layers of a text encoder as a copy that trains, and a projection.

    The layers below are the text encoder's own: they are frozen, so a copy would equal them.
    """

    def __init__(self, shape: TextShape, layers: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(shape.layer() for _ in range(layers))
        self.readout = TextReadout(shape)
        self.projection = nn.Linear(shape.pooled_width, dim)

    def pooled(self, x_BLD: Tensor, attend_BL: Tensor) -> Tensor:
        """Normalised read-out of the last states, (B, T)."""
        for layer in self.layers:
            x_BLD = layer(x_BLD, attend_BL)
        pooled_BT = self.readout(x_BLD, attend_BL).float()
        return F.layer_norm(pooled_BT, pooled_BT.shape[-1:])

    def forward(self, x_BLD: Tensor, attend_BL: Tensor) -> Tensor:
        return self.projection(self.pooled(x_BLD, attend_BL))


class CrossAttention(nn.Module):
    """Text tokens look at image tokens.

    As it starts here it is silent until trained: pre-norm with a zero output, unlike BERT's
    post-norm, so an untrained multimodal encoder equals the text encoder. BLIP's own is post-norm.
    """

    def __init__(self, text: TextShape, image_width: int, norm: Norm = "pre") -> None:
        super().__init__()
        self.heads, self.placed = text.heads, norm
        epsilon = 1e-5 if norm == "pre" else text.norm_epsilon
        self.norm = nn.LayerNorm(text.width, eps=epsilon)
        self.query = nn.Linear(text.width, text.width)
        self.keys_values = nn.Linear(image_width, 2 * text.width)
        self.out = nn.Linear(text.width, text.width)

    def forward(self, x_BLD: Tensor, keys_values_BI2D: Tensor) -> Tensor:
        k, v = keys_values_BI2D.chunk(2, dim=-1)
        q = self.query(self.norm(x_BLD) if self.placed == "pre" else x_BLD)
        out_BLD = x_BLD + self.out(attention(q, k, v, self.heads))
        return self.norm(out_BLD) if self.placed == "post" else out_BLD


class MultimodalEncoder(nn.Module):
    """Cross-attention and the [ENC] token; the text encoder lends everything else.

    [ENC] stands where the text encoder is read: at [CLS], or at the last token of an encoder that
    is read there, for in a causal one the first token sees nothing of the text. It enters where
    training begins: below that depth the frozen layers see the token itself, and their state there
    plus ``enc_D`` (zero at first) is what the layers above read. With no frozen layer this is an
    embedding of its own, initialised from that token, or from [ENC] where a checkpoint has one.
    Training and inference both go through ``forward``, so both place it alike.
    """

    def __init__(
        self, text: TextShape, image: ImageShape, fusion_layers: int, cross_norm: Norm = "pre"
    ) -> None:
        super().__init__()
        self.enc_D = nn.Parameter(torch.zeros(text.width))
        self.cross = nn.ModuleList(
            CrossAttention(text, image.width, cross_norm) for _ in range(fusion_layers)
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
            x_BLD: States below layer ``first``.
            attend_BL: True for real tokens.
            keys_values: From ``keys_values``, or None for products without an image.
            first: The first layer to run, at or below the first fusion layer.

        Returns:
            The state of [ENC] after the last layer and its norm, shape (B, D).
        """
        pool, last = text.shape.pool, len(text.layers)
        x_BLD = self._with_enc(x_BLD, attend_BL, pool)
        fusion_first = last - len(self.cross)
        for depth in range(first, last):
            layer = text.layers[depth]
            assert isinstance(layer, TransformerLayer)
            read_B1D = read_token(x_BLD, attend_BL, pool) if depth == last - 1 else None
            x_BLD = layer.attend(x_BLD, attend_BL, read_B1D=read_B1D)
            if depth >= fusion_first and keys_values is not None:
                cross = self.cross[depth - fusion_first]
                x_BLD = cross(x_BLD, keys_values[depth - fusion_first])
            x_BLD = layer.feed(x_BLD)
        return text.readout.norm(x_BLD[:, 0])

    def _with_enc(
        self, x_BLD: Tensor, attend_BL: Tensor, pool: Literal["mean", "first", "last"]
    ) -> Tensor:
        enc_D = self.enc_D.to(x_BLD.dtype)
        if pool != "last":
            return torch.cat([x_BLD[:, :1] + enc_D, x_BLD[:, 1:]], dim=1)
        place_L = torch.arange(x_BLD.shape[1], device=x_BLD.device)
        is_last_BL = place_L == _last(attend_BL)[:, None]
        return x_BLD + is_last_BL[:, :, None] * enc_D


@torch.no_grad()
def initialise_(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight of an untrained module: truncated normal .02, convolutions by their
    fan-in, biases 0, norms 1, and 0 for what ends a branch that starts silent."""
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
            if part.class_C is not None:
                nn.init.trunc_normal_(part.class_C, std=0.02, generator=generator)
        if isinstance(part, AttentionPool):
            nn.init.trunc_normal_(part.probe_C, std=0.02, generator=generator)
    for part in module.modules():
        if isinstance(part, CrossAttention):
            nn.init.zeros_(part.out.weight)
        if isinstance(part, ResidualBlock):
            silent = part.convolutions[-1]
            assert isinstance(silent, nn.Conv2d)
            nn.init.zeros_(silent.weight)
