"""Target attention: weights by hand, masks that hold, and a world that only it can learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ranking.attention import ActivationUnit, HistoryAttention, history_columns, history_rows
from ranking.metrics import auc
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig


def unit_of_product(softmax, of_difference=0.0):
    """A unit whose weight of h is the sum of h * p, and some of the first number of h - p."""
    unit = ActivationUnit(2, (), softmax=softmax)
    with torch.no_grad():
        unit.weight.weight.copy_(torch.tensor([[0.0, 0, 0, 0, of_difference, 0, 1, 1]]))
        unit.weight.bias.zero_()
    return unit


HISTORY = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [9.0, 9.0]]])
PRESENT = torch.tensor([[1.0, 1.0, 0.0]])


def test_without_softmax_each_product_counts_by_its_own_weight():
    found = unit_of_product(softmax=False)(torch.tensor([[1.0, 1.0]]), HISTORY, PRESENT)
    # Weights 3 and 2; the third product is not there.
    np.testing.assert_allclose(found.detach(), [[3 * 1 + 2 * 3, 3 * 2 - 2 * 1]])
    unit = unit_of_product(softmax=False, of_difference=10.0)
    found = unit(torch.tensor([[1.0, 1.0]]), HISTORY, PRESENT)
    np.testing.assert_allclose(found.detach(), [[3 * 1 + 22 * 3, 3 * 2 - 22 * 1]])


def test_with_softmax_the_weights_of_those_present_sum_to_one():
    found = unit_of_product(softmax=True)(torch.tensor([[1.0, 1.0]]), HISTORY, PRESENT)
    w = np.e / (1 + np.e)
    np.testing.assert_allclose(found.detach(), [[w + 3 * (1 - w), 2 * w - (1 - w)]], rtol=1e-6)


@pytest.mark.parametrize("softmax", [True, False])
def test_an_empty_history_is_zero_and_its_gradient_finite(softmax):
    history = HISTORY.clone().requires_grad_()
    found = unit_of_product(softmax)(torch.ones(1, 2), history, torch.zeros(1, 3))
    found.sum().backward()
    assert not found.detach().any()
    assert torch.isfinite(history.grad).all()


def test_rows_say_candidate_then_history_and_what_training_never_saw_is_none(small_log):
    some = small_log.test.take(slice(0, 50))
    rows = history_rows(small_log.train)
    assert rows == 41
    stranger = replace(some, product_N=np.full(50, 40, np.int32))
    names, row_NL = history_columns(stranger, rows)
    assert names == ["history.candidate", "history.0", "history.1", "history.2", "history.3"]
    assert not row_NL[:, 0].any()
    np.testing.assert_array_equal(row_NL[:, 1:], some.history_NL + 1)
    assert history_columns(stranger, None)[1][0, 0] == 41


def test_products_without_a_vector_get_no_weight(small_log):
    attention = HistoryAttention(None, 8, columns=3, width=4, mlp=(), softmax=False)
    attention.set_vectors(small_log.vectors)
    absent = int(np.flatnonzero(~small_log.vectors.product_present_P)[0]) + 1
    found = attention(torch.tensor([[5, 0, absent]]))
    assert not found.detach().any()
    assert "product_PD" not in attention.state_dict()


@pytest.mark.parametrize("kind", ["ids", "vectors"])
def test_clicks_on_what_was_bought_before_are_learned_by_attention_alone(kind, small_log):
    # Whether the candidate is in the history: no id and no mean of the history tells.
    def with_clicks(examples, seed):
        rng = np.random.default_rng(seed)
        history_NL = rng.integers(40, size=examples.history_NL.shape).astype(np.int32)
        repeat_N = rng.random(len(examples)) < 0.5
        product_N = np.where(repeat_N, history_NL[:, 1], rng.integers(40, size=len(examples)))
        clicked_N = rng.random(len(examples)) < np.where(repeat_N, 0.9, 0.1)
        return replace(
            examples,
            product_N=product_N.astype(np.int32),
            history_NL=history_NL,
            label_N=clicked_N.astype(np.float32),
        )

    vectors = replace(small_log.vectors, product_present_P=np.ones(40, bool))
    rng = np.random.default_rng(0)
    vectors = replace(vectors, product_PD=rng.normal(size=(40, 8)).astype("f4") / 8**0.5)
    train, validation, test = (
        with_clicks(part, seed)
        for seed, part in enumerate((small_log.train, small_log.validation, small_log.test))
    )
    scores = {}
    for attention in ("none", kind):
        config = TowerConfig(
            use_vectors=False, attention=attention, batch_size=64, max_epochs=8, lr=5e-3,
            sparse_lr=0.2, checks_per_epoch=1, patience=8,
        )  # fmt: skip
        model = TowerRanker(config).fit(train, validation, vectors, seed=0)
        scores[attention] = auc(test.label_N, model.predict_proba(test, vectors))
    assert scores["none"] < 0.6
    assert scores[kind] > 0.7
