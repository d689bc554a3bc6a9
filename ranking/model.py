"""The click network: a production tower, an embedding tower beside it, and the head over both.

"Two-tower" here means two groups of features (the paper's Figure 3), not user against item. The
production tower is DCN-v2 over sparse and dense features; without the embedding tower the same
network is the baseline.

Shape letters: B batch, F sparse features, C dense columns, D size of the given vectors,
E width of the id embeddings, W any layer width.

Source: Gurjar et al. 2025, arXiv:2504.07110, Figure 3; Wang et al. 2021 (DCN-v2),
arXiv:2008.13535.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ranking.attention import HistoryAttention
from ranking.entire_space import PurchaseTower, entire_space_loss
from ranking.exact_logit import exact_logit
from ranking.frequency_gate import FrequencyGate
from ranking.fused_tables import FusedTables
from ranking.layers import CrossNetwork, as_computed, mlp_of, side_by_side
from ranking.position import PositionTower
from ranking.vector_features import VectorFeatures


class ProductionTower(nn.Module):
    """DCN-v2 over id embeddings and dense columns: crosses and an MLP side by side.

    Args:
        tables: What turns sparse ids into (B, F * E); None where there are no sparse features.
        sparse_width: F * E.
        dense_width: C, plus whatever else is concatenated (``single_tower``, attention).
    """

    gate: FrequencyGate | None
    """Mixes the embedding of one feature with the product's vector."""
    gated: int
    """Which feature that is, counted from 0."""

    def __init__(
        self,
        tables: nn.Module | None,
        *,
        sparse_width: int,
        dense_width: int,
        cross_layers: int,
        cross_rank: int | None,
        mlp: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.tables = tables
        width = sparse_width + dense_width
        self.cross = CrossNetwork(width, cross_layers, cross_rank)
        self.mlp = mlp_of(width, mlp, dropout)
        self.gate, self.gated = None, 0
        self.in_width = width
        self.out_width = width + (mlp[-1] if mlp else width)

    def inputs(
        self, sparse_BF: Tensor, dense_BC: Tensor, product_BD: Tensor | None = None
    ) -> Tensor:
        """Return what the crosses and the MLP read, shape (B, in_width)."""
        if self.tables is None:
            return dense_BC
        if self.gate is None and isinstance(self.tables, FusedTables):
            return self.tables.beside(sparse_BF, dense_BC)
        embedded_BW = self.tables(sparse_BF)
        if self.gate is not None:
            assert product_BD is not None
            width = len(self.gate.bias_E)
            own = slice(self.gated * width, (self.gated + 1) * width)
            mixed_BE = self.gate(sparse_BF[:, self.gated], embedded_BW[:, own], product_BD)
            parts = [embedded_BW[:, : own.start], mixed_BE.float(), embedded_BW[:, own.stop :]]
            embedded_BW = torch.cat(parts, dim=1)
        return side_by_side(embedded_BW, dense_BC)

    def towers(self, x_BW: Tensor) -> list[Tensor]:
        """Return the crosses and the MLP of ``inputs``; their widths sum to out_width."""
        x_BW = as_computed(x_BW)
        return [self.cross(x_BW), self.mlp(x_BW)]

    def forward(self, sparse_BF: Tensor, dense_BC: Tensor) -> Tensor:
        """Return the tower's features, shape (B, out_width)."""
        return torch.cat(self.towers(self.inputs(sparse_BF, dense_BC)), dim=1)


class Hidden(NamedTuple):
    """What the last layer of a click network takes."""

    seen: list[Tensor]
    """What it multiplies with its weights, side by side, each (B, some of W)."""
    slot_B: Tensor | None
    """What the position adds to the logit; None where there is no tower for it."""
    buy_logit_B: Tensor | None
    """The logit of P(buy | click); None where clicks alone are learned."""


class ClickNetwork(nn.Module):
    """Both towers and the head: the logit of a click.

    The integers that it reads are the ids of the tables' features, then the candidate and its
    history where there is attention, then the position where there is a tower for it.

    Args:
        production: The production tower.
        vectors: The embedding tower's features, or None for the baseline.
        single_tower: Whether the vector features feed the production tower (whose
            ``dense_width`` must count them) instead of a tower of their own.
        tower_mlp: Layer widths of the embedding tower.
        head: Layer widths of the head.
        purchase_mlp: Layer widths of the tower of purchases; None where clicks alone are learned.
    """

    attention: HistoryAttention | None
    """The history as the candidate sees it, beside the dense columns (whose width counts it)."""
    position: PositionTower | None
    """What the slot adds to the logit while training."""

    def __init__(
        self,
        production: ProductionTower,
        vectors: VectorFeatures | None,
        *,
        single_tower: bool,
        tower_mlp: Sequence[int],
        head: Sequence[int],
        dropout: float,
        purchase_mlp: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.production = production
        self.vectors = vectors
        self.single_tower = single_tower
        self.attention = None
        self.position = None
        width = production.out_width
        beside = 0
        self.tower = None
        if vectors is not None and not single_tower:
            beside = vectors.crossed_width + vectors.plain_width
            self.tower = mlp_of(beside, tower_mlp, dropout)
            # The plain features also go straight to the head, past the tower's bottleneck.
            width += tower_mlp[-1] + vectors.plain_width
        self.head = mlp_of(width, head, dropout)
        # The last layer also sees the towers' features as they are, so that what is plainly
        # additive (a good product, a close match) is learned at once and not through the head.
        self.logit = nn.Linear(width + (head[-1] if head else 0), 1)
        self.purchase = None
        if purchase_mlp is not None:
            self.purchase = PurchaseTower(production.in_width + beside, purchase_mlp, dropout)

    def set_base_rate(self, rate: float) -> None:
        """Start from predicting the click rate, so no step is spent on finding it."""
        with torch.no_grad():
            self.logit.weight.mul_(0.1)
            self.logit.bias.fill_(torch.logit(torch.tensor(rate)).item())

    def hidden(
        self,
        integer_BF: Tensor,
        dense_BC: Tensor,
        product_BD: Tensor | None = None,
        query_BD: Tensor | None = None,
        history_BD: Tensor | None = None,
        present_B3: Tensor | None = None,
    ) -> Hidden:
        """Return what ``logit_of`` takes."""
        slot_B = None
        if self.position is not None:
            slot_B = self.position(integer_BF[:, -1])[:, 0].float()
            integer_BF = integer_BF[:, :-1]
        if self.attention is not None:
            features = integer_BF.shape[1] - self.attention.columns
            seen_BW = self.attention(integer_BF[:, features:])
            dense_BC = torch.cat([dense_BC, seen_BW], dim=1)
            integer_BF = integer_BF[:, :features]
        beside: list[Tensor] = []
        plain_BW = None
        if self.vectors is not None:
            crossed_BW, plain_BW = self.vectors(product_BD, query_BD, history_BD, present_B3)
            beside = [crossed_BW, plain_BW]
            if self.tower is None:
                dense_BC = torch.cat([dense_BC, *beside], dim=1)
                beside = []
        x_BW = self.production.inputs(integer_BF, dense_BC, product_BD)
        seen = self.production.towers(x_BW)
        if self.tower is not None:
            assert plain_BW is not None
            seen += [self.tower(torch.cat(beside, dim=1)), plain_BW]
        if len(self.head):
            joint_BW = torch.cat([as_computed(part) for part in seen], dim=1)
            seen = [*seen, self.head(joint_BW)]
        buy_logit_B = None
        if self.purchase is not None:
            buy_logit_B = self.purchase(torch.cat([x_BW, *beside], dim=1))[:, 0].float()
        return Hidden(seen, slot_B, buy_logit_B)

    def logit_of(self, hidden: Hidden) -> Tensor:
        """Return the logits in float32 whatever the layers before computed in, shape (B,)."""
        if self.training and hidden.seen[0].device.type == "cpu":
            logit_B = exact_logit(hidden.seen, self.logit.weight[0], self.logit.bias)
        else:
            seen_BW = torch.cat([part.float() for part in hidden.seen], dim=1)
            logit_B = self.logit(seen_BW).squeeze(1)
        return logit_B if hidden.slot_B is None else logit_B + hidden.slot_B

    def loss(
        self,
        hidden: Hidden,
        label_B: Tensor,
        *,
        weight_B: Tensor | None = None,
        shift: float = 0.0,
    ) -> Tensor:
        """Return the mean log loss in nats of labels in {0, 1}, given what ``hidden`` returned.

        A network with purchases takes ``outcomes`` in {0, 1, 2} instead.

        Args:
            weight_B: How much each row counts, of mean 1 over all rows; None for all alike.
            shift: What the choice of the rows added to the log odds of a click
                (``ranking.epoch_order``), so that the logit is that of all rows.
        """
        logit_B = self.logit_of(hidden) + shift
        if hidden.buy_logit_B is not None:
            loss_B = entire_space_loss(logit_B, hidden.buy_logit_B, label_B)
        else:
            loss_B = functional.binary_cross_entropy_with_logits(logit_B, label_B, reduction="none")
        return (loss_B if weight_B is None else loss_B * weight_B).mean()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the logits, shape (B,), of what ``hidden`` takes."""
        return self.logit_of(self.hidden(*inputs))
