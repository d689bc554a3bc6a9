"""Texts to tokens, padded only to the longest of their batch.

Shape letters: P texts, T tokens of all texts end to end, B rows of a batch, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor


class TokenTable:
    """Token ids of many texts in one flat array."""

    def __init__(self, id_T: NDArray[np.int32], start_P: NDArray[np.int64]) -> None:
        self.id_T = torch.from_numpy(id_T)
        self.start_P = torch.from_numpy(start_P[:-1])
        self.length_P = torch.from_numpy(np.diff(start_P))

    def __len__(self) -> int:
        return len(self.length_P)

    def positions(self, row_B: Tensor) -> tuple[Tensor, Tensor]:
        """Where each token of some texts lies in the flat array.

        Returns:
            Positions (B, L), padding repeating a text's last token, and a mask (B, L), True for
            real tokens.
        """
        length_B = self.length_P[row_B]
        step_L = torch.arange(int(length_B.max()))
        attend_BL = step_L < length_B[:, None]
        inside_BL = torch.minimum(step_L, length_B[:, None] - 1)
        return self.start_P[row_B][:, None] + inside_BL, attend_BL

    def padded(self, row_B: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and mask of some texts, both (B, L)."""
        position_BL, attend_BL = self.positions(row_B)
        return self.id_T[position_BL].long(), attend_BL

    def batches(self, rows: int, tokens: int | None) -> Iterator[Tensor]:
        """Batches for work whose outcome is written to its rows, of few different shapes.

        Args:
            rows: Of a batch, by length, where ``tokens`` is None.
            tokens: Batches by this budget (``by_budget``); one that is not full repeats its last
                row, for the kernels of every new shape stay in memory.
        """
        if tokens is None:
            yield from self.by_length(rows)
            return
        for row_B in self.by_budget(tokens):
            full = tokens // max(1, int(self.length_P[row_B[0]]))
            yield torch.cat([row_B, row_B[-1:].expand(max(0, full - len(row_B)))])

    def by_length(self, batch: int) -> Iterator[Tensor]:
        """Rows in batches of like length, so that padding costs next to nothing."""
        order_P = torch.argsort(self.length_P, stable=True)
        yield from order_P.split(batch)

    def by_budget(self, tokens: int) -> Iterator[Tensor]:
        """Rows in batches of like length that all take about the same memory, longest first.

        Short texts come in large batches and long ones in small ones; a budget that does not fit
        the memory fails at the first batch. Vectors differ between batchings by rounding: by less
        than 1e-5 in float32, by bfloat16's own coarseness in bfloat16.

        Args:
            tokens: Rows times the longest of them, padding included, is at most this. A text that
                is longer makes a batch of its own.

        Raises:
            ValueError: If ``tokens`` is below 1.
        """
        if tokens < 1:
            raise ValueError(f"tokens={tokens} must be at least 1, the padded size of a batch")
        order_P = torch.argsort(self.length_P, descending=True, stable=True)
        at = 0
        while at < len(order_P):
            longest = max(1, int(self.length_P[order_P[at]]))
            rows = max(1, tokens // longest)
            yield order_P[at : at + rows]
            at += rows


def load_tokenizer(folder: Path | None) -> Tokenizer:
    """Read a tokenizer, its own padding and truncation switched off.

    Args:
        folder: Holds tokenizer.json; None gives a tokenizer of single bytes, which needs no
            vocabulary and goes with random weights.
    """
    if folder is not None:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        symbols = special + sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(
            models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[], unk_token="[UNK]")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    # MiniLM's file pads every text to 128 tokens, which makes short queries ten times slower.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> TokenTable:
    """Tokenize texts; longer ones keep their first ``max_tokens`` tokens and the closing [SEP].

    Raises:
        ValueError: If ``max_tokens`` leaves no room beside the tokenizer's own [CLS] and [SEP], or
            a text has no token at all.
    """
    own = tokenizer.num_special_tokens_to_add(is_pair=False)
    if max_tokens <= own:
        raise ValueError(
            f"max_tokens={max_tokens} must be above {own}, the marks that the tokenizer adds"
        )
    tokenizer.enable_truncation(max_tokens)
    encoded = tokenizer.encode_batch(list(texts))
    # Its state is part of a model's fingerprint, which must not depend on what was embedded last.
    tokenizer.no_truncation()
    start_P = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(e.ids) for e in encoded], out=start_P[1:])
    empty_N = np.flatnonzero(np.diff(start_P) == 0)
    if len(empty_N):
        raise ValueError(
            f"text {int(empty_N[0])}, {texts[int(empty_N[0])]!r}, has no token; does the tokenizer "
            "add [CLS] and [SEP] to every text?"
        )
    id_T = np.concatenate([np.zeros(0, np.int32), *(np.asarray(e.ids, np.int32) for e in encoded)])
    return TokenTable(id_T, start_P)


def product_texts(products: pl.DataFrame, columns: Sequence[str]) -> list[str]:
    """Join the text columns of each product; an empty string where it has none.

    Raises:
        ValueError: If the table has none of the columns.
    """
    present = [name for name in columns if name in products.columns]
    if not present:
        raise ValueError(
            f"the products table has none of the text columns {list(columns)}; "
            f"it has {products.columns}"
        )
    joined = products.select(
        pl.concat_str(
            [pl.col(name).cast(pl.String).str.strip_chars().replace("", None) for name in present],
            separator=". ",
            ignore_nulls=True,
        ).alias("text")
    )
    return joined["text"].fill_null("").to_list()
