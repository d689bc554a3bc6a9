"""Query texts encoded without torch: the vectors of the torch encoder, or none."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from embeddings.encoders import initialise_
from embeddings.model import DashClip
from embeddings.precision import FLOAT32
from ranking import query_export
from ranking.query_encoder import OnnxQueryEncoder, QueryEncoderSettings
from ranking.query_export import top10_overlap, write_query_encoder

QUERIES = pl.DataFrame(
    {
        "query_id": ["q0", "q1", "q2", "q3"],
        "query": ["red milk", "old green tea", "red milk", "blue cup bread"],
    }
)


FAMILIES = {
    "CLIP": {"norm": "pre", "causal": True, "pool": "last", "activation": "quick_gelu"},
    "SigLIP": {"norm": "pre", "pool": "last", "head": 24, "pad_token": 1},
}


@pytest.fixture(scope="module", params=["text encoder", "own layers", "CLIP", "SigLIP"])
def model(request, small_model):
    """A tiny random model: of each family, and with the parts that stage 2 adds."""
    if request.param == "text encoder":
        return small_model
    if request.param in FAMILIES:
        text = small_model.architecture.text.model_copy(update=FAMILIES[request.param])
        architecture = small_model.architecture.model_copy(update={"text": text})
        tokenizer = Tokenizer.from_str(small_model.tokenizer.to_str())
        if text.pad_token is not None:
            tokenizer.enable_padding(length=text.positions, pad_id=text.pad_token)
        model = DashClip(architecture, tokenizer, "random")
        initialise_(model, torch.Generator().manual_seed(2))
        model._precision = FLOAT32
        return model.eval()
    aligned = small_model.with_alignment(query_layers=1, projection_width=0)
    initialise_(aligned.query_encoder.projection, torch.Generator().manual_seed(1))
    aligned._precision = FLOAT32
    return aligned.eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders") / "query_encoder"
    write_query_encoder(model, folder, QUERIES)
    return folder


def test_vectors_are_those_of_the_torch_encoder(model, folder):
    texts = ["red milk", "tea", "", "never seen", "cup " * 40, "old blue bread cup"]
    found_QD = OnnxQueryEncoder.load(folder).encode(texts)
    np.testing.assert_allclose(found_QD, model.embed_queries(texts), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found_QD, axis=1), 1, atol=1e-6)
    assert np.abs(found_QD[0] - found_QD[1]).max() > 0.001


def test_the_settings_say_what_was_measured(model, folder):
    settings = OnnxQueryEncoder.load(folder).settings
    assert settings.encoder_fingerprint == model.fingerprint
    assert settings.max_difference < 1e-5
    assert settings.min_cosine > 0.9999
    assert (settings.precision, settings.dim) == ("fp32", model.dim)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dim": 0}, "dim is 0; must be a whole number from 1"),
        ({"max_tokens": "8"}, "max_tokens is '8'; must be a whole number from 2"),
        ({"precision": "fp16"}, "precision is 'fp16'; must be one of fp32, int8"),
        ({"min_cosine": None}, "min_cosine is None; must be a number"),
        ({"encoder_fingerprint": 7}, "encoder_fingerprint is 7; must be text"),
        ({"colour": "red"}, "not those of a query encoder: .*colour"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder, tmp_path, changed, message):
    copy = shutil.copytree(folder, tmp_path / "query_encoder")
    fields = json.loads((copy / "settings.json").read_text())
    (copy / "settings.json").write_text(json.dumps({**fields, **changed}))
    with pytest.raises(ValueError, match=rf"settings\.json: .*{message}"):
        OnnxQueryEncoder.load(copy)


def test_settings_survive_writing_and_reading(folder):
    text = (folder / "settings.json").read_text()
    assert QueryEncoderSettings.from_json(text).to_json() == text
    with pytest.raises(ValueError, match="not those of a query encoder"):
        QueryEncoderSettings.from_json("[]")


def test_embedding_leaves_the_fingerprint_of_a_model_alone(model):
    before = model.fingerprint
    model.embed_queries(["red milk"])
    assert model.fingerprint == before


def test_a_text_has_one_vector_whatever_it_is_asked_with(folder):
    encoder = OnnxQueryEncoder.load(folder)
    texts = ["red milk", "old green tea", "tea", "blue cup bread", "red milk"]
    together_QD = encoder.encode(texts)
    for text, together_D in zip(texts, together_QD, strict=True):
        alone_1D = OnnxQueryEncoder.load(folder).encode([text])
        np.testing.assert_allclose(alone_1D[0], together_D, atol=1e-6)
    np.testing.assert_array_equal(together_QD[0], together_QD[4])


def test_the_cache_keeps_what_was_asked_last(folder):
    encoder = OnnxQueryEncoder.load(folder, cache_size=2)
    encoder.encode(["red"])
    encoder.encode(["green"])
    encoder.encode(["red"])
    encoder.encode(["blue"])
    assert [encoder.cached(text) for text in ("red", "green", "blue")] == [True, False, True]


def test_a_cached_text_is_not_encoded_again(folder, monkeypatch):
    encoder = OnnxQueryEncoder.load(folder)
    first_1D = encoder.encode(["red tea"])
    monkeypatch.setattr(encoder, "_session", None)
    np.testing.assert_array_equal(encoder.encode(["red tea", "red tea"])[1], first_1D[0])


def test_no_texts_give_no_vectors(model, folder):
    assert OnnxQueryEncoder.load(folder).encode([]).shape == (0, model.dim)


def test_a_text_without_a_token_is_refused(folder, monkeypatch):
    encoder = OnnxQueryEncoder.load(folder)
    bare = Tokenizer(models.WordLevel({"tea": 0}, unk_token="tea"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    monkeypatch.setattr(encoder, "_tokenizer", bare)
    with pytest.raises(ValueError, match="the query text ' ' has no token"):
        encoder.encode(["tea", " "])


def test_texts_that_training_knew_have_their_first_id(folder):
    encoder = OnnxQueryEncoder.load(folder)
    assert encoder.known_id("red milk") == "q0"
    assert encoder.known_id("Red milk") is None


def test_an_encoder_that_differs_is_not_exported(small_model, tmp_path, monkeypatch):
    write = query_export._write_onnx

    def wrong(graph, path, max_tokens):
        weight = graph.model.itc_text.weight
        with torch.no_grad():
            weight[0, 0] += 0.5
        write(graph, path, max_tokens)
        with torch.no_grad():
            weight[0, 0] -= 0.5

    monkeypatch.setattr(query_export, "_write_onnx", wrong)
    with pytest.raises(ValueError, match="differs from the torch one by"):
        write_query_encoder(small_model, tmp_path / "encoder", QUERIES)


def test_int8_keeps_to_its_gate_or_is_refused(small_model, tmp_path, monkeypatch):
    product_PD = np.random.default_rng(0).normal(size=(200, small_model.dim)).astype(np.float32)
    options = {"precision": "int8", "product_PD": product_PD}
    settings = write_query_encoder(small_model, tmp_path / "int8", QUERIES, **options)
    assert settings.precision == "int8"
    assert 0.99 <= settings.min_cosine < 0.999999
    assert settings.top10_overlap >= 0.9
    monkeypatch.setattr(query_export, "MIN_INT8_COSINE", 1.0)
    with pytest.raises(ValueError, match=r"int8 does not pass its gate .* precision='fp32'"):
        write_query_encoder(small_model, tmp_path / "strict", QUERIES, **options)
    with pytest.raises(ValueError, match="needs product_PD"):
        write_query_encoder(small_model, tmp_path / "blind", QUERIES, precision="int8")


def test_overlap_by_hand():
    # Twenty products on a line: one text looks up it, the other down it.
    product_PD = np.stack([np.arange(20.0), np.zeros(20)], axis=1)
    up_1D = np.array([[1.0, 0.0]])
    assert top10_overlap(up_1D, up_1D, product_PD) == 1.0
    assert top10_overlap(up_1D, -up_1D, product_PD) == 0.0
    assert top10_overlap(up_1D, -up_1D, product_PD[:10]) == 1.0


def test_queries_too_long_for_the_graph_are_refused(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(query_export, "MAX_TOKENS", 7)
    with pytest.raises(ValueError, match="max_query_tokens=8, but"):
        write_query_encoder(small_model, tmp_path / "encoder", QUERIES)
    assert not (tmp_path / "encoder").exists()


def test_a_folder_that_lacks_a_file_is_refused(folder, tmp_path):
    copy = tmp_path / "encoder"
    shutil.copytree(folder, copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no query encoder: tokenizer.json missing"):
        OnnxQueryEncoder.load(copy)
    with pytest.raises(ValueError, match="cache_size is 0"):
        OnnxQueryEncoder.load(folder, cache_size=0)
