"""Alignment: what trains, what is hidden, and that what was cut off goes on to the same bits."""

import numpy as np
import polars as pl
import pytest
import torch

from embeddings import stage2_training
from embeddings.alignment_sides import TrainedProducts, draw_hidden, hide_tokens
from embeddings.evaluate import relevance_aucs
from embeddings.images import decode_images
from embeddings.stage1 import train_stage1
from embeddings.stage2 import state_folder, train_stage2
from embeddings.stage2_config import Stage2Config
from embeddings.text import product_texts

WHOLE = {"hard_negatives": 1, "mine_every": 7, "bank": 40, "token_dropout": 0.1}


@pytest.fixture(scope="module")
def first(products, stage1_config):
    return train_stage1(products, stage1_config.model_copy(update={"steps": 10}), seed=0)


@pytest.fixture(scope="module")
def short(stage2_config):
    return stage2_config.model_copy(update={"steps": 20, "batch": 8})


def changed(before, after):
    """Names of the parts in which a tensor moved."""
    old, new = before.state_dict(), after.state_dict()
    return {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}


def cut_off(monkeypatch, after):
    """Keep a state at every step, and be killed after some of them."""
    monkeypatch.setattr(stage2_training, "STATE_SECONDS", -1.0)

    def progress(stage, step, steps, metrics):
        if step == after:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("end_to_end", [False, True])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(
    first, products, queries, relevance, short, tmp_path, monkeypatch, end_to_end
):
    config = short.model_copy(update={**WHOLE, "end_to_end": end_to_end})
    data = (products, queries, relevance, config)
    whole = train_stage2(first, *data, seed=0)
    out = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        train_stage2(first, *data, seed=0, out=out, progress=cut_off(monkeypatch, 12))
    assert state_folder(out).is_dir()
    assert not out.exists()
    steps = []
    again = train_stage2(
        first, *data, seed=0, out=out, progress=lambda _, step, *told: steps.append(step)
    )
    assert steps == list(range(12, 21))
    assert again.fingerprint == whole.fingerprint
    assert again.history == whole.history
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_state_of_another_run_is_refused(
    first, products, queries, relevance, short, tmp_path, monkeypatch
):
    with pytest.raises(KeyboardInterrupt):
        train_stage2(
            first,
            products,
            queries,
            relevance,
            short,
            seed=0,
            out=tmp_path / "model",
            progress=cut_off(monkeypatch, 3),
        )
    with pytest.raises(ValueError, match="state of another run, cut off at step 2"):
        train_stage2(first, products, queries, relevance, short, seed=1, out=tmp_path / "model")


def test_only_the_projection_and_the_query_encoder_train_unless_asked(
    first, products, queries, relevance, short
):
    frozen = train_stage2(first, products, queries, relevance, short, seed=0)
    assert changed(first, frozen) == set()
    config = short.model_copy(update={"end_to_end": True})
    whole = train_stage2(first, products, queries, relevance, config, seed=0)
    assert changed(first, whole) == {"text", "multimodal"}
    for depth in range(2):
        weight = f"layers.{depth}.qkv.weight"
        moved = whole.text.state_dict()[weight] - first.text.state_dict()[weight]
        assert moved.abs().max() > 0
    assert all(parameter.requires_grad for parameter in whole.parameters())
    start = first.with_alignment(1, 32)
    query_weight = whole.query_encoder.layers[0].qkv.weight
    assert not torch.equal(query_weight, start.query_encoder.layers[0].qkv.weight)


def test_the_model_has_the_average_of_its_weights(first, products, queries, relevance, short):
    def trained(ema_decay, steps=6):
        config = short.model_copy(update={"ema_decay": ema_decay, "steps": steps})
        return train_stage2(first, products, queries, relevance, config, seed=0)

    last = trained(None)
    assert changed(last, trained(0.0)) == set()
    assert changed(last, trained(0.99)) == {"product_projection", "query_encoder"}
    # Over a third of the steps at most: of six over two, of three over the last alone.
    assert changed(trained(0.5), trained(0.99)) == set()
    assert changed(trained(None, steps=3), trained(0.99, steps=3)) == set()


def test_the_query_encoder_is_a_copy_of_all_layers_unless_told(first):
    whole, part = first.with_alignment(None, 32), first.with_alignment(1, 32)
    assert len(whole.query_encoder.layers) == len(first.text.layers) == 2
    assert len(part.query_encoder.layers) == 1


def test_end_to_end_learns_what_frozen_layers_cannot(first, products, queries, relevance):
    # Two steps over a linear projection leave the frozen encoder's order nearly as it is.
    texts = products.drop("image")
    settings = {"query_layers": 1, "projection_width": 0, "steps": 40, "batch": 16}
    auc = {}
    for end_to_end in (False, True):
        config = Stage2Config(
            **settings, end_to_end=end_to_end, text_learning_rate=2e-3, warmup_steps=4
        )
        model = train_stage2(first, texts, queries, relevance, config, seed=0)
        product_row = {key: row for row, key in enumerate(texts["product_id"].to_list())}
        query_row = {key: row for row, key in enumerate(queries["query_id"].to_list())}
        vector_PE = model.embed_products(texts)
        vector_QE = model.embed_queries(queries["query"].to_list())
        cosine = vector_QE @ vector_PE.T
        score = [
            cosine[query_row[q], product_row[p]]
            for q, p in relevance.select("query_id", "product_id").iter_rows()
        ]
        auc[end_to_end] = relevance_aucs(np.array(score), relevance["label"].to_numpy())["auc_2v1"]
    assert auc[True] > auc[False] + 0.02


def test_trained_products_begin_as_what_they_are_embedded_as(first, products):
    # Texts alone, images alone, both, in batches of their own: the same vectors as embed_products.
    mixed = products.head(12).with_columns(
        pl.Series("title", [None, "", *products["title"][2:12]]),
        pl.Series("image", [*products["image"][:8], None, None, None, None]),
    )
    model = first.with_alignment(1, 0)
    features = model.product_features(mixed)
    model.product_projection.fit_(features)
    torch.nn.init.normal_(model.product_projection.linear.weight)
    images = decode_images(mixed, model.architecture.image.pixels)
    texts = product_texts(mixed, ("title",))
    side = TrainedProducts(model, texts, images, features.image_PC, dropout=0.3, token_dropout=0.5)
    expected = model.embed_products(mixed)
    np.testing.assert_allclose(side.all_vectors().numpy(), expected, atol=2e-3)
    some = torch.tensor([9, 0, 5])
    vector = torch.nn.functional.normalize(side.vectors(some, None), dim=1)
    np.testing.assert_allclose(vector.detach().numpy(), expected[some], atol=2e-3)
    hidden = side.vectors(some, torch.Generator().manual_seed(0))
    again = side.vectors(some, torch.Generator().manual_seed(0))
    assert torch.equal(hidden, again)


def test_hidden_tokens_are_never_the_first_or_last():
    attend = torch.arange(9) < torch.tensor([[9], [5], [2], [1]])
    generator = torch.Generator().manual_seed(0)
    kept = torch.stack([hide_tokens(attend, 0.5, generator) for _ in range(200)])
    assert not (kept & ~attend).any()
    assert kept[:, :, 0].all()
    for row, last in enumerate([8, 4, 1, 0]):
        assert kept[:, row, last].all()
    assert float(kept[:, 0, 1:8].float().mean()) == pytest.approx(0.5, abs=0.05)
    assert hide_tokens(attend, 0.5, None) is attend
    assert hide_tokens(attend, 0.0, generator) is attend


def test_text_and_image_are_never_hidden_together():
    text, image = draw_hidden(10_000, 0.2, torch.Generator().manual_seed(0))
    assert not (text & image).any()
    assert float(text.float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float(image.float().mean()) == pytest.approx(0.2, abs=0.02)


def test_soft_and_certain_labels_train_alike_where_they_say_the_same(
    first, products, queries, relevance, short
):
    chance = np.eye(3)[relevance["label"].to_numpy()]
    soft = relevance.with_columns(
        *[pl.Series(f"p{k}", chance[:, k]) for k in range(3)], source=pl.lit("judge")
    )
    few = short.model_copy(update={"steps": 3})
    certain = train_stage2(first, products, queries, relevance, few, seed=0)
    assert train_stage2(first, products, queries, soft, few, seed=0).history == certain.history
    lighter = few.model_copy(update={"source_weights": {"judge": 0.5}})
    halved = train_stage2(first, products, queries, soft, lighter, seed=0)
    # All weights alike: a mean over them is what it was.
    loss = halved.history["stage2"]["loss"]
    assert loss == pytest.approx(certain.history["stage2"]["loss"], rel=1e-4)
    with pytest.raises(ValueError, match="at least two classes"):
        train_stage2(
            first,
            products,
            queries,
            soft,
            few.model_copy(update={"source_weights": {"judge": 0}}),
            seed=0,
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contrast_weight": 0, "graded_weight": 0}, "nothing would train"),
        ({"source_weights": {"llm": -1}}, "must not be negative"),
        ({"token_dropout": 1.0}, "token_dropout"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Stage2Config(**settings)
