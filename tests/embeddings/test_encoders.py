import numpy as np
import pytest
import torch
from transformers import BertModel

from embeddings.encoders import (
    MultimodalEncoder,
    TextEncoder,
    initialise_,
    mean_pool,
)
from embeddings.image_encoder import ImageEncoder, ImageShape
from embeddings.pretrained import load_text_, read_text_shape
from embeddings.text import load_tokenizer, tokenize
from embeddings.weights import find_text_weights

IMAGE = ImageShape(pixels=16, patch=8, width=24, layers=1, heads=2)


@pytest.fixture
def text_encoder(tiny_weights):
    encoder = TextEncoder(read_text_shape(tiny_weights))
    load_text_(encoder, tiny_weights)
    return encoder.eval()


@pytest.mark.parametrize("checkpoint", ["minilm", "tiny"])
def test_bert_weights_load_exactly(checkpoint, tiny_weights):
    weights = find_text_weights("minilm" if checkpoint == "minilm" else str(tiny_weights))
    ours = TextEncoder(read_text_shape(weights.path))
    load_text_(ours, weights.path)
    theirs = BertModel.from_pretrained(weights.path, add_pooling_layer=False).eval()
    torch.manual_seed(0)
    ids = torch.randint(4, ours.shape.vocabulary, (5, 14))
    attend = torch.arange(14) < torch.tensor([14, 3, 9, 14, 6])[:, None]
    with torch.no_grad():
        a = ours(ids, attend)
        b = theirs(input_ids=ids, attention_mask=attend.long()).last_hidden_state
    assert float((a - b)[attend].abs().max()) < 1e-5


def test_padding_changes_nothing(text_encoder, tiny_weights):
    tokens = tokenize(load_tokenizer(tiny_weights), ["red cup", "old round blue box"], 16)
    with torch.no_grad():
        both = mean_pool(
            text_encoder(*tokens.padded(torch.tensor([0, 1]))),
            tokens.padded(torch.tensor([0, 1]))[1],
        )
        ids, attend = tokens.padded(torch.tensor([0]))
        alone = mean_pool(text_encoder(ids, attend), attend)
    torch.testing.assert_close(both[:1], alone)


def multimodal(text_encoder):
    encoder = MultimodalEncoder(text_encoder.shape, IMAGE, fusion_layers=1)
    initialise_(encoder, torch.Generator().manual_seed(0))
    return encoder


def test_an_untrained_multimodal_encoder_is_the_text_encoder_read_at_its_first_token(text_encoder):
    encoder = multimodal(text_encoder)
    ids = torch.randint(4, 20, (3, 6))
    attend = torch.ones(3, 6, dtype=torch.bool)
    with torch.no_grad():
        expected = text_encoder(ids, attend)[:, 0]
        keys_values = encoder.keys_values(torch.randn(3, 4, IMAGE.width))
        for kv in (None, keys_values):
            got = encoder(text_encoder, text_encoder.embed(ids), attend, kv, first=0)
            torch.testing.assert_close(got, expected)


def test_a_trained_multimodal_encoder_reads_the_image_and_its_own_first_token(text_encoder):
    encoder = multimodal(text_encoder)
    ids, attend = torch.randint(4, 20, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    with torch.no_grad():
        encoder.cross[0].out.weight.normal_(std=0.3)
        x = text_encoder.embed(ids)
        one = encoder(text_encoder, x, attend, encoder.keys_values(torch.randn(2, 4, 24)), first=0)
        two = encoder(text_encoder, x, attend, encoder.keys_values(torch.randn(2, 4, 24)), first=0)
        assert not torch.allclose(one, two)
        before = encoder(text_encoder, x, attend, None, first=0)
        encoder.enc_D += 1.0
        assert not torch.allclose(encoder(text_encoder, x, attend, None, first=0), before)


def test_attention_written_out_equals_the_fused_kernel(monkeypatch, text_encoder):
    ids = torch.randint(4, 20, (3, 7))
    attend = torch.arange(7) < torch.tensor([7, 2, 5])[:, None]
    with torch.no_grad():
        short = text_encoder(ids, attend)
        monkeypatch.setattr("embeddings.transformer.SHORT_TOKENS", 0)
        fused = text_encoder(ids, attend)
    torch.testing.assert_close(short[attend], fused[attend])


def test_a_checkpoint_that_is_no_bert_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(ValueError, match="model_type='roberta'"):
        read_text_shape(tmp_path)


def test_an_image_encoder_sees_every_patch_and_refuses_a_patch_that_does_not_fit():
    encoder = ImageEncoder(IMAGE)
    initialise_(encoder, torch.Generator().manual_seed(0))
    base = torch.zeros(1, 16, 16, 3)
    with torch.no_grad():
        reference = encoder(base)
        assert reference.shape == (1, 4, 24)
        for row, column in np.ndindex(2, 2):
            changed = base.clone()
            changed[0, 8 * row + 3, 8 * column + 3] = 2.0
            assert not torch.allclose(encoder(changed), reference)
    with pytest.raises(ValueError, match="power of two that divides"):
        ImageEncoder(IMAGE.model_copy(update={"patch": 5}))


PRE_NORM = {"norm": "pre", "causal": True, "pool": "last", "activation": "quick_gelu"}


def drawn(encoder, seed=0):
    """Every tensor drawn anew, so that norms and biases do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return encoder.eval()


@pytest.fixture
def causal_encoder(text_encoder):
    shape = text_encoder.shape.model_copy(update={**PRE_NORM, "norm_epsilon": 1e-5})
    return drawn(TextEncoder(shape))


def test_a_causal_encoder_is_read_where_it_has_seen_the_whole_text(causal_encoder):
    ids = torch.randint(4, 20, (1, 6))
    attend = torch.ones(1, 6, dtype=torch.bool)
    changed = ids.clone()
    changed[0, 4] = (ids[0, 4] + 1) % 20
    with torch.no_grad():
        one, two = causal_encoder(ids, attend), causal_encoder(changed, attend)
        torch.testing.assert_close(one[:, :4], two[:, :4], rtol=0, atol=0)
        assert not torch.allclose(
            causal_encoder.pool(one, attend), causal_encoder.pool(two, attend)
        )


def test_a_causal_multimodal_encoder_reads_the_same_token_as_its_text_encoder(causal_encoder):
    encoder = MultimodalEncoder(causal_encoder.shape, IMAGE, fusion_layers=1)
    initialise_(encoder, torch.Generator().manual_seed(0))
    ids = torch.randint(4, 20, (3, 6))
    attend = torch.arange(6) < torch.tensor([6, 2, 4])[:, None]
    with torch.no_grad():
        expected = causal_encoder.pool(causal_encoder(ids, attend), attend)
        keys_values = encoder.keys_values(torch.randn(3, 4, IMAGE.width))
        x = causal_encoder.embed(ids)
        for kv in (None, keys_values):
            got = encoder(causal_encoder, x, attend, kv, first=0)
            torch.testing.assert_close(got, expected)
        encoder.enc_D.copy_(torch.randn(32, generator=torch.Generator().manual_seed(1)))
        assert not torch.allclose(encoder(causal_encoder, x, attend, None, first=0), expected)
        alone = encoder(causal_encoder, x[1:2, :2], attend[1:2, :2], None, first=0)
        torch.testing.assert_close(alone, encoder(causal_encoder, x, attend, None, first=0)[1:2])


def test_causal_attention_written_out_equals_the_fused_kernel(monkeypatch, causal_encoder):
    ids = torch.randint(4, 20, (3, 7))
    attend = torch.arange(7) < torch.tensor([7, 2, 5])[:, None]
    with torch.no_grad():
        short = causal_encoder(ids, attend)
        monkeypatch.setattr("embeddings.transformer.SHORT_TOKENS", 0)
        fused = causal_encoder(ids, attend)
    torch.testing.assert_close(short[attend], fused[attend])


IMAGE_SHAPES = [
    IMAGE,
    IMAGE.model_copy(update={"stem_blocks": (2, 0, 1)}),
    IMAGE.model_copy(update={"stem": "patches", "class_token": True, "pool": "first"}),
    IMAGE.model_copy(update={"stem": "patches", "input_norm": True, "pool": "attention"}),
]


@pytest.mark.parametrize("shape", IMAGE_SHAPES)
def test_an_image_encoder_in_parts_equals_the_whole(shape):
    encoder = drawn(ImageEncoder(shape.model_copy(update={"layers": 3})))
    pixel = torch.randn(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        below = encoder.run(encoder.embed(pixel), first=0, last=1)
        token = encoder.finish(encoder.run(below, first=1, last=3))
        assert torch.equal(token, encoder(pixel))
        assert token.shape == (2, encoder.shape.tokens, 24)
        assert encoder.pool(token).shape == (2, 24)


def test_residual_blocks_begin_as_the_identity_and_then_train():
    plain, deeper = ImageEncoder(IMAGE), ImageEncoder(IMAGE_SHAPES[1])
    initialise_(deeper, torch.Generator().manual_seed(0))
    own = deeper.state_dict()
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    pixel = torch.randn(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(pixel), deeper(pixel))
    deeper(pixel).square().sum().backward()
    blocks = [p for name, p in deeper.named_parameters() if "convolutions.1.weight" in name]
    assert len(blocks) == 3
    assert all(float(p.grad.abs().max()) > 0 for p in blocks)


def test_squares_of_another_size_have_positions_in_between():
    encoder = drawn(ImageEncoder(IMAGE))
    own = encoder(torch.zeros(1, 16, 16, 3))
    assert encoder(torch.zeros(1, 24, 24, 3)).shape[1] == (24 // IMAGE.patch) ** 2
    with torch.no_grad():
        encoder.positions.copy_(encoder.positions[:1].expand_as(encoder.positions))
    # Equal positions stay equal, whatever lies between them.
    small = encoder.positions + encoder.embed(torch.zeros(1, 8, 8, 3)).new_zeros(1)
    assert torch.equal(small[0], encoder.positions[0])
    assert own.shape == (1, encoder.shape.tokens, 24)


def test_an_image_that_patches_do_not_fill_is_refused():
    with pytest.raises(ValueError, match=r"shape \(20, 20, 3\), but .* reads \(16, 16, 3\), or"):
        ImageEncoder(IMAGE)(torch.zeros(1, 20, 20, 3))
    with pytest.raises(ValueError, match=r"shape \(16, 24, 3\)"):
        ImageEncoder(IMAGE)(torch.zeros(1, 16, 24, 3))


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"stem": "patches", "patch": 5}, "patch=5 must be a number that divides"),
        ({"stem": "patches", "stem_blocks": (1,)}, r"stem_blocks=\(1,\) needs stem='convolutions'"),
        ({"stem_blocks": (1, 1)}, r"for each of the 3 halvings that patch=8 means"),
        ({"pool": "first"}, "class_token=False"),
        ({"heads": 5}, "heads=5 must divide the width 24"),
    ],
)
def test_image_shapes_that_cannot_be_are_refused(update, message):
    with pytest.raises(ValueError, match=message):
        ImageEncoder(IMAGE.model_copy(update=update))
