"""The transformer layer that both towers are built of, in the variants that checkpoints need.

Shape letters: B rows, L tokens that look, I tokens that are looked at, D width, H heads, E width
of one head.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["post", "pre"]
"""Where a layer normalises: after each sum with the residual (BERT), or each half's input."""

Activation = Literal["gelu", "quick_gelu", "gelu_pytorch_tanh"]
"""Of the feed-forward half, under the names that Hugging Face's configs use."""

SHORT_TOKENS = 64
"""Up to here attention on a processor is written out."""


def attention(
    q_BLD: Tensor,
    k_BID: Tensor,
    v_BID: Tensor,
    heads: int,
    attend_BI: Tensor | None = None,
    *,
    causal: bool = False,
) -> Tensor:
    """Multi-head attention of L tokens to I tokens.

    Args:
        q_BLD: Queries.
        k_BID: Keys.
        v_BID: Values.
        heads: Divides D.
        attend_BI: Tokens where it is False are left out.
        causal: Token l sees the tokens up to l only; L must be I.

    Returns:
        Shape (B, L, D).
    """
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q_BLD, k_BID, v_BID))
    mask = None if attend_BI is None else attend_BI[:, None, None, :]
    if causal:
        before_LI = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        mask = before_LI if mask is None else mask & before_LI
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


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply the activation of a feed-forward half."""
    if activation == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_pytorch_tanh" else "none")


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward; query, key and value share one matrix product.

    Args:
        width: Size D of a token.
        heads: Attention heads; divides ``width``.
        feed_forward: Hidden units of the feed-forward half.
        norm: "post" as in BERT, "pre" as in vision transformers and CLIP.
        activation: Of the feed-forward half.
        epsilon: Of the norms.
        causal: Whether a token sees only those before it.

    Raises:
        ValueError: If the heads do not divide the width.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        *,
        norm: Norm,
        activation: Activation = "gelu",
        epsilon: float = 1e-5,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} must divide the width {width} of the encoder")
        self.heads, self.causal = heads, causal
        self.norm: Norm = norm
        self.activation: Activation = activation
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width, eps=epsilon)
        self.up = nn.Linear(width, feed_forward)
        self.down = nn.Linear(feed_forward, width)

    def attend(
        self, x_BLD: Tensor, attend_BL: Tensor | None, *, read_B1D: Tensor | None = None
    ) -> Tensor:
        """Self-attention with its residual.

        Args:
            x_BLD: All tokens.
            attend_BL: True for real tokens; None if all are.
            read_B1D: The token of each row that is read afterwards, if nothing else is: it then
                comes back alone. Where the layer is causal it must be the last real one.
        """
        kept_BLD = x_BLD if read_B1D is None else read_B1D
        seen_BLD, asking_BLD = x_BLD, kept_BLD
        if self.norm == "pre":
            seen_BLD = self.attention_norm(x_BLD)
            asking_BLD = seen_BLD if read_B1D is None else self.attention_norm(read_B1D)
        if read_B1D is None:
            q, k, v = self.qkv(seen_BLD).chunk(3, dim=-1)
        else:
            # The last layer before a read-out at one token needs keys of all tokens but only one
            # query, which spares three quarters of the layer.
            width, weight, bias = x_BLD.shape[-1], self.qkv.weight, self.qkv.bias
            q = F.linear(asking_BLD, weight[:width], bias[:width])
            k, v = F.linear(seen_BLD, weight[width:], bias[width:]).chunk(2, dim=-1)
        causal = self.causal and read_B1D is None
        mixed_BLD = attention(q, k, v, self.heads, attend_BL, causal=causal)
        out_BLD = kept_BLD + self.attention_out(mixed_BLD)
        return self.attention_norm(out_BLD) if self.norm == "post" else out_BLD

    def feed(self, x_BLD: Tensor) -> Tensor:
        """The feed-forward half with its residual."""
        inner_BLD = self.feed_norm(x_BLD) if self.norm == "pre" else x_BLD
        out_BLD = x_BLD + self.down(activate(self.up(inner_BLD), self.activation))
        return self.feed_norm(out_BLD) if self.norm == "post" else out_BLD

    def forward(self, x_BLD: Tensor, attend_BL: Tensor | None = None) -> Tensor:
        return self.feed(self.attend(x_BLD, attend_BL))
