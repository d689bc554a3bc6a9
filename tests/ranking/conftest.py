"""A small shop whose impressions go all the way: pipeline, vectors, models, bundles."""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

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
from ranking.baselines import LogisticRegression
from ranking.export import export_bundle
from ranking.query_encoder import QUERY_ENCODER
from ranking.query_export import write_query_encoder
from ranking.step_kernels import StepKernels, step_kernels

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


@pytest.fixture
def kernels() -> StepKernels:
    """The compiled kernels; without a compiler the test is skipped."""
    built = step_kernels()
    if built is None:
        pytest.skip("this machine has no C compiler")
    return built


@pytest.fixture
def uncached(monkeypatch):
    """Let ``step_kernels`` look again, in this test alone."""
    step_kernels.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    step_kernels.cache_clear()


@pytest.fixture(params=["compiled", "torch"])
def either_kernels(request) -> None:
    """Run a test with the compiled kernels and with what stands in for them."""
    if request.param == "compiled":
        request.getfixturevalue("kernels")
    else:
        request.getfixturevalue("uncached").setenv("ADTOWER_KERNELS", "off")


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


@dataclass(frozen=True)
class ShopFront:
    """What is served: two bundles of one kind, the second trained on fewer rows."""

    bundle: Path
    other_bundle: Path
    impressions: pl.DataFrame
    """With the texts of the queries and the feature columns ``device`` and ``bid``."""
    model: DashClip
    """Made the query vectors of all queries but q0, q1 and q2."""


@pytest.fixture(scope="session")
def front(shop, small_model, tmp_path_factory) -> ShopFront:
    """Bundles with a query encoder, over columns of the impressions and parts of the time."""
    rng = np.random.default_rng(5)
    rows = len(shop.impressions)
    impressions = shop.impressions.with_columns(
        query=pl.col("query_id").str.replace("q", "thing "),
        device=pl.Series(rng.choice(["phone", "desk", "tv"], rows)),
        bid=pl.Series(rng.integers(1, 90, rows) / 10),
    )
    texts = impressions.select("query_id", "query").unique(maintain_order=True).sort("query_id")
    shop_products = pl.DataFrame(
        {
            "product_id": [f"p{product}" for product in range(30)],
            "title": [f"thing {product}" for product in range(30)],
            "category": [f"c{product % 4}" for product in range(30)],
            "price": [1.0 + product for product in range(30)],
        }
    )
    dataset = Dataset.from_tables(
        DatasetSpec(
            name="front",
            features=FeatureNames(
                sparse=("user_id", "product_id", "products.category", "device", "time.hour"),
                dense=("products.price", "bid"),
            ),
        ),
        products=shop_products,
        queries=texts,
        impressions=impressions,
        events=shop.pipeline._purchases.with_columns(kind=pl.lit("purchase")),
    )
    made_by = {"encoder_fingerprint": small_model.fingerprint}
    product_store = VectorStore.from_arrays(
        shop.product_store.ids, shop.product_store.vectors_VD, kind="product/test", **made_by
    )
    stored = texts.filter(~pl.col("query_id").is_in(["q0", "q1", "q2"]))
    query_store = VectorStore.from_arrays(
        stored["query_id"].to_list(),
        small_model.embed_queries(stored["query"].to_list()),
        kind="query/test",
        **made_by,
    )
    folder = tmp_path_factory.mktemp("front")
    bundles = []
    for name, trained in (("bundle", 480), ("other_bundle", 240)):
        pipeline = FeaturePipeline(dataset.spec, min_count=1).fit(dataset, impressions[:trained])
        vectors = join_vectors(
            product_store, query_store, pipeline.product_ids_, pipeline.query_ids_
        )
        examples = pipeline.transform(impressions)
        model = LogisticRegression().fit(
            examples.take(slice(0, trained)), examples.take(slice(480, 600)), vectors, seed=0
        )
        stores = product_store, query_store
        if not bundles:
            write_query_encoder(small_model, folder / QUERY_ENCODER, texts)
        out = export_bundle(
            model,
            pipeline,
            *stores,
            # Texts of queries without a vector would be encoded, which the trained model cannot.
            impressions[480:].drop("query"),
            folder / name,
            more_files=lambda at: shutil.copytree(folder / QUERY_ENCODER, at / QUERY_ENCODER),
        )
        bundles.append(out)
    return ShopFront(
        bundle=bundles[0], other_bundle=bundles[1], impressions=impressions, model=small_model
    )
