"""Both stages on a toy catalogue with one right answer."""

import math

import numpy as np
import polars as pl
import pytest
import torch

from embeddings.evaluate import evaluate_embeddings
from embeddings.model import DashClip
from embeddings.schedule import adamw, learning_rate_factor, take_step_
from embeddings.stage1 import product_groups, train_stage1
from embeddings.stage2 import train_stage2
from embeddings.stage2_config import Stage2Config
from embeddings.store import VectorStore


@pytest.fixture(scope="module")
def pretrained(products, stage1_config):
    return train_stage1(products, stage1_config, seed=0)


@pytest.fixture(scope="module")
def aligned(pretrained, products, queries, relevance, stage2_config):
    return train_stage2(pretrained, products, queries, relevance, stage2_config, seed=0)


def stores(model, products, queries, mode="multimodal"):
    ids = {"kind": "k", "encoder_fingerprint": model.fingerprint}
    return (
        VectorStore.from_arrays(
            products["product_id"].to_list(), model.embed_products(products, mode), **ids
        ),
        VectorStore.from_arrays(
            queries["query_id"].to_list(), model.embed_queries(queries["query"].to_list()), **ids
        ),
    )


def test_image_text_training_learns_more_than_chance(pretrained, stage1_config):
    history = pretrained.history["stage1"]
    assert len(history["itc"]) == stage1_config.steps
    # Six colours in a batch of 16: knowing the colour alone brings log 16 down to about log 3.
    assert np.mean(history["itc"][-10:]) < math.log(16) - 0.7
    assert 0.001 <= history["temperature"][-1] <= 0.5
    assert pretrained.stage == 1


def test_matching_is_learned_where_it_can_be(products, stage1_config):
    # With one group a colour every mismatch shows: the hard negatives of the other tests share
    # their colour, so nothing in the image tells them apart.
    config = stage1_config.model_copy(update={"steps": 250, "itm_rows": 16})
    model = train_stage1(products.with_columns(group_id="category"), config, seed=0)
    assert np.mean(model.history["stage1"]["itm_auc"][:20]) < 0.65
    assert np.mean(model.history["stage1"]["itm_auc"][-20:]) > 0.8


def test_images_find_their_colour_among_texts(pretrained, products):
    image = pretrained.embed_products(products, "image")
    text = pretrained.embed_products(products, "text")
    colour = products["category"].to_numpy()
    nearest = (image @ text.T).argmax(1)
    assert (colour[nearest] == colour).mean() > 0.8


def test_alignment_orders_the_classes(aligned, pretrained, products, queries, relevance):
    before = evaluate_embeddings(
        *stores(pretrained, products, queries), products, queries, relevance
    )
    after = evaluate_embeddings(*stores(aligned, products, queries), products, queries, relevance)
    assert after["auc_2v1"] > max(0.85, before["auc_2v1"] + 0.05)
    assert after["auc_1v0"] > max(0.8, before["auc_1v0"] + 0.05)
    assert aligned.stage == 2


def test_images_matter_where_titles_are_silent(products, queries, relevance, stage1_config):
    # Titles keep the thing only; the colour is in the image alone.
    silent = products.with_columns(pl.col("title").str.split(" ").list.last())
    config = Stage2Config(
        query_layers=1,
        projection_width=32,
        steps=60,
        batch=16,
        learning_rate=3e-3,
        query_learning_rate=1e-3,
        warmup_steps=5,
    )
    colours = queries.filter(~pl.col("query").str.contains(" "))
    judged = relevance.join(colours, on="query_id", how="semi")
    model = train_stage2(
        train_stage1(silent, stage1_config.model_copy(update={"steps": 20}), seed=0),
        silent,
        queries,
        relevance,
        config,
        seed=0,
    )
    whole = evaluate_embeddings(*stores(model, silent, colours), silent, colours, judged)
    text = evaluate_embeddings(*stores(model, silent, colours, "text"), silent, colours, judged)
    assert whole["auc_2v0"] > 0.95
    assert text["auc_2v0"] < 0.7


def test_vectors_are_unit_rows_whatever_is_missing(aligned, pretrained, products):
    some = products.head(4).with_columns(
        pl.Series("title", ["red cup", None, "", "old box"]),
        pl.Series("image", [products["image"][0], products["image"][1], None, None]),
    )
    for model in (pretrained, aligned):
        for mode, present in (
            ("multimodal", [1, 1, 0, 1]),
            ("text", [1, 0, 0, 1]),
            ("image", [1, 1, 0, 0]),
        ):
            length = np.linalg.norm(model.embed_products(some, mode), axis=1)
            np.testing.assert_allclose(length, present, atol=1e-5)
    without = some.drop("image")
    np.testing.assert_allclose(
        aligned.embed_products(without), aligned.embed_products(some, "text"), atol=1e-6
    )
    assert aligned.embed_products(some.clear()).shape == (0, 16)
    assert aligned.embed_queries([]).shape == (0, 16)
    with pytest.raises(ValueError, match="mode 'both'"):
        aligned.embed_products(some, "both")


def test_vectors_do_not_depend_on_how_they_are_batched(aligned, products):
    texts = products["title"].to_list()
    rows, budget = (aligned.embed_queries(texts, batch_tokens=size) for size in (None, 40))
    np.testing.assert_allclose(budget, rows, atol=1e-5)
    whole = [aligned.embed_products(products, batch_tokens=size) for size in (None, 40)]
    np.testing.assert_allclose(*whole, atol=1e-5)


def test_a_catalogue_of_texts_goes_through_both_stages(
    products, queries, relevance, stage1_config, stage2_config
):
    texts = products.drop("image")
    first = train_stage1(texts, stage1_config, seed=0)
    assert first.history == {}
    model = train_stage2(first, texts, queries, relevance, stage2_config, seed=0)
    after = evaluate_embeddings(*stores(model, texts, queries), texts, queries, relevance)
    assert after["auc_2v1"] > 0.9


def test_the_same_seed_gives_the_same_bits(
    products, queries, relevance, stage1_config, stage2_config, pretrained, aligned
):
    again = train_stage1(products, stage1_config, seed=0)
    assert again.fingerprint == pretrained.fingerprint
    twice = train_stage2(again, products, queries, relevance, stage2_config, seed=0)
    assert twice.fingerprint == aligned.fingerprint
    assert twice.history == aligned.history
    short = stage1_config.model_copy(update={"steps": 1})
    other = train_stage1(products, short, seed=1).fingerprint
    assert other != train_stage1(products, short, seed=0).fingerprint


def test_stage_two_leaves_the_first_model_and_the_frozen_parts_alone(pretrained, aligned):
    own, new = pretrained.state_dict(), aligned.state_dict()
    assert all(torch.equal(own[name], new[name]) for name in own)
    assert pretrained.query_encoder is None


def test_a_saved_model_is_the_same_model(aligned, products, queries, tmp_path):
    loaded = DashClip.load(aligned.save_(tmp_path / "m"))
    assert loaded.fingerprint == aligned.fingerprint
    assert loaded.history == aligned.history
    assert (loaded.stage, loaded.source) == (2, aligned.source)
    np.testing.assert_array_equal(loaded.embed_products(products), aligned.embed_products(products))
    texts = queries["query"].to_list()
    np.testing.assert_array_equal(loaded.embed_queries(texts), aligned.embed_queries(texts))


def test_a_damaged_model_is_refused(pretrained, tmp_path):
    folder = pretrained.save_(tmp_path / "m")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-5] ^= 4
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="SHA-256"):
        DashClip.load(folder)
    with pytest.raises(ValueError, match="holds no model"):
        DashClip.load(tmp_path / "nowhere")


def test_a_finished_stage_is_not_trained_again(products, stage1_config, tmp_path):
    config = stage1_config.model_copy(update={"steps": 2})
    steps = []

    def note(*told):
        if told[0] == "stage1":
            steps.append(told)

    first = train_stage1(products, config, seed=0, out=tmp_path / "one", progress=note)
    assert [told[:3] for told in steps] == [("stage1", 1, 2), ("stage1", 2, 2)]
    assert {"loss", "itc", "itm", "itm_auc", "images_per_s"} <= set(steps[0][3])
    again = train_stage1(products, config, seed=0, out=tmp_path / "one", progress=note)
    assert len(steps) == 2
    assert again.fingerprint == first.fingerprint
    with pytest.raises(ValueError, match="another run \\(different: seed\\)"):
        train_stage1(products, config, seed=1, out=tmp_path / "one")
    with pytest.raises(ValueError, match="different: data"):
        train_stage1(products.head(40), config, seed=0, out=tmp_path / "one")
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_stage_one_refusals(products, stage1_config, tmp_path):
    with pytest.raises(ValueError, match="empty"):
        train_stage1(products.clear(), stage1_config, seed=0)
    one_group = products.with_columns(group_id=pl.lit("g"))
    with pytest.raises(ValueError, match="are one group"):
        train_stage1(one_group, stage1_config, seed=0)
    with pytest.raises(ValueError, match="are one group"):
        train_stage1(products.head(1), stage1_config, seed=0)
    broken = products.head(3).with_columns(image=pl.lit(b"junk"))
    with pytest.raises(ValueError, match="row 0: it cannot be decoded"):
        train_stage1(broken, stage1_config, seed=0, out=tmp_path / "m")
    with pytest.raises(ValueError, match="1 <= fusion <= trainable <= 2"):
        train_stage1(
            products, stage1_config.model_copy(update={"trainable_text_layers": 3}), seed=0
        )
    with pytest.raises(ValueError, match="batch"):
        type(stage1_config)(batch=1)
    assert list(tmp_path.iterdir()) == []


def test_batches_of_two_and_of_mostly_one_group_train(products, stage1_config):
    groups = ["g"] * 44 + ["a", "b", "c", "d"]
    mostly_one = products.with_columns(group_id=pl.Series(groups))
    config = stage1_config.model_copy(update={"steps": 8, "batch": 2})
    model = train_stage1(mostly_one, config, seed=0)
    assert np.isfinite(model.history["stage1"]["loss"]).all()


def test_a_loss_that_is_not_a_number_names_its_step():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = adamw([([weight], 0.1)], 0.0)
    with pytest.raises(ValueError, match="nan at stage 1, step 3"):
        take_step_(
            optimizer, weight.sum() * float("nan"), factor=1, max_norm=1, where="stage 1, step 3"
        )
    assert weight.tolist() == [1, 1]


def test_learning_rates_rise_then_fall():
    factors = [learning_rate_factor(step, 10, 3) for step in range(10)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[3:] == sorted(factors[3:], reverse=True)
    assert 0 < factors[-1] < 0.1


def test_groups_join_equal_ids_and_equal_texts():
    products = pl.DataFrame({"group_id": ["a", "a", None, None, "b", None]})
    texts = ["one", "two", "Two", "", "three", ""]
    assert product_groups(products, texts).tolist() == [0, 0, 0, 1, 2, 3]
    assert product_groups(products).tolist() == [0, 0, 1, 2, 3, 4]


def test_stage_two_refusals(pretrained, aligned, products, queries, relevance, stage2_config):
    alone = relevance.filter(pl.col("query_id") == "q0")
    with pytest.raises(ValueError, match="needs 2 or more"):
        train_stage2(pretrained, products, queries, alone, stage2_config, seed=0)
    with pytest.raises(ValueError, match="stage 2 already"):
        train_stage2(aligned, products, queries, relevance, stage2_config, seed=0)
    with pytest.raises(ValueError, match="class_ratio"):
        Stage2Config(class_ratio=(0, 0, 3))
