"""The full trainer of stage 1: objectives, parts, ranks, missing modalities, resumption, alarms."""

import dataclasses
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from embeddings import arithmetic, image_text_training
from embeddings.arithmetic import settle_arithmetic_
from embeddings.cached_text import CachedStates
from embeddings.image_encoder import ImageEncoder
from embeddings.image_text_batches import (
    IMAGE_ONLY,
    TEXT_ONLY,
    WHOLE,
    Batch,
    TrainingData,
    cutmix_box,
)
from embeddings.image_text_step import ImageTextStep, between_ends, by_like_length, itm_pairs
from embeddings.image_text_training import ImageTextTraining, pooled_texts
from embeddings.images import ImageTable, decode_images
from embeddings.losses import all_texts_loss
from embeddings.model import DashClip
from embeddings.momentum import momentum_copy
from embeddings.pictures import PixelPictures
from embeddings.precision import Precision
from embeddings.product_groups import product_groups
from embeddings.queue import KeyQueue
from embeddings.ranks import Ranks
from embeddings.stage1 import _initial_model, train_stage1
from embeddings.stage1_config import Stage1Config
from embeddings.tensor_file import write_tensors_
from embeddings.text import product_texts, tokenize
from embeddings.view_config import ViewConfig
from embeddings.weights import find_image_weights, find_text_weights

OBJECTIVES = ("in_batch", "momentum", "sigmoid")


@pytest.fixture
def config(stage1_config):
    return stage1_config.model_copy(update={"steps": 12, "queue": 24, "soft_ramp_steps": 5})


def with_changes(config, **changes):
    return Stage1Config(**{**config.model_dump(), **changes})


def noting(steps):
    """A progress that writes down the steps of training."""
    return lambda stage, done, *rest: steps.append(done) if stage == "stage1" else None


def recall_of_colours(model, products):
    image, text = (model.embed_products(products, mode) for mode in ("image", "text"))
    colour = products["category"].to_numpy()
    return (colour[(image @ text.T).argmax(1)] == colour).mean()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns_the_colours(products, stage1_config, objective):
    config = with_changes(
        stage1_config, objective=objective, steps=90, queue=32, momentum=0.95, itm_rows=4
    )
    model = train_stage1(products, config, seed=0)
    assert recall_of_colours(model, products) > 0.8
    history = model.history["stage1"]
    assert all(len(values) == config.steps for values in history.values())
    assert min(history["temperature"]) >= 0.001
    assert max(history["temperature"]) <= 0.5
    if objective == "momentum":
        assert history["queue_drift"][0] == 0
        assert 0 < max(history["queue_drift"]) < 0.7


def test_the_average_of_the_weights_can_be_the_model(products, config):
    averaged = with_changes(config, final_weights="momentum", momentum=0.0)
    plain = train_stage1(products, config, seed=0)
    # At momentum 0 the average is the last value.
    assert train_stage1(products, averaged, seed=0).fingerprint == plain.fingerprint
    slow = with_changes(averaged, momentum=0.9)
    assert train_stage1(products, slow, seed=0).fingerprint != plain.fingerprint


class DoublePictures(PixelPictures):
    """Images in float64."""

    def _seen(self, row_B, view_BK):
        return super()._seen(row_B, view_BK).double()


class Step:
    """A step over the toy catalogue in float64, with everything needed to run it twice."""

    def __init__(self, products, config, *, objective="in_batch", part_rows=None, kinds=None):
        model, data = _model_and_data(products, config)
        self.model, texts = model.double(), data.texts
        self.model.use_precision(Precision(dtype=torch.float64, reason="a test"))
        for parameter in self.model.text.parameters():
            parameter.requires_grad_(requires_grad=False)
        for part in self.model.trained_layers()["text"]:
            part.requires_grad_(requires_grad=True)
        tokens = tokenize(self.model.tokenizer, texts, config.max_text_tokens)
        momentum = objective == "momentum"
        bias = torch.nn.Parameter(torch.tensor(-2.0)) if objective == "sigmoid" else None
        self.step = ImageTextStep(
            model=self.model,
            follower=momentum_copy(self.model) if momentum else None,
            queue=KeyQueue(10, self.model.dim) if momentum else None,
            pictures=DoublePictures(data.pixel_NSS3, config.views, torch.device("cpu")),
            text_of_N=torch.arange(len(texts)),
            states=CachedStates(self.model, tokens, self.model.architecture.frozen_text_layers),
            ranks=Ranks(),
            objective=objective,
            bias=bias,
            hidden_share=0.3,
            itm_rows=6,
            itm_temperature=0.5,
            part_rows=part_rows,
        )
        generator = torch.Generator().manual_seed(3)
        rows = torch.arange(12) * 4
        self.batch = Batch(
            row_G=rows,
            group_G=data.group_N[rows],
            kind_G=torch.tensor(kinds or [WHOLE] * 12),
            view_GK=torch.rand(12, config.views.draws, generator=generator),
            second_GK=torch.rand(12, config.views.draws, generator=generator),
            hidden_GL=torch.rand(12, 8, generator=generator),
            mixed_G=torch.zeros(12, dtype=torch.bool),
            box=(0.0, 0.0, 0.0, 0.0),
        )

    def run(self):
        outcome = self.step(self.batch, torch.Generator().manual_seed(5), step=0, soft_weight=0.4)
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        return outcome, gradients


MIXED = [WHOLE] * 6 + [IMAGE_ONLY] * 3 + [TEXT_ONLY] * 3


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kinds", [None, MIXED])
@pytest.mark.parametrize("part_rows", [1, 5])
def test_a_step_in_parts_has_the_gradients_of_the_whole(
    products, config, objective, kinds, part_rows
):
    whole, expected = Step(products, config, objective=objective, kinds=kinds).run()
    parts, found = Step(
        products, config, objective=objective, kinds=kinds, part_rows=part_rows
    ).run()
    assert (parts.itc, parts.itm) == pytest.approx((whole.itc, whole.itm), abs=1e-6)
    assert found.keys() == expected.keys()
    assert {"temperature", "itm_head.weight", "itc_text.weight"} <= expected.keys()
    largest = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    assert largest < 1e-6


def test_a_product_without_text_is_contrasted_by_two_views_of_its_image(products, config):
    outcome, _ = Step(products, config, kinds=MIXED).run()
    image, text = outcome.image_GE, outcome.text_GE
    cosine = torch.cosine_similarity(image, text)
    # Two sights of one thing through one encoder stay near; image and text start unrelated.
    assert cosine[6:].min() > 0.6
    assert cosine[:6].abs().max() < 0.6
    assert not torch.equal(image[6:9], text[6:9])


def test_products_without_image_or_without_text_train_and_embed(products, config):
    count = len(products)
    bare = products.with_columns(
        title=pl.when(pl.int_range(count) % 3 == 1).then(None).otherwise(pl.col("title")),
        image=pl.when(pl.int_range(count) % 3 == 2).then(None).otherwise(pl.col("image")),
    )
    model = train_stage1(bare, with_changes(config, steps=8), seed=0)
    assert np.isfinite(model.history["stage1"]["loss"]).all()
    assert np.allclose(np.linalg.norm(model.embed_products(bare), axis=1), 1, atol=1e-5)


def test_images_alone_still_teach_where_some_products_have_both(products, config):
    # The image encoder learns from textless products too: leaving them out changes it.
    some = products.with_columns(
        title=pl.when(pl.int_range(len(products)) < 16).then(pl.col("title"))
    )
    both = train_stage1(some, config, seed=0)
    fewer = train_stage1(some.head(16), config, seed=0)
    assert both.fingerprint != fewer.fingerprint


def test_modality_dropout_shows_every_kind_of_row(products, config, monkeypatch):
    seen = []

    def noted(self, batch, *args, **kwargs):
        seen.extend(batch.kind_G.tolist())
        return original(self, batch, *args, **kwargs)

    original = ImageTextStep.__call__
    monkeypatch.setattr(ImageTextStep, "__call__", noted)
    train_stage1(products, with_changes(config, modality_dropout=0.3, steps=10), seed=0)
    share = np.bincount(seen, minlength=3) / len(seen)
    assert share[IMAGE_ONLY] == pytest.approx(0.3, abs=0.12)
    assert share[TEXT_ONLY] == pytest.approx(0.3, abs=0.12)


def test_matching_takes_rows_with_both_modalities_only():
    whole = torch.tensor([False, True, True, False, True])
    text, image, matched = itm_pairs(
        torch.randn(5, 5), torch.arange(5), 2, torch.Generator().manual_seed(0), whole_B=whole
    )
    assert matched.tolist() == [1, 1, 0, 0, 0, 0]
    assert text[:2].tolist() == image[:2].tolist() == [1, 2]
    assert whole[text].all()
    assert whole[image].all()
    assert (text != image)[2:].all()


def test_the_tokens_where_encoders_are_read_are_never_hidden():
    attend = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    expected = [[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert between_ends(attend).long().tolist() == expected


def test_texts_of_like_length_go_together():
    length = torch.tensor([4, 40, 5, 4, 38, 5])
    goes = by_like_length(length, length.argsort(stable=True))
    assert sorted(torch.cat(goes).tolist()) == list(range(6))
    assert [sorted(go.tolist()) for go in goes] == [[0, 2, 3, 5], [1, 4]]
    even = torch.tensor([9, 10, 9])
    assert [go.tolist() for go in by_like_length(even, even.argsort())] == [[0, 1, 2]]


@pytest.mark.parametrize("changes", [{"lora_rank": 2}, {"lora_rank": 2, "objective": "momentum"}])
def test_adapters_leave_the_pretrained_weights_alone_until_merged(products, config, changes):
    model = train_stage1(products, with_changes(config, **changes), seed=0)
    assert not any("parametrizations" in name for name in model.state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())
    start = train_stage1(products, with_changes(config, steps=1, text_learning_rate=1e-9), seed=0)
    change = model.text.layers[-1].up.weight - start.text.layers[-1].up.weight
    assert int(torch.linalg.matrix_rank(change.double(), tol=1e-5)) == 2


def test_frozen_image_layers_are_run_once_and_stay(products, config, monkeypatch):
    frozen = with_changes(config, image_layers=2, trainable_image_layers=1, steps=6)
    embeds = []
    original = image_text_training.CachedPictures._frozen
    monkeypatch.setattr(
        image_text_training.CachedPictures,
        "_frozen",
        lambda self, model, rows: embeds.append(len(rows)) or original(self, model, rows),
    )
    model = train_stage1(products, frozen, seed=0)
    assert sum(embeds) == len(products)
    start = _initial_model(
        frozen, find_text_weights(frozen.text_weights), find_image_weights("random"), 0
    )
    assert torch.equal(model.image.patches.weight, start.image.patches.weight)
    assert torch.equal(model.image.layers[0].up.weight, start.image.layers[0].up.weight)
    assert not torch.equal(model.image.layers[1].up.weight, start.image.layers[1].up.weight)


def test_a_frozen_text_encoder_is_run_once_and_stays(products, config):
    frozen = with_changes(config, trainable_text_layers=0, fusion_layers=2)
    start = _initial_model(
        frozen, find_text_weights(frozen.text_weights), find_image_weights("random"), 0
    )
    model = train_stage1(products, frozen, seed=0)
    for name, tensor in start.text.state_dict().items():
        assert torch.equal(model.text.state_dict()[name], tensor), name
    assert not torch.equal(model.itc_text.weight, start.itc_text.weight)
    assert not torch.equal(
        model.multimodal.cross[0].out.weight, start.multimodal.cross[0].out.weight
    )


def test_kept_texts_are_what_the_text_encoder_says(products, config):
    frozen = with_changes(config, trainable_text_layers=0)
    whole = Step(products, frozen)
    rows = whole.batch.row_G
    expected = whole.step._texts(whole.model, rows)
    whole.step.pooled_VT = pooled_texts(whole.model, whole.step.states).double()
    assert torch.allclose(whole.step._texts(whole.model, rows), expected, atol=1e-6)
    # The second sight of a product without image hides tokens, so it is computed anew.
    hidden = torch.ones(len(rows), config.max_text_tokens, dtype=torch.bool)
    again = whole.step._texts(whole.model, rows, hidden)
    assert not torch.allclose(again, expected, atol=1e-3)


def test_images_can_be_contrasted_with_all_texts(products, stage1_config):
    config = with_changes(
        stage1_config, trainable_text_layers=0, objective="all_texts", smoothing=0.1, steps=90
    )
    model = train_stage1(products, config, seed=0)
    assert recall_of_colours(model, products) > 0.8
    with pytest.raises(ValueError, match="'all_texts' needs trainable_text_layers=0"):
        Stage1Config(objective="all_texts")
    with pytest.raises(ValueError, match=r"smoothing=0\.1 changes the targets of objective"):
        Stage1Config(smoothing=0.1)


def test_cutmix_pastes_a_part_of_the_row_before_and_shares_the_target(products, config):
    frozen = with_changes(config, trainable_text_layers=0)
    whole = Step(products, frozen)
    step, batch = whole.step, whole.batch
    mixed = dataclasses.replace(
        batch, mixed_G=torch.arange(12) >= 6, box=cutmix_box(0.25, 1.0, 0.0)
    )
    assert mixed.own_share == 0.75
    seen = []
    # A hook that returns something would replace what the encoder is given.
    whole.model.image.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    for each in (batch, mixed):
        step._embed(whole.model, each, torch.arange(12))
    plain, pasted = seen
    assert torch.equal(pasted[:6], plain[:6])
    # A quarter of the area, bottom left.
    assert torch.equal(pasted[6:, 8:, :8], plain[5:11, 8:, :8])
    assert torch.equal(pasted[6:, :8], plain[6:, :8])
    assert torch.equal(pasted[6:, :, 8:], plain[6:, :, 8:])


@pytest.mark.parametrize("part_rows", [None, 5])
def test_training_with_cutmix_learns(products, stage1_config, part_rows):
    config = with_changes(
        stage1_config,
        trainable_text_layers=0,
        objective="all_texts",
        cutmix=0.5,
        itm_rows=4,
        steps=90,
        part_rows=part_rows,
    )
    assert recall_of_colours(train_stage1(products, config, seed=0), products) > 0.8


def test_training_may_begin_with_small_images(products, config, monkeypatch):
    sides = []
    original = PixelPictures.tokens
    monkeypatch.setattr(
        PixelPictures,
        "tokens",
        lambda self, *given: sides.append(self.pixels) or original(self, *given),
    )
    train_stage1(products, with_changes(config, small_px=8, small_share=0.5, steps=6), seed=0)
    assert sides == [8, 8, 8, 16, 16, 16]
    with pytest.raises(ValueError, match=r"small_px=8 and small_share=0\.0 go together"):
        Stage1Config(small_px=8)


def test_images_may_be_kept_larger_than_the_encoder_reads_them(products, config):
    finer = with_changes(config, source_px=32, views=ViewConfig(min_scale=0.5), steps=3)
    sizes = set()
    original = ImageEncoder.embed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ImageEncoder,
            "embed",
            lambda self, pixels: sizes.add(pixels.shape[1]) or original(self, pixels),
        )
        kept = train_stage1(products, finer, seed=0).history["stage1"]["loss"]
    assert sizes == {config.image_px}
    # The same views of coarser images are other pixels.
    coarse = with_changes(finer, source_px=None)
    assert train_stage1(products, coarse, seed=0).history["stage1"]["loss"] != kept
    with pytest.raises(ValueError, match="source_px=32 needs images in new views"):
        Stage1Config(source_px=32, trainable_image_layers=0)


def test_products_without_a_text_are_left_out_of_the_contrast_with_all_texts(products, config):
    """Theirs would be the empty text, which says nothing of any of them."""
    silent = pl.when(pl.int_range(pl.len()) % 3 == 0).then(None).otherwise(pl.col("title"))
    some = products.with_columns(title=silent)
    frozen = with_changes(config, trainable_text_layers=0, objective="all_texts", smoothing=0.1)
    training = ImageTextTraining(frozen, *_model_and_data(some, frozen), 0, Ranks())
    settle_arithmetic_(training.model, None)
    training._prepare()
    work, (batch, _) = training.work, training.draws.draw()
    assert not bool(batch.whole_G.all()) and bool(batch.whole_G.any())
    assert (work.group_V == -1).sum() == 1
    real_V, whole_G = work.group_V >= 0, batch.whole_G
    image_GE = torch.randn(len(whole_G), training.model.dim)
    expected = all_texts_loss(
        image_GE[whole_G],
        training.model.itc_text(work.pooled_VT)[real_V],
        batch.group_G[whole_G],
        work.group_V[real_V],
        temperature=training.model.temperature,
        smoothing=0.1,
    )
    assert work._among_all_texts(batch, image_GE).item() == pytest.approx(expected.item(), rel=1e-6)
    alone = dataclasses.replace(batch, kind_G=torch.full_like(batch.kind_G, IMAGE_ONLY))
    assert work._among_all_texts(alone, image_GE).item() == 0


def _model_and_data(products, config):
    texts = product_texts(products, config.text_columns)
    images = decode_images(products, config.image_px)
    groups = product_groups(products, texts)
    data = TrainingData.of(products["product_id"].to_list(), texts, images, groups)
    weights = find_text_weights(config.text_weights), find_image_weights("random")
    return _initial_model(config, *weights, 0), data


@pytest.mark.parametrize("views", ["mirror", "crops"])
def test_vectors_averaged_over_mirrored_views_see_both_alike(products, config, views):
    model = train_stage1(products, with_changes(config, image_views=views), seed=0)
    images = decode_images(products, config.image_px)
    flipped = ImageTable(
        pixel_PSS3=np.ascontiguousarray(images.pixel_PSS3[:, :, ::-1]), present_P=images.present_P
    )
    first, second = (model.embed_products(products, "image", images=i) for i in (images, flipped))
    assert np.allclose(first, second, atol=2e-3)
    one = train_stage1(products, config, seed=0)
    assert not np.allclose(first, one.embed_products(products, "image", images=images), atol=2e-3)


CUT_OFF = [
    {"objective": "momentum", "modality_dropout": 0.2},
    {"objective": "sigmoid", "final_weights": "momentum", "lora_rank": 2},
    {"objective": "in_batch", "part_rows": 5},
]


@pytest.mark.parametrize("changes", CUT_OFF)
def test_a_run_that_was_cut_off_in_mid_epoch_goes_on_to_the_same_bits(
    products, config, tmp_path, monkeypatch, changes
):
    config = with_changes(config, **changes)
    whole = train_stage1(products, config, seed=0, out=tmp_path / "whole")
    monkeypatch.setattr(image_text_training, "STATE_SECONDS", 0.0)

    class Killed(BaseException):
        pass

    def kill_at(step):
        def progress(stage, done, total, metrics):
            if stage == "stage1" and done == step:
                raise Killed

        return progress

    # Three steps make an epoch of 48 products; the fifth step is the second of its epoch.
    for cut in (5, 8):
        with pytest.raises(Killed):
            train_stage1(products, config, seed=0, out=tmp_path / "cut", progress=kill_at(cut))
    steps = []
    resumed = train_stage1(products, config, seed=0, out=tmp_path / "cut", progress=noting(steps))
    assert steps[0] == 8
    assert resumed.run["arithmetic"] == whole.run["arithmetic"]
    assert {"threads", "dtype", "hardware"} <= whole.run["arithmetic"].keys()
    assert resumed.fingerprint == whole.fingerprint
    assert resumed.history == whole.history
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


def test_a_resumed_run_computes_as_the_interrupted_one_did(products, config, tmp_path, monkeypatch):
    monkeypatch.setattr(image_text_training, "STATE_SECONDS", 0.0)

    def stop(stage, done, total, metrics):
        if stage == "stage1" and done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            arithmetic,
            "choose_precision",
            lambda *given, **named: Precision(dtype=torch.float32, reason="an older machine"),
        )
        with pytest.raises(KeyboardInterrupt):
            train_stage1(products, config, seed=0, out=tmp_path / "m", progress=stop)
    model = train_stage1(products, config, seed=0, out=tmp_path / "m")
    assert model.precision.reason == "an older machine"
    assert DashClip.load(tmp_path / "m").run["arithmetic"]["dtype"] == "float32"


def test_the_state_of_another_run_and_a_damaged_one_are_refused(
    products, config, tmp_path, monkeypatch
):
    monkeypatch.setattr(image_text_training, "STATE_SECONDS", 0.0)

    def stop(stage, done, total, metrics):
        if stage == "stage1" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_stage1(products, config, seed=0, out=tmp_path / "m", progress=stop)
    with pytest.raises(ValueError, match="state of another run, cut off at step 2"):
        train_stage1(products, config, seed=1, out=tmp_path / "m")
    file = next((tmp_path / ".m-training").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="does not have the SHA-256 of its record"):
        train_stage1(products, config, seed=0, out=tmp_path / "m")


def test_a_full_disk_leaves_the_state_before(products, config, tmp_path, monkeypatch):
    monkeypatch.setattr(image_text_training, "STATE_SECONDS", 0.0)
    written = []

    def full(path, tensors):
        if len(written) >= 2:
            raise OSError(28, "No space left on device")
        written.append(path.name)
        write_tensors_(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(image_text_training.training_state, "write_tensors_", full)
        with pytest.raises(OSError, match="No space left"):
            train_stage1(products, config, seed=0, out=tmp_path / "m")
    steps = []
    train_stage1(products, config, seed=0, out=tmp_path / "m", progress=noting(steps))
    assert steps[0] == 3


def test_a_loss_that_is_no_number_names_step_batch_and_products(products, config, monkeypatch):
    monkeypatch.setattr(
        "embeddings.image_text_step.itc_loss",
        lambda image, *args, **kwargs: image.sum() * float("nan"),
    )
    with pytest.raises(
        ValueError,
        match=r"loss is nan at stage 1, step 1, batch 1 of epoch 1 \(products p\d+, p\d+, p\d+",
    ):
        train_stage1(products, config, seed=0)


def test_a_dead_run_is_stopped(products, config, monkeypatch):
    monkeypatch.setattr(image_text_training, "CHECK_EVERY", 1)

    class Dead(PixelPictures):
        def tokens(self, model, row_B, view_BK, patch=None):
            return torch.zeros_like(super().tokens(model, row_B, view_BK)) + 1.0

    monkeypatch.setattr(image_text_training, "PixelPictures", Dead)
    one = with_changes(config, steps=60, warmup_steps=2)
    with pytest.raises(ValueError, match=r"collapsed at stage 1, step \d+.*effective_rank_image"):
        train_stage1(products, one, seed=0)
    silent = with_changes(one, alarms=False, steps=20)
    train_stage1(products, silent, seed=0)


def test_a_batch_of_parts_larger_than_it_is_refused():
    with pytest.raises(ValueError, match="part_rows=65 is more than batch=64"):
        Stage1Config(batch=64, part_rows=65)


RANKED = """
    import sys, json
    import polars as pl
    import torch
    from embeddings.precision import FLOAT32
    from embeddings import arithmetic as module
    from embeddings.stage1 import train_stage1
    from embeddings.stage1_config import Stage1Config

    module.choose_precision = lambda *given, **named: FLOAT32
    torch.set_num_threads(1)
    folder = sys.argv[1]
    config = Stage1Config.model_validate_json(open(f"{folder}/config.json").read())
    products = pl.read_parquet(f"{folder}/products.parquet")
    model = train_stage1(products, config, seed=0, out=sys.argv[2])
    print(json.dumps(model.history["stage1"]))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "momentum", "modality_dropout": 0.2},
        {"objective": "all_texts", "part_rows": 3, "trainable_text_layers": 0},
    ],
)
def test_two_ranks_under_torchrun_train_as_one_does(products, config, tmp_path, changes):
    config = with_changes(config, steps=6, **changes)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    products.write_parquet(tmp_path / "products.parquet")
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(RANKED))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", f"--master-port={port}"]
    for name, launcher in (("one", []), ("two", torchrun)):
        subprocess.run(
            [sys.executable, *launcher, str(script), str(tmp_path), str(tmp_path / name)],
            check=True,
            env=environment,
            capture_output=True,
            timeout=120,
        )
    one, two = DashClip.load(tmp_path / "one"), DashClip.load(tmp_path / "two")
    for name in ("loss", "itc", "itm", "temperature"):
        found, expected = two.history["stage1"][name], one.history["stage1"][name]
        assert found == pytest.approx(expected, abs=2e-5), name
    state = one.state_dict()
    for name, tensor in two.state_dict().items():
        assert float((tensor - state[name]).abs().max()) < 2e-3, name


def test_a_batch_that_ranks_cannot_share_is_refused():
    with pytest.raises(ValueError, match="a global batch of 15 cannot be shared by 2 ranks"):
        Ranks(rank=0, world=2).own(15)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's own tracing warns
def test_compiled_layers_train_as_they_are_written(products, config):
    plain = train_stage1(products, config, seed=0).history["stage1"]["loss"]
    compiled = train_stage1(products, with_changes(config, compile=True), seed=0)
    assert compiled.history["stage1"]["loss"] == pytest.approx(plain, abs=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_gpu_trains_the_same_thing(products, stage1_config, objective):
    config = with_changes(stage1_config, objective=objective, steps=90, queue=32, momentum=0.95)
    model = train_stage1(products, config, seed=0)
    assert model.device.type == "cuda"
    assert recall_of_colours(model, products) > 0.8
