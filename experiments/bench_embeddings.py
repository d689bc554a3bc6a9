"""How fast adtower trains and runs encoders, beside Hugging Face's classes used plainly.

Shape letters: V texts, D embedding size.
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path

import polars as pl
from PIL import Image

from embeddings.baselines import text_vectors
from embeddings.stage1 import train_stage1
from embeddings.stage1_config import Stage1Config
from embeddings.weights import find_text_weights
from experiments.bench_data import texts_of
from experiments.bench_embedding_peers import (
    encode_by_sentence_transformers,
    save_blip,
    train_blip_plainly,
)
from features.dataset import Dataset

IMAGE_PX = 112
PHOTO_PX = 300
"""Side of the JPEGs that are decoded: a shop's preview image."""
LAYERS = 6
ROUNDS = 3
"""Encoders take turns this often and the best time of each counts."""

Metrics = dict[str, float]


def bench_embeddings(
    world: Dataset, *, products: int = 192, batch: int = 32, epochs: int = 2, texts: int = 600
) -> Metrics:
    """Time image-text training and text encoding beside their peers.

    Training: a BLIP of MiniLM's text size and a ViT of width 192, six layers each, from the same
    random checkpoint on the same JPEGs and titles, with ITC and ITM over whole batches. All that a
    run does from encoded images on is counted: adtower decodes once, the peer every epoch.

    Args:
        world: A generated dataset.
        products: How many train.
        batch: Products of one update.
        epochs: Passes.
        texts: Titles and queries to encode.

    Returns:
        ``speedup.embedding_training`` and ``speedup.sentence_transformers``: the peer's time over
        adtower's. ``sentence_transformers.min_cosine`` is the least cosine between the two vectors
        of a text; ``embedding_training.itc_first`` and ``.peer_loss_first`` show that both
        networks begin alike.
    """
    return bench_training(
        world, products=products, batch=batch, epochs=epochs
    ) | bench_sentence_transformers(texts_of(world, texts))


def bench_training(world: Dataset, *, products: int, batch: int, epochs: int) -> Metrics:
    """Train the same BLIP both ways for the same number of steps."""
    weights = find_text_weights(require_pretrained=True)
    assert weights.path is not None
    table = photographed(world.table("products").head(products))
    steps = epochs * (len(table) // batch)
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_blip(
            Path(scratch), weights.path / "tokenizer.json", image_px=IMAGE_PX, seed=0
        )
        config = Stage1Config(
            text_weights=str(folder),
            image_weights=str(folder),
            image_px=IMAGE_PX,
            fusion_layers=LAYERS,
            trainable_text_layers=LAYERS,
            embedding_dim=128,
            steps=steps,
            batch=batch,
            itm_rows=batch,
            text_learning_rate=1e-4,
            warmup_steps=0,
            alarms=False,
        )
        began = time.perf_counter()
        model = train_stage1(table, config, seed=0)
        own_s = time.perf_counter() - began
        began = time.perf_counter()
        losses = train_blip_plainly(
            table,
            folder,
            image_px=IMAGE_PX,
            steps=steps,
            batch=batch,
            learning_rate=1e-4,
            seed=0,
        )
        peer_s = time.perf_counter() - began
    return {
        "embedding_training.images_per_s": steps * batch / own_s,
        "embedding_training.peer_images_per_s": steps * batch / peer_s,
        "embedding_training.loss_first": model.history["stage1"]["loss"][0],
        "embedding_training.peer_loss_first": losses[0],
        "speedup.embedding_training": peer_s / own_s,
    }


def bench_sentence_transformers(texts: list[str]) -> Metrics:
    """Encode texts with MiniLM both ways, from weights on disk to vectors in memory."""
    weights = find_text_weights(require_pretrained=True)
    assert weights.path is not None
    own_s, peer_s = float("inf"), float("inf")
    own_VD = peer_VD = text_vectors(texts[:2], weights)
    for _ in range(ROUNDS):
        began = time.perf_counter()
        own_VD = text_vectors(texts, weights)
        own_s = min(own_s, time.perf_counter() - began)
        began = time.perf_counter()
        peer_VD = encode_by_sentence_transformers(texts, weights.path)
        peer_s = min(peer_s, time.perf_counter() - began)
    return {
        "sentence_transformers.texts_per_s": len(texts) / own_s,
        "sentence_transformers.peer_texts_per_s": len(texts) / peer_s,
        "sentence_transformers.min_cosine": float((own_VD * peer_VD).sum(axis=1).min()),
        "speedup.sentence_transformers": peer_s / own_s,
    }


def photographed(products: pl.DataFrame) -> pl.DataFrame:
    """The products that have an image, each as a JPEG of ``PHOTO_PX`` a side."""
    shown = products.filter(pl.col("image").is_not_null())
    photos = []
    for content in shown["image"].to_list():
        file = io.BytesIO()
        image = Image.open(io.BytesIO(content)).convert("RGB")
        image.resize((PHOTO_PX, PHOTO_PX)).save(file, "JPEG", quality=90)
        photos.append(file.getvalue())
    return shown.with_columns(pl.Series("image", photos, dtype=pl.Binary))
