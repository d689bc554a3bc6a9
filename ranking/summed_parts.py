"""Gradients of one process, summed as several ranks sum theirs.

What many ranks make of a start and one process makes of it must be the same, after any number of
steps; a sum over the whole batch rounds otherwise, and training blows that up.

Shape letters: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ranking.sharded_tables import ShardedTables


def backward_in_parts_(
    tables: Sequence[ShardedTables],
    batch: Sequence[Tensor],
    parts: int,
    loss_of: Callable[[Sequence[Tensor]], Tensor],
) -> Tensor:
    """Leave gradients as ``parts`` ranks sum them; return the mean loss.

    Rows are looked up once for the whole batch, so that tables are updated once, as they are
    where many ranks exchange what they look up.

    Args:
        tables: What ``loss_of`` looks rows up in.
        batch: What ``loss_of`` reads, each (B, ...).
        parts: How many ranks; B is a multiple of it.
        loss_of: The mean loss of some of the rows.
    """
    recorder = _Recorder()
    with torch.no_grad(), _lookups(tables, recorder):
        loss_of(batch)
    looked_up = [table(sparse_BF) for table, sparse_BF in recorder.asked]
    leaves = [out_BW.detach().requires_grad_() for out_BW in looked_up]
    losses = []
    for part in range(parts):
        served = iter([leaf.chunk(parts)[part] for leaf in leaves])
        with _lookups(tables, lambda _table, _ids, rows=served: next(rows)):
            loss = loss_of([value.chunk(parts)[part] for value in batch])
        loss.backward()
        losses.append(loss.detach())
    for out_BW, leaf in zip(looked_up, leaves, strict=True):
        assert leaf.grad is not None
        out_BW.backward(leaf.grad / parts)
    return torch.stack(losses).mean()


class _Recorder:
    """Answers lookups with nothing and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[ShardedTables, Tensor]] = []

    def __call__(self, table: ShardedTables, sparse_BF: Tensor) -> Tensor:
        self.asked.append((table, sparse_BF))
        return torch.zeros(len(sparse_BF), sparse_BF.shape[1] * table.width)


@contextmanager
def _lookups(
    tables: Sequence[ShardedTables], answer: Callable[[ShardedTables, Tensor], Tensor]
) -> Iterator[None]:
    """Let ``answer`` stand for the lookups of some tables."""
    for table in tables:
        table.__dict__["forward"] = partial(answer, table)
    try:
        yield
    finally:
        for table in tables:
            del table.__dict__["forward"]
