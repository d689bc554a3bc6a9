"""A small shop whose impressions go all the way: pipeline, vectors, models, bundles."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from embeddings.encoders import ImageShape, TextShape, initialise_
from embeddings.model import Architecture, DashClip
from embeddings.precision import FLOAT32
from embeddings.store import VectorStore
from features.dataset import Dataset
from features.embedding_join import Vectors, join_vectors
from features.examples import Examples
from features.pipeline import FeaturePipeline
from features.schema import DatasetSpec, FeatureNames

START = datetime(2024, 3, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Shop:
    """Raw impressions, the pipeline fitted on them, and vectors of most of the catalogue."""

    impressions: pl.DataFrame
    pipeline: FeaturePipeline
    examples: Examples
    product_store: VectorStore
    query_store: VectorStore
    vectors: Vectors


@pytest.fixture(scope="session")
def shop() -> Shop:
    """30 products (3 without a vector), 12 queries, 25 users, 600 impressions, 40 purchases."""
    rng = np.random.default_rng(3)
    product_PD, query_QD = rng.normal(size=(30, 6)), rng.normal(size=(12, 6))
    product_N, query_N = rng.integers(30, size=600), rng.integers(12, size=600)
    user_N = rng.integers(25, size=600)
    logit_N = -1.0 + 0.6 * (product_PD[product_N] * query_QD[query_N]).sum(1)
    impressions = pl.DataFrame(
        {
            "request_id": [f"r{row // 3}" for row in range(600)],
            "time": [START + timedelta(hours=row // 3) for row in range(600)],
            "user_id": [f"u{user}" for user in user_N],
            "query_id": [f"q{query}" for query in query_N],
            "product_id": [f"p{product}" for product in product_N],
            "position": [row % 3 + 1 for row in range(600)],
            "clicked": (rng.random(600) < 1 / (1 + np.exp(-logit_N))).astype(int),
        }
    )
    dataset = Dataset.from_tables(
        DatasetSpec(
            name="shop",
            features=FeatureNames(
                sparse=("user_id", "query_id", "product_id", "products.category"),
                dense=("products.price",),
            ),
        ),
        products=pl.DataFrame(
            {
                "product_id": [f"p{product}" for product in range(30)],
                "title": [f"thing {product}" for product in range(30)],
                "category": [f"c{product % 4}" for product in range(30)],
                "price": [None if product == 5 else 1.0 + product for product in range(30)],
            }
        ),
        queries=pl.DataFrame(
            {
                "query_id": [f"q{query}" for query in range(12)],
                "query": [f"thing {query}" for query in range(12)],
            }
        ),
        impressions=impressions,
        events=pl.DataFrame(
            {
                "user_id": [f"u{user}" for user in rng.integers(15, size=40)],
                "product_id": [f"p{product}" for product in rng.integers(30, size=40)],
                "time": [START + timedelta(hours=int(h)) for h in rng.integers(200, size=40)],
                "kind": ["purchase"] * 40,
            }
        ),
    )
    pipeline = FeaturePipeline(dataset.spec, min_count=1).fit(dataset, impressions[:480])
    product_store = VectorStore.from_arrays(
        [f"p{product}" for product in range(27)],
        product_PD[:27],
        kind="product/test",
        encoder_fingerprint="encoder",
    )
    query_store = VectorStore.from_arrays(
        [f"q{query}" for query in range(12)],
        query_QD,
        kind="query/test",
        encoder_fingerprint="encoder",
    )
    return Shop(
        impressions=impressions,
        pipeline=pipeline,
        examples=pipeline.transform(impressions),
        product_store=product_store,
        query_store=query_store,
        vectors=join_vectors(
            product_store, query_store, pipeline.product_ids_, pipeline.query_ids_
        ),
    )


@pytest.fixture(scope="session")
def small_model() -> DashClip:
    """A random untrained DashCLIP model over a dozen words, in float32, vectors of 6."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "thing", "red", "green", "blue", "milk", "bread",
             "tea", "old", "cup", *map(str, range(10))]  # fmt: skip
    tokenizer = Tokenizer(
        models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    architecture = Architecture(
        text=TextShape(
            vocabulary=len(words), width=32, layers=2, heads=4, feed_forward=64, positions=16
        ),
        image=ImageShape(pixels=16, patch=8, width=16, layers=1, heads=2),
        fusion_layers=1,
        frozen_text_layers=1,
        embedding_dim=6,
        text_columns=("title",),
        max_text_tokens=8,
        max_query_tokens=8,
    )
    model = DashClip(architecture, tokenizer, "random")
    initialise_(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        # At .02 all texts would have nearly one vector.
        for layer in model.text.parameters():
            layer.mul_(8)
    model._precision = FLOAT32
    return model.eval()
