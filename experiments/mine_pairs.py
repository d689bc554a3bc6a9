"""Pairs of a dataset that are worth a label: its retrievers, its traffic, what is labelled."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl

from embeddings.baselines import off_the_shelf_products, off_the_shelf_queries
from embeddings.bm25 import Bm25Scores
from embeddings.evaluate import CosineScores, Scores
from embeddings.model import DashClip
from embeddings.relevance.mining import mine_pairs
from embeddings.relevance_split import is_test_query
from embeddings.store import VectorStore
from experiments.progress import Progress, Silent
from features.dataset import Dataset

TEXT_COLUMNS = ("title", "brand", "description")
Side = Literal["train", "test", "all"]


def mine_dataset(
    data: Dataset,
    *,
    budget: int,
    model: Path | None = None,
    top: int = 20,
    side: Side = "train",
    seed: int = 0,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Choose pairs on which BM25, the off-the-shelf encoder and the current model disagree.

    Args:
        data: Has products and queries; relevance and impressions are used where they are there,
            to leave out labelled pairs and to tell head from tail.
        budget: Pairs at most.
        model: Folder of a trained model, the third retriever.
        top: Products of each retriever and query that are candidates.
        side: Choose pairs of training queries, of test queries, or of all.
        seed: Decides which queries come first where the budget does not reach all.
        progress: Told of the stages.

    Returns:
        As ``embeddings.relevance.mining.mine_pairs``.

    Raises:
        ValueError: As ``mine_pairs``; or if a table or the model is missing.
    """
    data.require("products", "queries", needed_for="choosing pairs to label")
    if budget < 1:
        raise ValueError(f"budget={budget} must be at least 1, the number of pairs to label")
    progress = progress or Silent()
    products, queries = data.table("products"), data.table("queries")
    asked = queries
    if side != "all":
        tests = [is_test_query(text) == (side == "test") for text in queries["query"].to_list()]
        asked = queries.filter(pl.Series(tests, dtype=pl.Boolean))
    retrievers: dict[str, Scores] = {}
    with progress.stage("indexing words"):
        retrievers["bm25"] = Bm25Scores(products, queries, text_columns=TEXT_COLUMNS)
    with progress.stage("embedding off the shelf"):
        retrievers["off_the_shelf"] = CosineScores(
            off_the_shelf_products(products, text_columns=TEXT_COLUMNS),
            off_the_shelf_queries(asked),
        )
    if model is not None:
        with progress.stage("embedding by the model"):
            retrievers["model"] = _model_scores(data, model, products, asked)
    with progress.stage("comparing ranks"):
        return mine_pairs(
            asked,
            retrievers,
            budget=budget,
            top=top,
            labelled=data.table("relevance") if data.has("relevance") else None,
            traffic=_traffic(data),
            seed=seed,
        )


def _model_scores(
    data: Dataset, folder: Path, products: pl.DataFrame, queries: pl.DataFrame
) -> CosineScores:
    model = DashClip.load(folder)
    product_PE = model.embed_products(products, image_root=data.folder)
    query_QE = model.embed_queries(queries["query"].to_list())
    return CosineScores(
        VectorStore.from_arrays(
            products["product_id"].to_list(),
            product_PE,
            kind="product/multimodal",
            encoder_fingerprint=model.fingerprint,
        ),
        VectorStore.from_arrays(
            queries["query_id"].to_list(),
            query_QE,
            kind="query",
            encoder_fingerprint=model.fingerprint,
        ),
    )


def _traffic(data: Dataset) -> pl.DataFrame | None:
    """How many requests each query had."""
    if not data.has("impressions"):
        return None
    log = data.table("impressions").filter(pl.col("query_id").is_not_null())
    return log.group_by("query_id").agg(pl.col("request_id").n_unique().alias("count"))
