"""Id tables that learn during the backward pass, all features in one call.

The tables of a model hold nearly all of its numbers, and a batch touches a few thousand of their
rows. So the kernel that finds the gradient of those rows also updates them, by row-wise Adagrad:
one accumulator a row, which holds the sum of the mean squares of its gradients.

Where there is a C compiler rows learn by our own kernel, and are looked up by one in bfloat16
training (``ranking.step_kernels``). Elsewhere fbgemm updates them and torch looks them up, in all
threads; fbgemm's own lookup on processors takes one.

Shape letters: B batch, F sparse features, C dense columns, E width of the id embeddings, V table
rows.

Source: Naumov et al. 2020, arXiv:2003.09518 (row-wise Adagrad); fbgemm's table-batched embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Self

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from torch import Tensor, nn
from torch.nn import functional

from ranking.layers import lowered_dtype, side_by_side
from ranking.row_memory import new_rows
from ranking.step_kernels import StepKernels, step_kernels

# Rows of an id table start at this deviation: small enough that an id seen once says little.
TABLE_DEVIATION = 0.01

EPSILON = 1e-8
"""Of row-wise Adagrad, beside the root of a row's accumulator."""


FirstRows = Callable[[int, slice, slice], tuple[Tensor, Tensor]]
"""From table, rows and columns to the weights that those begin with, and their rows' sums."""


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
        self._rows = _Rows(self.sizes, width, learning_rate)
        self._cut_()
        self.frozen_W = None
        for weight_VE in self.weights():
            _draw_(weight_VE)

    def weights(self) -> list[Tensor]:
        """Return each feature's table, shape (V, E), in the order of ``names``."""
        return list(self.table)

    def end_to_end(self) -> Tensor:
        """Return all tables one behind another: the rows that ``weights`` shows, not a copy."""
        return self._rows.weight_VE

    def accumulators(self) -> list[Tensor]:
        """Return Adagrad's sum of each row, shape (V,), in the order of ``names``."""
        return list(self._rows.sum_V.split(self.sizes))

    def first_rows(self, table: int, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Return some rows as they are now, as ``FirstRows``."""
        return self.weights()[table][rows, columns], self.accumulators()[table][rows]

    def release_(self) -> None:
        """Give the memory of all rows back, and with it what they have learned."""
        self._rows.release_()
        self._cut_()

    def hold_again_(self) -> None:
        """Take room for all rows again; they are undefined until they are written."""
        self._rows.hold_again_()
        self._cut_()

    def _cut_(self) -> None:
        """Let each feature's table be a view of the rows that learn."""
        self.table = nn.ParameterList(
            nn.Parameter(weight_VE, requires_grad=False)
            for weight_VE in self._rows.weight_VE.split(self.sizes)
        )

    def set_learning_rate(self, learning_rate: float) -> None:
        """Change the rate at which the backward pass updates the tables."""
        self._rows.learning_rate.fill_(learning_rate)

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
        rows = self._rows
        beyond_BF = (sparse_BF < 0) | (sparse_BF >= rows.size_F)
        if beyond_BF.any():
            self.refuse(sparse_BF, *beyond_BF.nonzero()[0].tolist())
        out_BW = _Lookup.apply(rows.hook, rows, sparse_BF)
        if self.frozen_W is not None:
            # A row whose gradient is zero is not moved, nor is its sum.
            out_BW = torch.where(self.frozen_W, out_BW.detach(), out_BW)
        return out_BW

    def beside(self, sparse_BF: Tensor, dense_BC: Tensor) -> Tensor:
        """Return ``forward`` and the dense columns as one, as ``side_by_side``, (B, F * E + C).

        Raises:
            RuntimeError: As ``forward``.
        """
        kernels = step_kernels() if _learns_in_bfloat16(dense_BC) else None
        if kernels is None or self.frozen_W is not None or sparse_BF.dtype != torch.int32:
            return side_by_side(self(sparse_BF), dense_BC)
        return _LookupBeside.apply(self._rows.hook, self, kernels, sparse_BF, dense_BC)  # pyright: ignore[reportReturnType]

    def refuse(self, sparse_BF: Tensor, row: int, feature: int) -> NoReturn:
        """Raise what ``forward`` raises, about this place."""
        raise RuntimeError(
            f"{self.names[feature]} has the id {sparse_BF[row, feature]}; its table takes 0 to "
            f"{self.sizes[feature] - 1}"
        )

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        # The parameters are views of the rows that learn; a copy elsewhere would learn nothing.
        return self


class _Rows:
    """The rows of all tables end to end, their accumulators, and what fbgemm asks to know."""

    def __init__(self, sizes: Sequence[int], width: int, learning_rate: float) -> None:
        self.weight_VE, self.sum_V = new_rows(sum(sizes), width), new_rows(sum(sizes))
        self.learning_rate = torch.tensor(float(learning_rate))
        self.hook = torch.zeros(0, requires_grad=True)
        """What makes autograd call ``_Lookup.backward``: no gradient is returned for the rows."""
        self.size_F = torch.tensor(sizes)
        self.ends = torch.tensor([0, *sizes]).cumsum(0)
        """Where each feature's rows begin, and where the last one's end, shape (F + 1,)."""
        self.first_F = self.ends[:-1]
        self.columns = torch.arange(len(sizes) + 1, dtype=torch.int32) * width
        """Where each feature's columns begin, and where the last one's end, shape (F + 1,)."""
        self.first_number_F = self.first_F * width
        self.on_host = torch.full((len(sizes),), EmbeddingLocation.HOST.value, dtype=torch.int32)

    def release_(self) -> None:
        """Keep the shapes of rows and sums, and nothing in them."""
        self.weight_VE = torch.empty(self.weight_VE.shape, device="meta")
        self.sum_V = torch.empty(self.sum_V.shape, device="meta")

    def hold_again_(self) -> None:
        """Take room for rows and sums."""
        self.weight_VE = new_rows(*self.weight_VE.shape)
        self.sum_V = new_rows(*self.sum_V.shape)

    def learn_(self, sparse_BF: Tensor, grad_BW: Tensor) -> None:
        """Update the rows that were looked up.

        Args:
            grad_BW: Its first F * E columns are those of the rows; where there are no kernels it
                has no others and is float32.
        """
        kernels = step_kernels()
        if kernels is not None:
            kernels.learn_(
                sparse_BF.int().contiguous(),
                self.first_F,
                grad_BW.contiguous(),
                self.weight_VE,
                self.sum_V,
                learning_rate=self.learning_rate.item(),
                epsilon=EPSILON,
            )
            return
        row_N = sparse_BF.t().reshape(-1).long()
        torch.ops.fbgemm.split_embedding_backward_codegen_rowwise_adagrad_cpu(
            grad_BW.contiguous(),
            self.weight_VE.view(-1),
            self.on_host,
            self.first_number_F,
            self.columns,
            self.weight_VE.shape[1],
            self.ends,
            len(self.weight_VE).bit_length(),
            row_N,
            torch.arange(len(row_N) + 1),
            PoolingMode.SUM.value,
            torch.empty(0),
            False,  # no stochastic rounding
            self.sum_V,
            self.on_host,
            self.first_F,
            self.learning_rate,
            EPSILON,
        )


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hook: Tensor, rows: _Rows, sparse_BF: Tensor) -> Tensor:
        ctx.rows, ctx.sparse_BF = rows, sparse_BF
        found_BFE = functional.embedding(sparse_BF + rows.first_F, rows.weight_VE)
        return found_BFE.flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        ctx.rows.learn_(ctx.sparse_BF, grads[0])
        return None, None, None


class _LookupBeside(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hook: Tensor,
        tables: FusedTables,
        kernels: StepKernels,
        sparse_BF: Tensor,
        dense_BC: Tensor,
    ) -> Tensor:
        ctx.rows, ctx.sparse_BF = tables._rows, sparse_BF.contiguous()
        out_BW, beyond = kernels.look_up(
            ctx.sparse_BF,
            ctx.rows.first_F,
            ctx.rows.size_F,
            ctx.rows.weight_VE,
            dense_BC.contiguous(),
        )
        if beyond is not None:
            tables.refuse(sparse_BF, *beyond)
        return out_BW

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        ctx.rows.learn_(ctx.sparse_BF, grads[0])
        return (None,) * 5


def _learns_in_bfloat16(dense_BC: Tensor) -> bool:
    """Whether rows and these columns are rounded at once, and only the rows learn."""
    return (
        torch.is_grad_enabled()
        and lowered_dtype("cpu") == torch.bfloat16
        and dense_BC.dtype == torch.float32
        and not dense_BC.requires_grad
    )


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


def id_tables(network: nn.Module) -> list[tuple[str, FusedTables]]:
    """Return the id tables of a network with their names in it, always in the same order."""
    return [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, FusedTables)
    ]


@torch.no_grad()
def _draw_(weight_VE: Tensor) -> None:
    weight_VE.normal_(0.0, TABLE_DEVIATION)
    weight_VE[0] = 0.0
