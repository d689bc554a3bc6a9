"""Id tables that learn during the backward pass: all features in one call of fbgemm.

The tables of a model hold nearly all of its numbers, and a batch touches a few thousand of their
rows. So the kernel that finds the gradient of those rows also updates them, by row-wise Adagrad:
one accumulator a row, which holds the sum of the mean squares of its gradients.

Shape letters: B batch, F sparse features, E width of the id embeddings, V table rows.

Source: Naumov et al. 2020, arXiv:2003.09518 (row-wise Adagrad); fbgemm's table-batched embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
    BoundsCheckMode,
    EmbeddingLocation,
)
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn

# Rows of an id table start at this deviation: small enough that an id seen once says little.
TABLE_DEVIATION = 0.01


class FusedTables(nn.Module):
    """One id table a sparse feature, updated during the backward pass by row-wise Adagrad.

    Row 0 (out-of-vocabulary) starts at zero, so a feature whose training rows never miss gives an
    unknown id no opinion. The tables stay in the memory of the processor, in float32, wherever
    and however the rest of a network computes.

    Args:
        names: Of the features.
        sizes: Rows of each table.
        width: E, a multiple of four.
        learning_rate: Of row-wise Adagrad.
    """

    frozen_W: Tensor | None
    """1 for the columns of ``forward`` whose tables do not learn, shape (F * E,); None for none."""

    def __init__(
        self, names: Sequence[str], sizes: Sequence[int], width: int, *, learning_rate: float
    ) -> None:
        super().__init__()
        self.names, self.sizes, self.width = tuple(names), tuple(sizes), width
        kernel = SplitTableBatchedEmbeddingBagsCodegen(
            [(size, width, EmbeddingLocation.HOST, ComputeDevice.CPU) for size in self.sizes],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=learning_rate,
            eps=1e-8,
            stochastic_rounding=False,
            bounds_check_mode=BoundsCheckMode.FATAL,
        )
        # In a tuple, because the kernel's own buffers are no part of a model's weights.
        self._kernel = (kernel,)
        self.table = nn.ParameterList(
            nn.Parameter(weight_VE, requires_grad=False)
            for weight_VE in kernel.split_embedding_weights()
        )
        self.frozen_W = None
        for weight_VE in self.weights():
            _draw_(weight_VE)

    def weights(self) -> list[Tensor]:
        """Return each feature's table, shape (V, E), in the order of ``names``."""
        return list(self.table)

    def accumulators(self) -> list[Tensor]:
        """Return Adagrad's sum of each row, shape (V,), in the order of ``names``."""
        return [states[0] for states in self._kernel[0].split_optimizer_states()]

    def set_learning_rate(self, learning_rate: float) -> None:
        """Change the rate at which the backward pass updates the tables."""
        self._kernel[0].set_learning_rate(learning_rate)

    def freeze(self, rows: int) -> list[str]:
        """Let no table of at least so many rows learn any more; return their names."""
        large = [size >= rows for size in self.sizes]
        if any(large):
            self.frozen_W = torch.tensor(large).repeat_interleave(self.width)
        return [name for name, frozen in zip(self.names, large, strict=True) if frozen]

    def draw_again(self, rows: int) -> list[str]:
        """Begin the tables of at least so many rows anew; return their names.

        Weights are drawn from torch's global generator, and what Adagrad has seen is forgotten.
        """
        begun = []
        for name, weight_VE, sum_V in zip(
            self.names, self.weights(), self.accumulators(), strict=True
        ):
            if len(weight_VE) >= rows:
                _draw_(weight_VE)
                sum_V.zero_()
                begun.append(name)
        return begun

    def forward(self, sparse_BF: Tensor) -> Tensor:
        """Return the rows of all features side by side, shape (B, F * E).

        Raises:
            RuntimeError: If an id lies beyond its table.
        """
        batch, features = sparse_BF.shape
        out_BW = self._kernel[0](
            sparse_BF.t().reshape(-1),
            torch.arange(batch * features + 1, dtype=sparse_BF.dtype),
        )
        if self.frozen_W is not None:
            # A row whose gradient is zero is not moved, nor is its sum.
            out_BW = torch.where(self.frozen_W, out_BW.detach(), out_BW)
        return out_BW

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        # The parameters are views of the kernel's memory; a copy elsewhere would learn nothing.
        return self


class TableGroup(nn.Module):
    """Several ``FusedTables`` that are treated alike."""

    def __init__(self, *tables: FusedTables) -> None:
        super().__init__()
        self.tables = tables
        self.members = nn.ModuleList(tables)

    def weights(self) -> list[Tensor]:
        """Return the tables of all of them, each (V, E)."""
        return [weight_VE for tables in self.tables for weight_VE in tables.weights()]

    def accumulators(self) -> list[Tensor]:
        """Return Adagrad's sums of all of them, each (V,)."""
        return [sum_V for tables in self.tables for sum_V in tables.accumulators()]

    def set_learning_rate(self, learning_rate: float) -> None:
        """Change the rate at which the backward pass updates all of them."""
        for tables in self.tables:
            tables.set_learning_rate(learning_rate)

    def freeze(self, rows: int) -> list[str]:
        """As ``FusedTables.freeze``."""
        return [name for tables in self.tables for name in tables.freeze(rows)]

    def draw_again(self, rows: int) -> list[str]:
        """As ``FusedTables.draw_again``."""
        return [name for tables in self.tables for name in tables.draw_again(rows)]


@torch.no_grad()
def _draw_(weight_VE: Tensor) -> None:
    weight_VE.normal_(0.0, TABLE_DEVIATION)
    weight_VE[0] = 0.0
