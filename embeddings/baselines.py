"""Vectors that cost no training: what DashCLIP's have to beat."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from embeddings.store import VectorStore


def off_the_shelf_products(products: pl.DataFrame, *, text_weights: str = "minilm") -> VectorStore:
    raise NotImplementedError


def off_the_shelf_queries(queries: pl.DataFrame, *, text_weights: str = "minilm") -> VectorStore:
    raise NotImplementedError


def random_vectors(ids: Sequence[str], dim: int, seed: int) -> VectorStore:
    raise NotImplementedError


def shuffled(store: VectorStore, seed: int) -> VectorStore:
    raise NotImplementedError
