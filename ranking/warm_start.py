"""Training that goes on from an earlier model: known ids keep what they learned.

The vocabularies of the new rows begin with those of the earlier ones
(``FeaturePipeline.continue_from``), so the first rows of every table are the earlier table; new
ids start as they always do. Adagrad's sums come along, or the first steps would be as long as a
beginner's and shake what is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ranking.fused_tables import id_tables
from ranking.model import ClickNetwork

if TYPE_CHECKING:
    from ranking.contract import InputSignature
    from ranking.tower import TowerRanker


@torch.no_grad()
def carry_over_(network: ClickNetwork, signature: InputSignature, earlier: TowerRanker) -> None:
    """Copy the weights of an earlier model into a network of the same shape, tables grown.

    Buffers stay as they were counted on the new rows.

    Args:
        network: As it would begin.
        signature: The features and vectors that it is for.
        earlier: A fitted model.

    Raises:
        ValueError: If features, vectors or layers differ, a table would shrink, or ids stand for
            rows of a catalogue that may have another order now.
    """
    before = earlier.signature_
    _same("sparse features", before.sparse_names, signature.sparse_names)
    _same("dense columns", before.dense_names, signature.dense_names)
    _same("vectors", before.vectors_fingerprint, signature.vectors_fingerprint)
    if earlier.codebook_ is not None or earlier.history_rows_ is not None:
        raise ValueError(
            "a model with semantic ids or attention by ids cannot be gone on from: its ids come "
            "from one catalogue's order; train it anew"
        )
    for name, size, new in zip(
        before.sparse_names, before.vocabulary_sizes, signature.vocabulary_sizes, strict=True
    ):
        if new < size:
            raise ValueError(
                f"the table of {name!r} would shrink from {size} to {new} rows; were the features "
                "fitted without those of the earlier run?"
            )
    old = {name: p.detach() for name, p in earlier.network_.named_parameters()}
    for name, parameter in network.named_parameters():
        given = old.get(name)
        # Id tables are updated in the backward pass and ask for no gradient; they alone may grow.
        first = 0 if parameter.requires_grad else 1
        if given is None or given.shape[first:] != parameter.shape[first:]:
            found = "none" if given is None else tuple(given.shape)
            raise ValueError(
                f"{name} has shape {tuple(parameter.shape)}, and the earlier model's {found}; a "
                "model goes on only with the layers it had"
            )
        parameter[: len(given)].copy_(given)
    pairs = zip(id_tables(network), id_tables(earlier.network_), strict=True)
    for (_, own), (_, other) in pairs:
        for sum_V, learned_V in zip(own.accumulators(), other.accumulators(), strict=True):
            sum_V[: len(learned_V)].copy_(learned_V)


def adagrad_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return Adagrad's sums of all id tables of a network by name: they are what learns."""
    return {
        f"{group}.{number}": sum_V
        for group, (_, tables) in enumerate(id_tables(network))
        for number, sum_V in enumerate(tables.accumulators())
    }


@torch.no_grad()
def restore_adagrad_(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what ``adagrad_tensors`` returned."""
    for group, (_, tables) in enumerate(id_tables(network)):
        for number, sum_V in enumerate(tables.accumulators()):
            sum_V.copy_(tensors[f"{group}.{number}"])


def _same(what: str, before: object, now: object) -> None:
    if before != now:
        raise ValueError(
            f"the earlier model has the {what} {before}, and this one {now}; a model goes on only "
            "with those it knows"
        )
