"""A click network put together as its settings say, for given features and vectors."""

from __future__ import annotations

import torch

from ranking.attention import HistoryAttention
from ranking.contract import InputSignature
from ranking.frequency_gate import FrequencyGate
from ranking.fused_tables import FusedTables, TableGroup, id_tables
from ranking.model import ClickNetwork, ProductionTower
from ranking.position import PositionTower
from ranking.row_memory import without_rows
from ranking.tower_config import TowerConfig
from ranking.vector_features import VectorFeatures, vector_widths


def build_network(
    config: TowerConfig, signature: InputSignature, history_rows: int | None = None
) -> tuple[ClickNetwork, FusedTables | TableGroup | None]:
    """Return an unfitted network for these features and vectors, and its id tables.

    Weights are drawn from torch's global generator.

    Args:
        config: Its shape.
        signature: The features and vectors that models are given.
        history_rows: Rows of the table that attention by ids looks products up in.
    """
    names = [*signature.sparse_names]
    sizes = [*signature.vocabulary_sizes]
    for level in range(config.semantic_levels):
        names.append(f"semantic_id.{level}")
        sizes.append(config.semantic_codes ** (level + 1) + 1)
    tables = None
    if names:
        tables = FusedTables(names, sizes, config.embedding_dim, learning_rate=config.sparse_lr)
    # The production tower is drawn before the embedding tower, so that with one seed it starts
    # from the same weights whether or not there are vectors.
    beside = config.use_vectors and config.single_tower
    widths = vector_widths(config.projected_dim, derived=config.derived, presence=config.presence)
    attended = 0
    if config.attention != "none":
        attended = 2 * (config.embedding_dim if config.attention == "ids" else config.projected_dim)
    production = ProductionTower(
        tables,
        sparse_width=len(names) * config.embedding_dim,
        dense_width=len(signature.dense_names) + (sum(widths) if beside else 0) + attended,
        cross_layers=config.cross_layers,
        cross_rank=config.cross_rank,
        mlp=config.production_mlp,
        dropout=config.dropout,
    )
    vectors = None
    if config.use_vectors:
        assert signature.vectors_dim is not None
        vectors = VectorFeatures(
            signature.vectors_dim,
            projected=config.projected_dim,
            derived=config.derived,
            presence=config.presence,
            dropout=config.vector_dropout,
        )
    network = ClickNetwork(
        production,
        vectors,
        single_tower=config.single_tower,
        tower_mlp=config.tower_mlp,
        head=config.head,
        dropout=config.dropout,
        purchase_mlp=config.purchase_mlp if config.entire_space else None,
    )
    # Drawn last, so that what comes before starts from the same weights with or without them.
    groups = [] if tables is None else [tables]
    if config.attention != "none":
        network.attention, own = _attention(config, signature, history_rows)
        groups += own
    if config.position_slots:
        network.position = PositionTower(config.position_slots, dropout=config.position_dropout)
    if config.frequency_gate is not None:
        assert signature.vectors_dim is not None
        gated = signature.sparse_names.index(config.frequency_gate)
        rows = signature.vocabulary_sizes[gated]
        production.gated = gated
        production.gate = FrequencyGate(rows, signature.vectors_dim, config.embedding_dim)
    return network, TableGroup(*groups) if len(groups) > 1 else next(iter(groups), None)


def _attention(
    config: TowerConfig, signature: InputSignature, history_rows: int | None
) -> tuple[HistoryAttention, list[FusedTables]]:
    """The attention over the history, and its id table where it has one."""
    tables: list[FusedTables] = []
    if config.attention == "ids":
        assert history_rows is not None
        tables = [
            FusedTables(
                ["history"], [history_rows], config.embedding_dim, learning_rate=config.sparse_lr
            )
        ]
    attention = HistoryAttention(
        tables[0] if tables else None,
        None if tables else signature.vectors_dim,
        columns=1 + signature.history_length,
        width=config.embedding_dim if tables else config.projected_dim,
        mlp=config.attention_mlp,
        softmax=config.attention_softmax,
    )
    return attention, tables


def network_to_fill(
    config: TowerConfig,
    signature: InputSignature,
    history_rows: int | None = None,
    *,
    rows: bool = True,
) -> ClickNetwork:
    """Return a network whose weights are about to be read: id tables are not drawn.

    Torch's global generator is left as it is.

    Args:
        config: As ``build_network``.
        signature: Likewise.
        history_rows: Likewise.
        rows: False for id tables without rows, which other ranks hold.
    """
    with torch.random.fork_rng(devices=[]), without_rows():
        network, _ = build_network(config, signature, history_rows)
    if rows:
        for _, tables in id_tables(network):
            tables.hold_again_()
    return network
