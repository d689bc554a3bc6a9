"""Our encoders against Hugging Face's classes, on tiny checkpoints that the test saves."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipTextConfig,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.models.blip.modeling_blip_text import BlipTextModel

from embeddings.encoders import MultimodalEncoder, TextEncoder
from embeddings.image_encoder import ImageEncoder
from embeddings.model import scale_pixels
from embeddings.pretrained import load_image_, load_text_, read_image_shape, read_text_shape
from embeddings.pretrained_pair import has_cross_attention, load_fusion_, read_projections

WIDTHS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
}
TEXT = {**WIDTHS, "vocab_size": 50, "max_position_embeddings": 12}
IMAGE = {**WIDTHS, "hidden_size": 24, "image_size": 16, "patch_size": 8}
BLIP_TEXT = {**TEXT, "encoder_hidden_size": 24, "bos_token_id": 48, "eos_token_id": 3}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def saved(model, folder):
    """Draw every tensor anew, so that no norm is 1 and no bias 0, and save."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model.eval()


def texts(end):
    """Ids of four texts that close with ``end``, padded with it, and their mask."""
    ids = torch.randint(4, 40, (4, 12), generator=torch.Generator().manual_seed(1))
    length = torch.tensor([12, 3, 7, 2])
    attend = torch.arange(12) < length[:, None]
    return ids.masked_fill(torch.arange(12) >= length[:, None] - 1, end), attend


def pixels(side=16):
    """Random bytes, as our encoder takes them and as numbers in [0, 1]."""
    generator = torch.Generator().manual_seed(2)
    bytes_BSS3 = torch.randint(0, 256, (3, side, side, 3), generator=generator, dtype=torch.uint8)
    return scale_pixels(bytes_BSS3, torch.device("cpu")), bytes_BSS3.permute(0, 3, 1, 2) / 255


def our_text(folder):
    encoder = TextEncoder(read_text_shape(folder))
    load_text_(encoder, folder)
    return encoder.eval()


def our_image(folder, side=None):
    encoder = ImageEncoder(read_image_shape(folder, side))
    load_image_(encoder, folder)
    return encoder.eval()


def whole_clip():
    return CLIPModel(CLIPConfig(text_config=TEXT, vision_config=IMAGE, projection_dim=16))


def whole_siglip():
    text = {**TEXT, "projection_size": 24}
    return SiglipModel(SiglipConfig(text_config=text, vision_config=IMAGE))


def whole_blip():
    config = BlipConfig(text_config=BLIP_TEXT, vision_config=IMAGE, image_text_hidden_size=16)
    return BlipForImageTextRetrieval(config)


TEXT_MODELS = {
    "bert": (lambda: BertModel(BertConfig(**TEXT)), lambda m: m),
    "blip": (lambda: BlipTextModel(BlipTextConfig(**BLIP_TEXT)), lambda m: m),
    "clip": (lambda: CLIPTextModel(CLIPTextConfig(**TEXT, eos_token_id=49)), lambda m: m),
    "clip of 2022": (lambda: CLIPTextModel(CLIPTextConfig(**TEXT, eos_token_id=2)), lambda m: m),
    "clip with gelu": (
        lambda: CLIPTextModel(CLIPTextConfig(**TEXT, eos_token_id=49, hidden_act="gelu")),
        lambda m: m,
    ),
    "clip with projection": (
        lambda: CLIPTextModelWithProjection(CLIPTextConfig(**TEXT, eos_token_id=49)),
        lambda m: m.text_model,
    ),
    "whole clip": (whole_clip, lambda m: m.text_model),
    "whole blip": (whole_blip, lambda m: m.text_encoder),
}


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_text_encoder_gives_what_hugging_face_gives(name, tmp_path):
    make, tower = TEXT_MODELS[name]
    theirs = tower(saved(make(), tmp_path))
    if name == "whole clip":
        theirs.eos_token_id = 49
    ours = our_text(tmp_path)
    ids, attend = texts(end=49)
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=attend.long())
        state = ours(ids, attend)
        finished = ours.readout.norm(state)
        torch.testing.assert_close(finished[attend], expected.last_hidden_state[attend], **CLOSE)
        if "clip" in name:
            torch.testing.assert_close(ours.pool(state, attend), expected.pooler_output, **CLOSE)
        if "blip" in name:
            first = expected.last_hidden_state[:, 0]
            torch.testing.assert_close(ours.pool(state, attend), first, **CLOSE)


@pytest.mark.parametrize("whole", [False, True])
def test_siglip_reads_texts_at_the_last_position_through_its_head(whole, tmp_path):
    config = SiglipTextConfig(**TEXT, projection_size=24)
    model = saved(whole_siglip() if whole else SiglipTextModel(config), tmp_path)
    theirs = model.text_model if whole else model
    ours = our_text(tmp_path)
    ids, _ = texts(end=1)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        expected = theirs(input_ids=ids).pooler_output
        torch.testing.assert_close(ours.pool(ours(ids, everywhere), everywhere), expected, **CLOSE)
    assert (ours.shape.pooled_width, ours.shape.pad_token) == (24, 1)


IMAGE_MODELS = {
    "vit": (lambda: ViTModel(ViTConfig(**IMAGE), add_pooling_layer=False), lambda m: m),
    "vit with classifier": (lambda: ViTForImageClassification(ViTConfig(**IMAGE)), lambda m: m.vit),
    "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**IMAGE)), lambda m: m),
    "siglip": (lambda: SiglipVisionModel(SiglipVisionConfig(**IMAGE)), lambda m: m),
    "blip": (lambda: BlipVisionModel(BlipVisionConfig(**IMAGE)), lambda m: m),
    "whole clip": (whole_clip, lambda m: m.vision_model),
    "whole siglip": (whole_siglip, lambda m: m.vision_model),
    "whole blip": (whole_blip, lambda m: m.vision_model),
}


@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_an_image_encoder_gives_what_hugging_face_gives(name, side, tmp_path):
    make, tower = IMAGE_MODELS[name]
    theirs = tower(saved(make(), tmp_path))
    ours = our_image(tmp_path, side)
    scaled, unit = pixels(side)
    mean, std = (
        torch.tensor(part)[:, None, None] for part in (ours.shape.pixel_mean, ours.shape.pixel_std)
    )
    with torch.no_grad():
        expected = theirs((unit - mean) / std, interpolate_pos_encoding=side != 16)
        token = ours(scaled)
        pooled = expected.pooler_output
        if "clip" in name and "siglip" not in name:
            # CLIP norms what it reads only; cross-attention is given the normed tokens as well.
            torch.testing.assert_close(token, ours.norm(expected.last_hidden_state), **CLOSE)
        else:
            torch.testing.assert_close(token, expected.last_hidden_state, **CLOSE)
        if "vit" in name or "blip" in name:
            pooled = expected.last_hidden_state[:, 0]
        torch.testing.assert_close(ours.pool(token), pooled, **CLOSE)
    assert token.shape[1] == ours.shape.tokens


@pytest.mark.parametrize("fused", [1, 2])
def test_blips_cross_attention_gives_what_hugging_face_gives(fused, tmp_path):
    theirs = saved(whole_blip(), tmp_path)
    text = our_text(tmp_path)
    encoder = MultimodalEncoder(text.shape, read_image_shape(tmp_path), fused, "post")
    assert has_cross_attention(tmp_path)
    load_fusion_(encoder, text, tmp_path, (49, 2))
    ids, attend = texts(end=3)
    ids[:, 0] = 2
    with_enc = ids.clone()
    with_enc[:, 0] = 49
    image = torch.randn(4, 5, 24, generator=torch.Generator().manual_seed(3))
    for layer in theirs.text_encoder.encoder.layer[: 2 - fused]:
        # A model of ours may fuse fewer layers than the checkpoint has.
        layer.crossattention = Skip()
    with torch.no_grad():
        for pictured in (True, False):
            expected = theirs.text_encoder(
                input_ids=with_enc,
                attention_mask=attend.long(),
                encoder_hidden_states=image if pictured else None,
            ).last_hidden_state[:, 0]
            keys_values = encoder.keys_values(image) if pictured else None
            got = encoder(text, text.embed(ids), attend, keys_values, first=0)
            torch.testing.assert_close(got, expected, **CLOSE)


class Skip(torch.nn.Module):
    def forward(self, x, **_):
        return x, None


def test_projections_are_read_where_a_checkpoint_has_them(tmp_path):
    clip = saved(whole_clip(), tmp_path / "clip")
    found = read_projections(tmp_path / "clip")
    assert torch.equal(found.text.weight, clip.text_projection.weight)
    assert torch.equal(found.image.weight, clip.visual_projection.weight)
    assert found.text.bias is None
    assert found.temperature == pytest.approx(float(torch.exp(-clip.logit_scale.detach())))
    blip = saved(whole_blip(), tmp_path / "blip")
    found = read_projections(tmp_path / "blip")
    assert torch.equal(found.text.bias, blip.text_proj.bias)
    assert torch.equal(found.image.weight, blip.vision_proj.weight)
    assert torch.equal(found.itm_head.weight, blip.itm_head.weight)
    assert found.temperature is None
    saved(whole_siglip(), tmp_path / "siglip")
    assert torch.equal(read_projections(tmp_path / "siglip").text.weight, torch.eye(24))
    saved(BertModel(BertConfig(**TEXT)), tmp_path / "bert")
    assert read_projections(tmp_path / "bert") is None


def test_a_checkpoint_says_how_its_pixels_and_texts_are_read(tmp_path):
    saved(ViTModel(ViTConfig(**IMAGE)), tmp_path)
    assert read_image_shape(tmp_path).pixel_std == (0.5, 0.5, 0.5)
    given = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    assert read_image_shape(tmp_path).pixel_mean == (0.1, 0.2, 0.3)
    saved(BertModel(BertConfig(**TEXT)), tmp_path / "bert")
    assert read_text_shape(tmp_path / "bert").pool == "mean"
    (tmp_path / "bert" / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": True}
    (tmp_path / "bert" / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    assert read_text_shape(tmp_path / "bert").pool == "first"


def test_settings_left_out_of_a_published_config_have_the_usual_value(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    shape = read_text_shape(tmp_path)
    usual = SiglipTextConfig()
    assert (shape.vocabulary, shape.layers) == (usual.vocab_size, usual.num_hidden_layers)
    assert (shape.positions, shape.head) == (usual.max_position_embeddings, usual.projection_size)
    image, usual = read_image_shape(tmp_path), SiglipVisionConfig()
    assert (image.pixels, image.patch, image.width) == (
        usual.image_size,
        usual.patch_size,
        usual.hidden_size,
    )


def test_the_wrong_kind_of_checkpoint_is_refused(tmp_path):
    saved(BertModel(BertConfig(**TEXT)), tmp_path / "bert")
    saved(ViTModel(ViTConfig(**IMAGE)), tmp_path / "vit")
    with pytest.raises(ValueError, match=r"model_type='bert', which has no image encoder.*vit"):
        read_image_shape(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"model_type='vit', which has no text encoder.*bert"):
        read_text_shape(tmp_path / "vit")
    for key, value in (
        ("hidden_act", "relu"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
    ):
        config = {"model_type": "bert", **TEXT, key: value}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"{key}={value!r}; the text encoder reads"):
            read_text_shape(tmp_path)


def test_damaged_checkpoints_are_refused(tmp_path):
    saved(CLIPTextModel(CLIPTextConfig(**TEXT)), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("layers.1.mlp.fc1.weight"))
    encoder = TextEncoder(read_text_shape(tmp_path))
    save_file({**tensors, name: tensors[name][:-1].clone()}, path)
    with pytest.raises(ValueError, match=r"shape \(39, 32\), but config\.json says \(40, 32\)"):
        load_text_(encoder, tmp_path)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
    with pytest.raises(ValueError, match=r"no tensor '.*layers\.1\.mlp\.fc1\.weight' \(1 missing"):
        load_text_(encoder, tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        load_text_(encoder, tmp_path)
