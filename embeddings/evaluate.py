"""Judging embeddings without a click."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embeddings.store import VectorStore


def evaluate_embeddings(
    product_store: VectorStore,
    query_store: VectorStore,
    products: pl.DataFrame,
    queries: pl.DataFrame,
    relevance_test: pl.DataFrame,
) -> dict[str, float]:
    """recall@10, ndcg@10, mrr, auc_2v0, auc_2v1, auc_1v0, category_f1 (where there is a category)."""
    raise NotImplementedError


def evaluate_tfidf(
    products: pl.DataFrame, queries: pl.DataFrame, relevance_test: pl.DataFrame
) -> dict[str, float]:
    raise NotImplementedError


def figure_data(
    product_store: VectorStore, query_store: VectorStore, relevance_test: pl.DataFrame
) -> dict[int, NDArray[np.float32]]:
    """Cosines of the test pairs by relevance label, for Figure 5."""
    raise NotImplementedError
