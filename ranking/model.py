"""The click network: a production tower, an embedding tower beside it, and the head over both.

"Two-tower" here means two groups of features (the paper's Figure 3), not user against item. The
production tower is DCN-v2 over sparse and dense features; without the embedding tower the same
network is the baseline.

Shape letters: B batch, F sparse features, C dense columns, D size of the given vectors,
E width of the id embeddings, K width of the projected vectors, W any layer width.

Source: Gurjar et al. 2025, arXiv:2504.07110, Figure 3; Wang et al. 2021 (DCN-v2),
arXiv:2008.13535, equations 1 (full) and 2 (low rank).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

# Rows of an id table start at this deviation: small enough that an id seen once says little.
_TABLE_DEVIATION = 0.01


class FusedTables(nn.Module):
    """One id table a sparse feature, updated during the backward pass by row-wise Adagrad.

    torchrec's fused collection over fbgemm, on CPU too. Row 0 (out-of-vocabulary) starts at zero,
    so a feature whose training rows never miss gives an unknown id no opinion.
    """

    def __init__(
        self, names: Sequence[str], sizes: Sequence[int], width: int, *, learning_rate: float
    ) -> None:
        super().__init__()
        # torchrec asks torch about fx tracing at every batch, and torch answers with a warning to
        # developers that tells a user nothing.
        logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
        self.names = tuple(names)
        # A table may not have a dot in its name ("products.category"), so tables are numbered;
        # what they return is read by the feature's own name.
        self.collection = FusedEmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=f"table_{number}",
                    embedding_dim=width,
                    num_embeddings=size,
                    feature_names=[name],
                )
                for number, (name, size) in enumerate(zip(names, sizes, strict=True))
            ],
            optimizer_type=RowWiseAdagrad,
            optimizer_kwargs={"learning_rate": learning_rate, "eps": 1e-8},
            device=torch.device("cpu"),
        )
        with torch.no_grad():
            for weight_VE in self.weights():
                weight_VE.normal_(0.0, _TABLE_DEVIATION)
                weight_VE[0] = 0.0

    def weights(self) -> list[Tensor]:
        """Return each feature's table, shape (V, E), in the order of ``names``."""
        return [
            self.collection.embedding_bags[f"table_{number}"].get_parameter("weight")
            for number in range(len(self.names))
        ]

    def set_learning_rate(self, learning_rate: float) -> None:
        """Change the rate at which the backward pass updates the tables."""
        optimizer = self.collection.fused_optimizer()
        for group in optimizer.param_groups:
            cast(dict[str, float], group)["lr"] = learning_rate
        # The fused optimizer's step moves no weight; it only hands the rate to the kernel.
        optimizer.step()

    def forward(self, sparse_BF: Tensor) -> Tensor:
        """Return the rows of all features side by side, shape (B, F * E)."""
        batch, features = sparse_BF.shape
        bags = KeyedJaggedTensor(
            keys=list(self.names),
            values=sparse_BF.t().reshape(-1),
            lengths=torch.ones(batch * features, dtype=torch.int32),
            offsets=torch.arange(batch * features + 1, dtype=torch.int32),
            stride=batch,
        )
        by_name = self.collection(bags).to_dict()
        return torch.cat([by_name[name] for name in self.names], dim=1)


class CrossNetwork(nn.Module):
    """DCN-v2 crosses: ``x <- x0 * (W x + b) + x``, with ``W`` full or of low rank.

    Args:
        width: Size of the input and output.
        layers: Number of crosses; 0 returns the input.
        rank: Rank of each ``W``; None for a full matrix.
    """

    def __init__(self, width: int, layers: int, rank: int | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(width, width)
            if rank is None
            else nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            for _ in range(layers)
        )

    def forward(self, start_BW: Tensor) -> Tensor:
        """Return the crossed features, shape (B, W)."""
        x_BW = start_BW
        for layer in self.layers:
            x_BW = start_BW * layer(x_BW) + x_BW
        return x_BW


class ProductionTower(nn.Module):
    """DCN-v2 over id embeddings and dense columns: crosses and an MLP side by side.

    Args:
        tables: What turns sparse ids into (B, F * E); None where there are no sparse features.
        sparse_width: F * E.
        dense_width: C, plus whatever else is concatenated (``single_tower``).
    """

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
        self.out_width = width + (mlp[-1] if mlp else width)

    def forward(self, sparse_BF: Tensor, dense_BC: Tensor) -> Tensor:
        """Return the tower's features, shape (B, out_width)."""
        parts = [dense_BC] if self.tables is None else [self.tables(sparse_BF), dense_BC]
        x_BW = torch.cat(parts, dim=1)
        return torch.cat([self.cross(x_BW), self.mlp(x_BW)], dim=1)


class VectorFeatures(nn.Module):
    """Product, query and history vectors made into features: projected, normalised, crossed.

    The cosines are taken between the vectors as given, so what the encoder knew about relevance
    arrives undiluted, and scaled by their own training statistics. One projection serves all
    three vectors, because they live in one space; products of its outputs are a learned cosine.

    Args:
        vector_dim: D.
        projected: K.
        derived: Whether cosines, the history and its products are among the features.
        presence: Whether the masks of missing vectors are.
        dropout: Of the projected features, which could otherwise name a product like an id.
    """

    cosine_mean_2: Tensor
    cosine_deviation_2: Tensor

    def __init__(
        self, vector_dim: int, *, projected: int, derived: bool, presence: bool, dropout: float
    ) -> None:
        super().__init__()
        self.derived = derived
        self.presence = presence
        self.project = nn.Linear(vector_dim, projected, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("cosine_mean_2", torch.zeros(2))
        self.register_buffer("cosine_deviation_2", torch.ones(2))
        self.crossed_width, self.plain_width = vector_widths(
            projected, derived=derived, presence=presence
        )

    def set_cosine_statistics(self, mean_2: Tensor, deviation_2: Tensor) -> None:
        """Fix the scale of the cosines, from training rows that have both vectors."""
        self.cosine_mean_2.copy_(mean_2)
        self.cosine_deviation_2.copy_(deviation_2)

    def cosines(
        self, product_BD: Tensor, query_BD: Tensor, history_BD: Tensor, present_B3: Tensor
    ) -> Tensor:
        """Return scaled cos(p, q) and cos(p, h), 0 (the mean) where absent, shape (B, 2)."""
        cosine_B2 = torch.stack(
            [_cosine(product_BD, query_BD), _cosine(product_BD, history_BD)], dim=1
        )
        scaled_B2 = (cosine_B2 - self.cosine_mean_2) / self.cosine_deviation_2
        return scaled_B2 * present_B3[:, :1] * present_B3[:, 1:]

    def forward(
        self, product_BD: Tensor, query_BD: Tensor, history_BD: Tensor, present_B3: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the crossed features, (B, crossed_width), and the plain ones, (B, plain_width)."""
        product_BK = _unit_variance(self.project(product_BD))
        query_BK = _unit_variance(self.project(query_BD))
        crossed = [product_BK, query_BK, product_BK * query_BK]
        plain = []
        if self.derived:
            history_BK = _unit_variance(self.project(history_BD))
            crossed += [history_BK, product_BK * history_BK]
            plain.append(self.cosines(product_BD, query_BD, history_BD, present_B3))
        if self.presence:
            plain.append(present_B3)
        plain_BW = torch.cat(plain, dim=1) if plain else product_BD[:, :0]
        return self.dropout(torch.cat(crossed, dim=1)), plain_BW


def vector_widths(projected: int, *, derived: bool, presence: bool) -> tuple[int, int]:
    """Return the widths of the crossed and the plain features of ``VectorFeatures``."""
    return (5 if derived else 3) * projected, (2 if derived else 0) + (3 if presence else 0)


class ClickNetwork(nn.Module):
    """Both towers and the head: the logit of a click.

    Args:
        production: The production tower.
        vectors: The embedding tower's features, or None for the baseline.
        single_tower: Whether the vector features feed the production tower (whose
            ``dense_width`` must count them) instead of a tower of their own.
        tower_mlp: Layer widths of the embedding tower.
        head: Layer widths of the head.
    """

    def __init__(
        self,
        production: ProductionTower,
        vectors: VectorFeatures | None,
        *,
        single_tower: bool,
        tower_mlp: Sequence[int],
        head: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.production = production
        self.vectors = vectors
        self.single_tower = single_tower
        width = production.out_width
        self.tower = None
        if vectors is not None and not single_tower:
            self.tower = mlp_of(vectors.crossed_width + vectors.plain_width, tower_mlp, dropout)
            # The plain features also go straight to the head, past the tower's bottleneck.
            width += tower_mlp[-1] + vectors.plain_width
        self.head = mlp_of(width, head, dropout)
        # The last layer also sees the towers' features as they are, so that what is plainly
        # additive (a good product, a close match) is learned at once and not through the head.
        self.logit = nn.Linear(width + (head[-1] if head else 0), 1)

    def set_base_rate(self, rate: float) -> None:
        """Start from predicting the click rate, so no step is spent on finding it."""
        with torch.no_grad():
            self.logit.weight.mul_(0.1)
            self.logit.bias.fill_(torch.logit(torch.tensor(rate)).item())

    def hidden(
        self,
        sparse_BF: Tensor,
        dense_BC: Tensor,
        product_BD: Tensor | None = None,
        query_BD: Tensor | None = None,
        history_BD: Tensor | None = None,
        present_B3: Tensor | None = None,
    ) -> Tensor:
        """Return what the last layer sees, shape (B, W)."""
        if self.vectors is None:
            joint_BW = self.production(sparse_BF, dense_BC)
        else:
            crossed_BW, plain_BW = self.vectors(product_BD, query_BD, history_BD, present_B3)
            if self.tower is None:
                dense_BC = torch.cat([dense_BC, crossed_BW, plain_BW], dim=1)
                joint_BW = self.production(sparse_BF, dense_BC)
            else:
                tower_BW = self.tower(torch.cat([crossed_BW, plain_BW], dim=1))
                production_BW = self.production(sparse_BF, dense_BC)
                joint_BW = torch.cat([production_BW, tower_BW, plain_BW], dim=1)
        return torch.cat([joint_BW, self.head(joint_BW)], dim=1) if len(self.head) else joint_BW

    def logit_of(self, hidden_BW: Tensor) -> Tensor:
        """Return the logits in float32 whatever the layers before computed in, shape (B,)."""
        return self.logit(hidden_BW.float()).squeeze(1)

    def loss(self, hidden_BW: Tensor, label_B: Tensor) -> Tensor:
        """Return the mean log loss in nats of labels in {0, 1}, given what ``hidden`` returned."""
        return functional.binary_cross_entropy_with_logits(self.logit_of(hidden_BW), label_B)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the logits, shape (B,), of what ``hidden`` takes."""
        return self.logit_of(self.hidden(*inputs))


def mlp_of(width: int, layers: Sequence[int], dropout: float) -> nn.Sequential:
    """Return Linear, ReLU, Dropout for every width in ``layers``; nothing for none."""
    modules: list[nn.Module] = []
    for out in layers:
        modules += [nn.Linear(width, out), nn.ReLU(), nn.Dropout(dropout)]
        width = out
    return nn.Sequential(*modules)


def _cosine(a_BD: Tensor, b_BD: Tensor) -> Tensor:
    """Cosine of each pair of rows, 0 where either is zero, shape (B,)."""
    return (functional.normalize(a_BD.float()) * functional.normalize(b_BD.float())).sum(1)


def _unit_variance(x_BK: Tensor) -> Tensor:
    """Rows of root mean square 1 (or zero), shape (B, K)."""
    return functional.normalize(x_BK.float()) * x_BK.shape[1] ** 0.5
