"""Examples turned into the tensors of one batch at a time.

Vectors lie once in frozen tables and are gathered by row number a batch; they are never copied
into the rows of the whole table.

Shape letters: N rows, B batch, F sparse features, C dense columns, L history length, P products,
Q queries, D size of the given vectors.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from features.embedding_join import Vectors
from features.examples import Examples


class FrozenVectors:
    """Product and query vectors with one zero row appended, which stands for "unknown"."""

    def __init__(self, vectors: Vectors) -> None:
        self.product_PD = _with_zero_row(vectors.product_PD, vectors.product_present_P)
        self.query_QD = _with_zero_row(vectors.query_QD, vectors.query_present_Q)
        self.product_present_P = _with_zero_row(
            np.ones((len(vectors.product_PD), 1), np.float32), vectors.product_present_P
        )[:, 0]
        self.query_present_Q = _with_zero_row(
            np.ones((len(vectors.query_QD), 1), np.float32), vectors.query_present_Q
        )[:, 0]

    def gather(self, product_B: Tensor, query_B: Tensor, history_BL: Tensor) -> list[Tensor]:
        """Return product, query and mean history vectors, each (B, D), and masks (B, 3).

        Equal to ``features.embedding_join.gather_vectors``; -1 stands for unknown.
        """
        product_B = _wrap(product_B, len(self.product_PD))
        query_B = _wrap(query_B, len(self.query_QD))
        count_B = torch.zeros(len(product_B))
        history_BD = torch.zeros(len(product_B), self.product_PD.shape[1])
        if history_BL.shape[1]:
            history_BL = _wrap(history_BL, len(self.product_PD))
            count_B = self.product_present_P[history_BL].sum(1)
            # Absent products are zero rows, so a plain sum over the padding is right.
            history_BD = functional.embedding_bag(history_BL, self.product_PD, mode="sum")
            history_BD = history_BD / count_B.clamp(min=1.0)[:, None]
        present_B3 = torch.stack(
            [self.product_present_P[product_B], self.query_present_Q[query_B],
             (count_B > 0).float()], dim=1
        )  # fmt: skip
        return [self.product_PD[product_B], self.query_QD[query_B], history_BD, present_B3]


class ExampleTensors:
    """The arrays of some examples as tensors, handed out a batch at a time.

    Args:
        examples: N impressions.
        vectors: Where vectors are gathered from; None gives batches without them.
    """

    def __init__(self, examples: Examples, vectors: FrozenVectors | None) -> None:
        self._vectors = vectors
        self.run_rows = examples.run_rows
        """See ``Examples.run_rows``."""
        self._sparse_NF = _tensor(examples.sparse_NF, np.int32)
        self._dense_NC = _tensor(examples.dense_NC, np.float32)
        self._rows = [
            _tensor(array, np.int32)
            for array in (examples.product_N, examples.query_N, examples.history_NL)
        ]

    def __len__(self) -> int:
        return len(self._sparse_NF)

    def batch(self, row_B: Tensor | slice) -> list[Tensor]:
        """Return the network's inputs for these rows, in the order that it takes them."""
        if isinstance(row_B, slice):
            inputs = [self._sparse_NF[row_B], self._dense_NC[row_B]]
        else:
            # Faster than by brackets, which may pick single numbers and not rows alone.
            inputs = [rows.index_select(0, row_B) for rows in (self._sparse_NF, self._dense_NC)]
        if self._vectors is not None:
            inputs += self._vectors.gather(*(rows[row_B] for rows in self._rows))
        return inputs


def slices(rows: int, batch_size: int) -> Sequence[slice]:
    """Return the slices that cut ``rows`` rows into batches, in order."""
    return [slice(start, start + batch_size) for start in range(0, rows, batch_size)]


def _tensor(values: NDArray, dtype: type[np.generic]) -> Tensor:
    # Rows are only read here, so what is mapped from a file stays there.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.require(values, dtype, ["C"]))


def _wrap(row: Tensor, size: int) -> Tensor:
    """Row numbers with -1 turned into the last (zero) row."""
    return torch.where(row < 0, size - 1, row).long()


def _with_zero_row(values_VD: NDArray[np.float32], present_V: NDArray[np.bool_]) -> Tensor:
    kept_VD = np.where(present_V[:, None], values_VD, np.float32(0))
    zero_1D = np.zeros((1, values_VD.shape[1]), np.float32)
    return torch.from_numpy(np.concatenate([kept_VD, zero_1D]).astype(np.float32))
