"""A tiny BERT checkpoint on disk and a toy catalogue whose images and titles name one colour."""

import io
import json

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from embeddings.stage1_config import Stage1Config
from embeddings.stage2_config import Stage2Config

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (40, 50, 220),
    "yellow": (230, 220, 40),
    "black": (15, 15, 15),
    "white": (240, 240, 240),
}
THINGS = ("cup", "box", "jar", "bag", "tin", "pot", "mug", "pan")
WORDS = [*COLOURS, *THINGS, "round", "old"]


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """Folder of a random BERT of two layers, saved by transformers, with a word tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=128)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    return folder


def paint(colour, seed):
    """PNG bytes of a noisy square of one colour."""
    noise = np.random.default_rng(seed).normal(0, 12, (16, 16, 3))
    pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def products():
    """48 products: each thing in each colour, the colour also in the image."""
    rows = [(colour, thing) for thing in THINGS for colour in COLOURS]
    return pl.DataFrame(
        {
            "product_id": [f"p{i}" for i in range(len(rows))],
            "title": [f"{colour} {thing}" for colour, thing in rows],
            "category": [colour for colour, _ in rows],
            "image": [paint(colour, i) for i, (colour, _) in enumerate(rows)],
        }
    )


@pytest.fixture(scope="session")
def queries():
    """One query a product, words in another order, and a query a colour."""
    texts = [f"{t} {c}" for t in THINGS for c in COLOURS] + list(COLOURS)
    return pl.DataFrame({"query_id": [f"q{i}" for i in range(len(texts))], "query": texts})


@pytest.fixture(scope="session")
def relevance(products, queries):
    """2 where all words of the query are in the title, 1 where some are, 0 where none."""
    rows = []
    rng = np.random.default_rng(0)
    for query_id, query in queries.iter_rows():
        for product_id, title in products.select("product_id", "title").iter_rows():
            shared = set(query.split()) & set(title.split())
            label = 2 if len(shared) == len(query.split()) else int(bool(shared))
            if label or rng.random() < 0.1:
                rows.append((query_id, product_id, label))
    return pl.DataFrame(rows, schema=["query_id", "product_id", "label"], orient="row")


@pytest.fixture(scope="session")
def stage1_config(tiny_weights):
    return Stage1Config(
        text_weights=str(tiny_weights),
        max_text_tokens=8,
        max_query_tokens=8,
        image_px=16,
        patch_px=8,
        image_width=32,
        image_layers=1,
        image_heads=2,
        fusion_layers=1,
        trainable_text_layers=1,
        embedding_dim=16,
        steps=60,
        batch=16,
        itm_rows=8,
        learning_rate=3e-3,
        text_learning_rate=1e-3,
        warmup_steps=5,
    )


@pytest.fixture(scope="session")
def stage2_config():
    return Stage2Config(
        query_layers=1,
        projection_width=32,
        steps=60,
        batch=16,
        learning_rate=3e-3,
        query_learning_rate=1e-3,
        warmup_steps=5,
    )
