"""One contract, run over every click model."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from features.file_sum import file_sha256
from ranking.baselines import (
    BaseRate,
    LightGBMConfig,
    LightGBMRanker,
    LogisticRegression,
    LogisticRegressionConfig,
)
from ranking.contract import load_click_model
from ranking.metrics import auc
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig

TOWER = {"batch_size": 128, "max_epochs": 3, "projected_dim": 8, "sparse_lr": 0.05, "lr": 3e-3}

BRIEF = {**TOWER, "max_epochs": 1, "batch_size": 400}
"""For parts whose learning their own tests hold; here is that they keep the contract."""
EVERY_PART = {
    "attention": "ids",
    "semantic_levels": 2,
    "semantic_codes": 4,
    "frequency_gate": "query_id",
    "position_slots": 3,
    "entire_space": True,
}
MODELS = {
    "base_rate": BaseRate,
    "logistic": lambda: LogisticRegression(LogisticRegressionConfig(c_values=(0.1,))),
    "logistic+vectors": LogisticRegression,
    "lightgbm": lambda: LightGBMRanker(LightGBMConfig(rounds=20, min_leaf_rows=20)),
    "lightgbm+vectors": lambda: LightGBMRanker(LightGBMConfig(rounds=20, min_leaf_rows=20)),
    "production": lambda: TowerRanker(TowerConfig(use_vectors=False, **TOWER)),
    "tower": lambda: TowerRanker(TowerConfig(**TOWER)),
    "single_tower": lambda: TowerRanker(TowerConfig(single_tower=True, **TOWER)),
    "no_derived": lambda: TowerRanker(TowerConfig(derived=False, presence=False, **TOWER)),
    "full_rank": lambda: TowerRanker(TowerConfig(use_vectors=False, cross_rank=None, **BRIEF)),
    "attention": lambda: TowerRanker(TowerConfig(attention="vectors", **BRIEF)),
    "attention_ids": lambda: TowerRanker(
        TowerConfig(use_vectors=False, attention="ids", attention_softmax=True, **BRIEF)
    ),
    "semantic_ids": lambda: TowerRanker(
        TowerConfig(use_vectors=False, semantic_levels=2, semantic_codes=4, **BRIEF)
    ),
    "frequency_gate": lambda: TowerRanker(
        TowerConfig(use_vectors=False, frequency_gate="products.category", **BRIEF)
    ),
    "position": lambda: TowerRanker(TowerConfig(position_slots=4, **BRIEF)),
    "entire_space": lambda: TowerRanker(TowerConfig(entire_space=True, **BRIEF)),
    "every_part": lambda: TowerRanker(TowerConfig(**EVERY_PART, **BRIEF)),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums in one order, so that equal seeds give equal bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fit(name, log, **options):
    """Fit a model; the baselines use vectors where they are given some."""
    vectors = None if name in ("logistic", "lightgbm") else log.vectors
    options = {"train": log.train, "validation": log.validation, "seed": 0, **options}
    return MODELS[name]().fit(vectors=vectors, **options)


@pytest.fixture(scope="module")
def fitted(small_log):
    """Each model fitted once, for the tests that only read it."""
    models = {}

    def get(name):
        if name not in models:
            models[name] = fit(name, small_log)
        return models[name]

    return get


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def test_probabilities_are_one_a_row_and_in_range(name, fitted, small_log):
    p_click_N = fitted(name).predict_proba(small_log.test, small_log.vectors)
    assert p_click_N.shape == (len(small_log.test),)
    assert p_click_N.dtype == np.float64
    assert np.all((p_click_N > 0) & (p_click_N < 1))


def test_order_of_rows_does_not_matter(name, fitted, small_log):
    order_N = np.random.default_rng(1).permutation(len(small_log.test))
    p_click_N = fitted(name).predict_proba(small_log.test, small_log.vectors)
    permuted_N = fitted(name).predict_proba(small_log.test.take(order_N), small_log.vectors)
    np.testing.assert_allclose(permuted_N, p_click_N[order_N], atol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 400])
def test_size_of_batches_does_not_matter(name, size, fitted, small_log):
    test = small_log.test.take(slice(0, 60))
    whole_N = fitted(name).predict_proba(test, small_log.vectors)
    parts = [
        fitted(name).predict_proba(test.take(slice(start, start + size)), small_log.vectors)
        for start in range(0, len(test), size)
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole_N, atol=1e-6)


def test_no_rows_give_no_probabilities(name, fitted, small_log):
    nothing = small_log.test.take(slice(0, 0))
    assert fitted(name).predict_proba(nothing, small_log.vectors).shape == (0,)


def test_strangers_are_scored(name, fitted, small_log):
    one = small_log.test.take(slice(0, 1))
    stranger = replace(
        one,
        sparse_NF=np.zeros_like(one.sparse_NF),
        product_N=np.full_like(one.product_N, -1),
        query_N=np.full_like(one.query_N, -1),
        history_NL=np.full_like(one.history_NL, -1),
        label_N=None,
    )
    p_click_N = fitted(name).predict_proba(stranger, small_log.vectors)
    assert 0 < p_click_N[0] < 1


def test_one_seed_gives_one_model_to_the_bit(name, fitted, small_log):
    first_N = fitted(name).predict_proba(small_log.test, small_log.vectors)
    torch.manual_seed(99)
    np.testing.assert_array_equal(
        fit(name, small_log).predict_proba(small_log.test, small_log.vectors), first_N
    )


def test_fitting_leaves_the_global_generator_alone(name, small_log):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fit(name, small_log)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_saved_model_scores_the_same_to_the_bit(name, fitted, small_log, tmp_path):
    fitted(name).save_(tmp_path / "model")
    loaded = load_click_model(tmp_path / "model")
    assert type(loaded) is type(fitted(name))
    np.testing.assert_array_equal(
        loaded.predict_proba(small_log.test, small_log.vectors),
        fitted(name).predict_proba(small_log.test, small_log.vectors),
    )


def test_one_flipped_bit_is_refused_before_parsing(name, fitted, tmp_path):
    fitted(name).save_(tmp_path / "model")
    for path in sorted((tmp_path / "model").iterdir()):
        if path.name == "manifest.json":
            continue
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match="changed or damaged"):
            load_click_model(tmp_path / "model")
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def test_nothing_is_overwritten(name, fitted, tmp_path):
    fitted(name).save_(tmp_path / "model")
    with pytest.raises(ValueError, match="exists already"):
        fitted(name).save_(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_other_vectors_are_refused(name, fitted, small_log):
    model, other = fitted(name), replace(small_log.vectors, fingerprint="other+other")
    if not model.uses_vectors:
        same_N = model.predict_proba(small_log.test, None)
        np.testing.assert_array_equal(model.predict_proba(small_log.test, other), same_N)
        return
    with pytest.raises(ValueError, match=r"fingerprint 'other\+other'"):
        model.predict_proba(small_log.test, other)
    with pytest.raises(ValueError, match="vectors=None"):
        model.predict_proba(small_log.test, None)


def test_a_tower_refuses_to_be_fitted_without_vectors(small_log):
    with pytest.raises(ValueError, match="vectors=None, but use_vectors=True"):
        TowerRanker().fit(small_log.train, small_log.validation, None, seed=0)


def test_renamed_or_permuted_features_are_refused(name, fitted, small_log):
    test, vectors = small_log.test, small_log.vectors
    a, b, c = test.sparse_names
    with pytest.raises(ValueError, match="come in the order"):
        fitted(name).predict_proba(replace(test, sparse_names=(b, a, c)), vectors)
    with pytest.raises(ValueError, match="unexpected \\['brand'\\]"):
        fitted(name).predict_proba(replace(test, sparse_names=(a, b, "brand")), vectors)
    with pytest.raises(ValueError, match="dense columns come in the order"):
        fitted(name).predict_proba(replace(test, dense_names=test.dense_names[::-1]), vectors)
    with pytest.raises(ValueError, match="vocabulary of 'user_id' has 51 rows"):
        fitted(name).predict_proba(replace(test, vocabulary_sizes=(51, 31, 6)), vectors)


def test_ids_beyond_a_table_are_refused(name, fitted, small_log):
    sparse_NF = small_log.test.sparse_NF.copy()
    sparse_NF[3, 2] = 6
    with pytest.raises(ValueError, match=r"'products.category' is 6 in row 3, must be 0 to 5"):
        fitted(name).predict_proba(replace(small_log.test, sparse_NF=sparse_NF), small_log.vectors)
    if fitted(name).uses_vectors:
        product_N = small_log.test.product_N + 40
        with pytest.raises(ValueError, match=r"product_N is .* must be -1 to 39"):
            fitted(name).predict_proba(
                replace(small_log.test, product_N=product_N), small_log.vectors
            )


def test_histories_longer_than_their_cap_are_refused(name, fitted, small_log):
    test = small_log.test
    longer_NL = np.concatenate([test.history_NL, test.history_NL], axis=1)
    with pytest.raises(ValueError, match=r"holds 8 products a row, but .* at most 4"):
        fitted(name).predict_proba(replace(test, history_NL=longer_NL), small_log.vectors)


def test_columns_of_unequal_length_are_refused(small_log):
    test = small_log.test
    for name in ("sparse_NF", "dense_NC", "history_NL", "position_N", "purchased_N"):
        with pytest.raises(ValueError, match=f"has 400 rows, unlike {name}"):
            replace(test, **{name: getattr(test, name)[1:]})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_dense_values_that_are_not_finite_are_refused(name, bad, fitted, small_log):
    dense_NC = small_log.test.dense_NC.copy()
    dense_NC[5, 0] = bad
    with pytest.raises(ValueError, match=rf"'products.price' is {bad} in row 5"):
        fitted(name).predict_proba(replace(small_log.test, dense_NC=dense_NC), small_log.vectors)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "carry no labels"),
        (2.0, "label in row 0 is 2"),
        (np.nan, "label in row 0 is nan"),
        ("all zero", "all 1600 training labels are 0"),
        ("all one", "all 1600 training labels are 1"),
        ("too few", r"label_N \(1599,\)"),
    ],
)
def test_labels_that_cannot_be_learned_from_are_refused(name, label, message, small_log):
    assert small_log.train.label_N is not None
    label_N = small_log.train.label_N.copy()
    if label is None:
        label_N = None
    elif label in ("all zero", "all one"):
        label_N[:] = label == "all one"
    elif label == "too few":
        label_N = label_N[:-1]
    else:
        label_N[0] = label
    with pytest.raises(ValueError, match=message):
        train = replace(small_log.train, label_N=label_N)
        fit(name, small_log, train=train)


def test_progress_is_reported_within_its_bounds(name, small_log):
    calls = []
    fit(name, small_log, progress=lambda *call: calls.append(call))
    assert calls or name == "base_rate"
    assert all(0 < done <= at_most and line for done, at_most, line in calls)


def test_vectors_that_carry_the_clicks_are_used(fitted, small_log):
    label_N = small_log.test.label_N
    scores = {
        name: auc(label_N, fitted(name).predict_proba(small_log.test, small_log.vectors))
        for name in MODELS
    }
    assert scores["base_rate"] == 0.5
    assert scores["tower"] > scores["production"] + 0.05
    assert scores["logistic+vectors"] > scores["logistic"] + 0.05
    assert scores["lightgbm+vectors"] > scores["lightgbm"] + 0.03


def test_a_folder_of_an_unknown_kind_is_refused(fitted, tmp_path):
    fitted("base_rate").save_(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    manifest = tmp_path / "model" / "manifest.json"
    before = manifest.read_text()
    config.write_text(json.dumps({"kind": "oracle"}))
    old = json.loads(before)["sha256"]["config.json"]
    manifest.write_text(before.replace(old, file_sha256(config)))
    with pytest.raises(ValueError, match="kind is 'oracle', must be 'tower' or one of"):
        load_click_model(tmp_path / "model")
    with pytest.raises(ValueError, match="does not exist"):
        load_click_model(tmp_path / "nothing")
