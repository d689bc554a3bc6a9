"""DashClip from checkpoints of both encoders, against Hugging Face's whole models."""

import copy

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
)

from embeddings.image_encoder import ImageShape
from embeddings.images import decode_images
from embeddings.lora import has_lora
from embeddings.model import DashClip
from embeddings.momentum import momentum_copy
from embeddings.precision import FLOAT32
from embeddings.stage1 import train_stage1
from embeddings.stage2 import train_stage2
from embeddings.weights import find_image_weights, find_text_weights

WIDTHS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
IMAGE = {**WIDTHS, "hidden_size": 24, "image_size": 16, "patch_size": 8}
WORDS = ["red", "green", "blue", "yellow", "black", "white", "cup", "box", "jar", "old"]
SPECIAL = {"clip": ("<s>", "</s>"), "siglip": ("</s>",), "blip": ("[CLS]", "[SEP]")}
CLOSE = {"atol": 1e-5, "rtol": 0}


def save_tokenizer(kind, folder):
    """A word tokenizer with the closing and opening tokens of the family."""
    vocabulary = {w: i for i, w in enumerate(["[UNK]", "</s>", "[CLS]", "[SEP]", *WORDS, "<s>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = SPECIAL[kind]
    single = f"{special[0]} $A {special[1]}" if len(special) == 2 else f"$A {special[0]}"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(token, vocabulary[token]) for token in special]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def make(kind):
    text = {**WIDTHS, "hidden_size": 32, "vocab_size": 17, "max_position_embeddings": 12}
    if kind == "clip":
        text["eos_token_id"] = 1
        return CLIPModel(CLIPConfig(text_config=text, vision_config=IMAGE, projection_dim=16))
    if kind == "siglip":
        text |= {"projection_size": 24, "pad_token_id": 1}
        return SiglipModel(SiglipConfig(text_config=text, vision_config=IMAGE))
    # Ids 15 and 16 lie behind the tokenizer's words, as BLIP's [DEC] and [ENC] do.
    text |= {"encoder_hidden_size": 24, "bos_token_id": 15, "eos_token_id": 3}
    config = BlipConfig(text_config=text, vision_config=IMAGE, image_text_hidden_size=16)
    return BlipForImageTextRetrieval(config)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder and model of each family, every tensor drawn anew."""
    found = {}
    for kind in SPECIAL:
        folder = tmp_path_factory.mktemp(kind)
        model = make(kind).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder)
        save_tokenizer(kind, folder)
        found[kind] = folder, model
    return found


def initial(folder, **settings):
    text, image = find_text_weights(str(folder)), find_image_weights(str(folder))
    model = DashClip.initial(
        **{
            "weights": text,
            "image": ImageShape(pixels=16, patch=8, width=8, layers=1, heads=1),
            "image_weights": image,
            "fusion_layers": 2,
            "trainable_text_layers": 2,
            "embedding_dim": 16,
            "text_columns": ["title"],
            "max_text_tokens": 8,
            "max_query_tokens": 8,
            "generator": torch.Generator().manual_seed(0),
            **settings,
        },
    )
    model.use_precision(FLOAT32)
    return model.eval()


def catalogue(products):
    """Twelve products, and their images as Hugging Face's processor would scale them."""
    products = products.head(12)
    byte_PSS3 = torch.from_numpy(np.array(decode_images(products, 16).pixel_PSS3))
    return products, byte_PSS3.permute(0, 3, 1, 2) / 255


def theirs_of(model, shape, unit):
    mean, std = (torch.tensor(p)[:, None, None] for p in (shape.pixel_mean, shape.pixel_std))
    return model((unit - mean) / std)


@pytest.mark.parametrize(("kind", "dim"), [("clip", 16), ("siglip", 24), ("blip", 16)])
def test_vectors_are_those_of_the_whole_checkpoint(kind, dim, checkpoint, products):
    folder, theirs = checkpoint[kind]
    model = initial(folder, embedding_dim=dim)
    assert all(origin.pretrained for origin in (model.origins.image, model.origins.projections))
    if kind != "blip":
        scale = float(theirs.logit_scale.detach())
        assert float(model.temperature.detach()) == pytest.approx(np.exp(-scale))
    products, unit = catalogue(products)
    queries = ["red cup", "old blue box jar", "cup"]
    tower = theirs.text_encoder if kind == "blip" else theirs.text_model
    with torch.no_grad():
        image = theirs_of(theirs.vision_model, model.architecture.image, unit)
        if kind == "blip":
            image_PE = theirs.vision_proj(image.last_hidden_state[:, 0])
        elif kind == "clip":
            image_PE = theirs.visual_projection(image.pooler_output)
        else:
            image_PE = image.pooler_output
        rows = []
        for query in queries:
            ids = torch.tensor([model.tokenizer.encode(query).ids])
            state = tower(input_ids=ids)
            if kind == "blip":
                rows.append(theirs.text_proj(state.last_hidden_state[:, 0]))
            elif kind == "clip":
                rows.append(theirs.text_projection(state.pooler_output))
            else:
                assert ids.shape == (1, 12)
                rows.append(state.pooler_output)
    ours = torch.from_numpy(model.embed_products(products, "image"))
    torch.testing.assert_close(ours, F.normalize(image_PE, dim=1), **CLOSE)
    ours = torch.from_numpy(model.embed_queries(queries))
    torch.testing.assert_close(ours, F.normalize(torch.cat(rows), dim=1), **CLOSE)


def test_blip_judges_pairs_as_it_was_trained_to(checkpoint, products):
    folder, theirs = checkpoint["blip"]
    model = initial(folder)
    products, unit = catalogue(products)
    features = model.product_features(products)
    with torch.no_grad():
        image = theirs_of(theirs.vision_model, model.architecture.image, unit).last_hidden_state
        for row, title in enumerate(products["title"]):
            ids = torch.tensor([model.tokenizer.encode(title).ids])
            # Hugging Face leaves [CLS] there, which BLIP's own training does not.
            ids[0, 0] = 16
            state = theirs.text_encoder(input_ids=ids, encoder_hidden_states=image[row : row + 1])
            torch.testing.assert_close(
                model.itm_head(features.enc_PD[row]),
                theirs.itm_head(state.last_hidden_state[0, 0]),
                **CLOSE,
            )


def test_what_does_not_belong_together_starts_random_and_says_so(checkpoint):
    blip, clip = checkpoint["blip"][0], checkpoint["clip"][0]
    mixed = initial(blip, image_weights=find_image_weights(str(clip)))
    assert mixed.origins.image.sha256 == find_image_weights(str(clip)).sha256
    assert not mixed.origins.multimodal.pretrained
    assert mixed.architecture.cross_norm == "pre"
    other_size = initial(clip, embedding_dim=12)
    assert "16 dimensions, embedding_dim=12" in other_size.origins.projections.source
    siglip = find_text_weights(str(checkpoint["siglip"][0]))
    model = initial(clip, weights=siglip)
    assert model.origins.image.pretrained
    assert not model.origins.projections.pretrained
    assert float(model.temperature.detach()) == pytest.approx(0.07)
    lone = initial(clip, image_weights=None)
    assert not lone.origins.image.pretrained
    assert lone.architecture.image.stem == "convolutions"


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_model_from_a_checkpoint_comes_back_from_its_folder(kind, checkpoint, products, tmp_path):
    model = initial(checkpoint[kind][0])
    products = products.head(6).with_columns(
        image=pl.when(pl.int_range(6) % 2 == 0).then(pl.col("image"))
    )
    loaded = DashClip.load(model.save_(tmp_path / "model"))
    loaded.use_precision(FLOAT32)
    assert loaded.fingerprint == model.fingerprint
    assert loaded.origins == model.origins
    for mode in ("multimodal", "text", "image"):
        assert np.array_equal(
            loaded.embed_products(products, mode), model.embed_products(products, mode)
        )
    queries = ["red cup", "old"]
    assert np.array_equal(loaded.embed_queries(queries), model.embed_queries(queries))


@pytest.mark.parametrize("kind", SPECIAL)
def test_the_query_encoder_begins_as_the_text_encoder(kind, checkpoint):
    model = initial(checkpoint[kind][0])
    aligned = model.with_alignment(1, 0)
    ids = torch.tensor([model.tokenizer.encode("old red cup").ids])
    attend = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        pooled = model.text.pool(model.text(ids, attend), attend)
        got = aligned.query_encoder.pooled(aligned.query_states(ids, attend), attend)
    torch.testing.assert_close(got, F.layer_norm(pooled, pooled.shape[-1:]))


def names(model, parameters):
    found = {id(p): name for name, p in model.named_parameters()}
    return {found[id(p)] for p in parameters}


def test_frozen_layers_are_left_out_of_what_trains(checkpoint):
    clip = checkpoint["clip"][0]
    everything = initial(clip)
    pretrained, new = everything.trained_parameters()
    assert "image.patches.weight" in names(everything, pretrained)
    assert "itc_image.weight" in names(everything, pretrained)
    assert "text.words.weight" not in names(everything, pretrained + new)
    assert "text.readout.norm.weight" in names(everything, pretrained)
    one = initial(clip, trainable_image_layers=1)
    trained = set().union(*(names(one, part) for part in one.trained_parameters()))
    assert {"image.layers.1.up.weight", "image.norm.weight"} <= trained
    assert not trained & {"image.layers.0.up.weight", "image.patches.weight", "image.positions"}
    none = initial(clip, trainable_image_layers=0)
    trained = set().union(*(names(none, part) for part in none.trained_parameters()))
    assert not [name for name in trained if name.startswith("image")]


def test_frozen_image_states_give_the_tokens_of_the_whole(checkpoint):
    model = initial(checkpoint["siglip"][0], trainable_image_layers=1)
    depth, image = model.architecture.frozen_image_layers, model.image
    pixel = torch.randn(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cached = image.run(image.embed(pixel), first=0, last=depth)
        token = image.finish(image.run(cached, first=depth, last=len(image.layers)))
        assert torch.equal(token, image(pixel))


def test_adapters_leave_the_model_and_stay_out_of_its_folder(checkpoint, tmp_path):
    model = initial(checkpoint["clip"][0], trainable_text_layers=1, fusion_layers=1)
    plain = copy.deepcopy(model)
    model.add_lora_(2, 4.0, torch.Generator().manual_seed(1))
    pretrained, new = model.trained_parameters()
    trained = names(model, pretrained)
    assert all(name.endswith(("down_RI", "up_OR")) or name.startswith("itc") for name in trained)
    assert not any(name.startswith("text.layers.0") for name in trained)
    assert names(model, new) == names(plain, plain.trained_parameters()[1])
    assert model.fingerprint == plain.fingerprint
    follower = momentum_copy(model)
    with torch.no_grad():
        for parameter in pretrained:
            parameter += 0.1
    assert torch.equal(follower.text.layers[1].up.weight, plain.text.layers[1].up.weight)
    loaded = DashClip.load(model.save_(tmp_path / "model"))
    loaded.use_precision(FLOAT32)
    assert has_lora(model)
    assert not has_lora(loaded)
    assert loaded.fingerprint == model.fingerprint != plain.fingerprint
    difference = loaded.embed_queries(["red cup"]) - model.embed_queries(["red cup"])
    assert abs(difference).max() < 1e-6


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("clip", {"lora_rank": 2}),
        ("siglip", {"trainable_image_layers": 1}),
        ("blip", {"trainable_image_layers": 0, "lora_rank": 2, "objective": "momentum"}),
    ],
)
def test_every_family_goes_through_both_stages(
    kind, settings, checkpoint, products, queries, relevance, stage1_config, stage2_config, tmp_path
):
    folder = str(checkpoint[kind][0])
    config = stage1_config.model_copy(
        update={
            "text_weights": folder,
            "image_weights": folder,
            "require_pretrained": True,
            "fusion_layers": 2,
            "trainable_text_layers": 2,
            "steps": 3,
            **settings,
        }
    )
    first = train_stage1(products, config, seed=0)
    assert not has_lora(first)
    second = train_stage2(
        first,
        products,
        queries,
        relevance,
        stage2_config.model_copy(update={"steps": 3}),
        seed=0,
        out=tmp_path / "model",
    )
    for model in (first, second, DashClip.load(tmp_path / "model")):
        for mode in ("multimodal", "text", "image"):
            vector_PE = model.embed_products(products.head(5), mode)
            np.testing.assert_allclose(np.linalg.norm(vector_PE, axis=1), 1, atol=1e-5)
        assert model.embed_queries(["red cup", "old"]).shape == (2, 16)


def test_checkpoints_that_do_not_fit_are_refused(checkpoint, tiny_weights, tmp_path):
    clip = checkpoint["clip"][0]
    with pytest.raises(ValueError, match="trainable_image_layers=3 must be between 0 and 2"):
        initial(clip, trainable_image_layers=3)
    with pytest.raises(ValueError, match="model_type='bert', which has no image encoder"):
        initial(clip, image_weights=find_image_weights(str(tiny_weights)))
    with pytest.raises(ValueError, match=r"patch=8 must be a number that divides .* pixels=20"):
        initial(clip, image=ImageShape(pixels=20, patch=8, width=8, layers=1, heads=1))
    CLIPModel(
        CLIPConfig(
            text_config={**WIDTHS, "hidden_size": 32, "vocab_size": 9},
            vision_config=IMAGE,
        )
    ).save_pretrained(tmp_path)
    save_tokenizer("clip", tmp_path)
    with pytest.raises(ValueError, match=r"ids up to 14, .* vocabulary has 9"):
        initial(tmp_path)
    make("clip").save_pretrained(tmp_path)
    bare = Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1}, unk_token="[UNK]"))
    bare.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="adds no closing token"):
        initial(tmp_path)
