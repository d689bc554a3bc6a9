"""The judge's network: query and product in one sequence, three classes and a rating out.

    [CLS] query [SEP] product [SEP]

is read by a BERT; its states at [CLS] and averaged over either side, with the columns of
``lexical`` beside them, go through one hidden layer to the log-odds of the classes 0, 1, 2 and to a
rating between 0 and 1.

Shape letters: N pairs, B pairs of a batch, L tokens of a pair, D width of the encoder, C dense
columns, K = 3 classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from embeddings.checkpoint_families import TEXT_FAMILIES
from embeddings.encoders import TextEncoder, TextShape, initialise_, mean_pool
from embeddings.pretrained import Checkpoint, load_text_
from embeddings.text import TokenTable, tokenize
from embeddings.weights import ResolvedWeights

CLASSES = 3


class PairTokens:
    """Token sequences of pairs, made of the parts when they are asked for.

    Args:
        query: Tokens of the distinct query texts, [CLS] and [SEP] included.
        product: Tokens of the distinct product texts, likewise.
        query_N: Row in ``query`` of each pair.
        product_N: Row in ``product`` of each pair.
    """

    def __init__(
        self,
        query: TokenTable,
        product: TokenTable,
        query_N: NDArray[np.int64],
        product_N: NDArray[np.int64],
    ) -> None:
        self.query, self.product = query, product
        self.query_N, self.product_N = torch.from_numpy(query_N), torch.from_numpy(product_N)
        # The second [CLS] is left out.
        self.length_N = query.length_P[self.query_N] + product.length_P[self.product_N] - 1

    def __len__(self) -> int:
        return len(self.length_N)

    def padded(self, row_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, which of them are real, and which are the product's, each (B, L)."""
        query_B, product_B = self.query_N[row_B], self.product_N[row_B]
        query_length_B1 = self.query.length_P[query_B][:, None]
        step_L = torch.arange(int(self.length_N[row_B].max()))
        attend_BL = step_L < self.length_N[row_B][:, None]
        of_product_BL = (step_L >= query_length_B1) & attend_BL
        query_at_BL = self.query.start_P[query_B][:, None] + torch.minimum(
            step_L, query_length_B1 - 1
        )
        inside_BL = (step_L - query_length_B1 + 1).clamp(min=0)
        inside_BL = torch.minimum(inside_BL, self.product.length_P[product_B][:, None] - 1)
        product_at_BL = self.product.start_P[product_B][:, None] + inside_BL
        id_BL = torch.where(
            of_product_BL, self.product.id_T[product_at_BL], self.query.id_T[query_at_BL]
        )
        return id_BL.long(), attend_BL, of_product_BL

    def take(self, row_B: Tensor) -> PairTokens:
        """Some of the pairs, in that order."""
        query_B, product_B = self.query_N[row_B].numpy(), self.product_N[row_B].numpy()
        return PairTokens(self.query, self.product, query_B, product_B)

    def by_length(self, batch: int) -> Iterator[Tensor]:
        """Rows in batches of like length."""
        yield from torch.argsort(self.length_N, stable=True).split(batch)


def pair_tokens(
    tokenizer: Tokenizer,
    queries: Sequence[str],
    products: Sequence[str],
    query_N: NDArray[np.int64],
    product_N: NDArray[np.int64],
    *,
    max_query_tokens: int,
    max_product_tokens: int,
) -> PairTokens:
    """Tokenize distinct texts once for all pairs they stand in."""
    return PairTokens(
        tokenize(tokenizer, queries, max_query_tokens),
        tokenize(tokenizer, products, max_product_tokens),
        query_N,
        product_N,
    )


class JudgeNetwork(nn.Module):
    """Encoder and head.

    Args:
        shape: Of the encoder, a BERT's.
        columns: Dense columns C.
        hidden: Units of the head's hidden layer.
    """

    mean_C: Tensor
    scale_C: Tensor

    def __init__(self, shape: TextShape, columns: int, hidden: int) -> None:
        super().__init__()
        self.text = TextEncoder(shape)
        self.segment_D = nn.Parameter(torch.zeros(shape.width))
        """What tells product tokens from query tokens, beside their place."""
        self.register_buffer("mean_C", torch.zeros(columns))
        self.register_buffer("scale_C", torch.ones(columns))
        self.hidden = nn.Linear(3 * shape.width + columns, hidden)
        self.out = nn.Linear(hidden, CLASSES + 1)

    @torch.no_grad()
    def set_scale_(self, dense_NC: Tensor) -> None:
        """Bring the dense columns to mean 0 and deviation 1 by the pairs that are learned from."""
        self.mean_C.copy_(dense_NC.mean(0))
        self.scale_C.copy_(dense_NC.std(0, correction=0).clamp(min=1e-3))

    def states(self, id_BL: Tensor, attend_BL: Tensor, of_product_BL: Tensor) -> Tensor:
        """What the head reads of the encoder: [CLS], query mean, product mean, (B, 3D)."""
        text = self.text
        position_L = torch.arange(id_BL.shape[1], device=id_BL.device)
        x_BLD = text.words(id_BL) + text.positions(position_L)
        x_BLD = text.norm(x_BLD + of_product_BL[:, :, None] * self.segment_D)
        x_BLD = text.run(x_BLD, attend_BL, first=0, last=len(text.layers)).float()
        return torch.cat(
            [
                x_BLD[:, 0],
                mean_pool(x_BLD, attend_BL & ~of_product_BL),
                mean_pool(x_BLD, of_product_BL),
            ],
            dim=1,
        )

    def forward(
        self, id_BL: Tensor, attend_BL: Tensor, of_product_BL: Tensor, dense_BC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Judge pairs.

        Returns:
            Logits of the classes, (B, K), and logit of the rating, (B,).
        """
        state_BX = self.states(id_BL, attend_BL, of_product_BL)
        dense_BC = (dense_BC - self.mean_C) / self.scale_C
        out_BO = self.out(F.gelu(self.hidden(torch.cat([state_BX, dense_BC], dim=1))))
        return out_BO[:, :CLASSES], out_BO[:, CLASSES]


@torch.no_grad()
def start_network_(
    network: JudgeNetwork, weights: ResolvedWeights, generator: torch.Generator
) -> None:
    """Give a network its first weights: the encoder's from a checkpoint, the head's at random.

    Raises:
        ValueError: If the checkpoint's tensors have other shapes.
    """
    initialise_(network, generator)
    if weights.path is None:
        return
    load_text_(network.text, weights.path)
    # ``load_text_`` adds segment 0 into the positions; the product is segment 1.
    checkpoint = Checkpoint(weights.path, "text")
    segment = checkpoint.tensors({"both": ("embeddings.token_type_embeddings.weight",)})["both"]
    if len(segment) > 1:
        network.segment_D.copy_(segment[1] - segment[0])


def refuse_unfit(weights: ResolvedWeights, shape: TextShape, tokens: int) -> None:
    """Refuse a checkpoint that cannot see a whole pair at once.

    Args:
        weights: The checkpoint.
        shape: Its shape.
        tokens: Of the longest pair.

    Raises:
        ValueError: If it is not a BERT, or has fewer positions than that.
    """
    if weights.path is not None:
        checkpoint = Checkpoint(weights.path, "text")
        if checkpoint.family is not TEXT_FAMILIES["bert"]:
            raise ValueError(
                f"{weights.path}/config.json has model_type={checkpoint.kind!r}; the judge reads "
                "query and product as two segments of one text, which only model_type='bert' was "
                "trained for"
            )
    if tokens > shape.positions:
        raise ValueError(
            f"max_query_tokens and max_product_tokens make pairs of up to {tokens} tokens, but the "
            f"encoder has {shape.positions} positions; lower them"
        )
