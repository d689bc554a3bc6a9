"""What sentence-transformers makes of an exported query encoder is what the encoder makes."""

import warnings

import numpy as np
import pytest
import torch

from embeddings.image_encoder import ImageShape
from embeddings.model import DashClip
from embeddings.precision import FLOAT32
from embeddings.sentence_transformer_form import (
    refuse_other_than_bert,
    write_sentence_transformer_,
)
from embeddings.weights import find_text_weights

TEXTS = [
    "",
    " ",
    "red cup",
    "round old blue jar",
    "something unheard of",
    "  tin   pan ",
    "white pot " * 40,
    "red",
    "RED, Cup!",
    "ü\u00a0東京",
]


def new_model(weights, *, stage, tokens=8):
    model = DashClip.initial(
        find_text_weights(str(weights)),
        image=ImageShape(pixels=16, patch=8, width=32, layers=1, heads=2),
        fusion_layers=1,
        trainable_text_layers=1,
        embedding_dim=16,
        text_columns=("title",),
        max_text_tokens=8,
        max_query_tokens=tokens,
        generator=torch.Generator().manual_seed(0),
    )
    if stage == 2:
        torch.manual_seed(1)
        model = model.with_alignment(1, 8)
        for weight in model.query_encoder.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    model.stage = stage
    model.use_precision(FLOAT32)
    return model


def opened(folder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("weights", ["tiny", "random"])
def test_sentence_transformers_gives_equal_vectors(tiny_weights, tmp_path, stage, weights):
    # "random" reads single bytes, spaces included, and has positions for far longer texts.
    source, tokens = (tiny_weights, 8) if weights == "tiny" else ("random", 64)
    model = new_model(source, stage=stage, tokens=tokens)
    other = opened(write_sentence_transformer_(model, tmp_path / "st"))
    assert other.max_seq_length == tokens
    ours_QE, theirs_QE = model.embed_queries(TEXTS), other.encode(TEXTS)
    assert np.linalg.norm(ours_QE[2] - ours_QE[3]) > 0.01
    np.testing.assert_allclose(theirs_QE, ours_QE, atol=1e-5)


def test_minilm_gives_equal_vectors(tmp_path):
    weights = find_text_weights()
    if weights.path is None:
        pytest.skip("the weights of MiniLM are not installed")
    model = new_model(weights.path, stage=2, tokens=24)
    other = opened(write_sentence_transformer_(model, tmp_path / "st"))
    np.testing.assert_allclose(other.encode(TEXTS), model.embed_queries(TEXTS), atol=1e-5)


def test_encoders_that_are_no_bert_are_refused(tiny_weights):
    shape = new_model(tiny_weights, stage=1).architecture.text
    refuse_other_than_bert(shape)
    for change in ({"causal": True}, {"norm": "pre"}, {"pool": "last"}, {"head": 8},
                   {"pad_token": 1}):  # fmt: skip
        with pytest.raises(ValueError, match=f"has {next(iter(change))}="):
            refuse_other_than_bert(shape.model_copy(update=change))


def test_nothing_that_exists_is_written_over(tiny_weights, tmp_path):
    with pytest.raises(ValueError, match="exists already"):
        write_sentence_transformer_(new_model(tiny_weights, stage=1), tmp_path)
