"""Going on from an earlier model: known ids keep what they learned, new ones begin."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ranking.contract import InputSignature
from ranking.network import build_network
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig
from ranking.train import predict_network
from ranking.warm_start import carry_over_

CONFIG = TowerConfig(batch_size=100, projected_dim=8, bf16="off", max_epochs=2)


@pytest.fixture(scope="module")
def earlier(small_log):
    return TowerRanker(CONFIG).fit(small_log.train, small_log.validation, small_log.vectors, seed=0)


def grown(examples, more=4):
    sizes = tuple(size + more for size in examples.vocabulary_sizes)
    return replace(examples, vocabulary_sizes=sizes)


def test_a_grown_network_scores_known_ids_as_before(small_log, earlier):
    signature = InputSignature.of(grown(small_log.train), small_log.vectors)
    network, tables = build_network(CONFIG, signature)
    first = [weight.detach().clone() for weight in tables.weights()]
    carry_over_(network, signature, earlier)
    network.vectors.load_state_dict(earlier.network_.vectors.state_dict())
    inputs = earlier._inputs(small_log.test, small_log.vectors)
    assert np.array_equal(
        predict_network(network, inputs), earlier.predict_proba(small_log.test, small_log.vectors)
    )
    old = earlier.network_.production.tables
    for drawn_VE, weight_VE, old_VE, sum_V, old_V in zip(
        first, tables.weights(), old.weights(), tables.accumulators(), old.accumulators(),
        strict=True,
    ):  # fmt: skip
        known = len(old_VE)
        assert torch.equal(weight_VE[:known], old_VE)
        assert torch.equal(weight_VE[known:], drawn_VE[known:]), "new ids begin as drawn"
        assert torch.equal(sum_V[:known], old_V) and old_V.max() > 0
        assert (sum_V[known:] == 0).all()


def test_going_on_begins_better_than_beginning(small_log, earlier):
    train, validation = grown(small_log.train), grown(small_log.validation)
    settings = CONFIG.model_copy(update={"max_epochs": 1, "patience": 99})
    fresh = TowerRanker(settings).fit(train, validation, small_log.vectors, seed=1)
    on = TowerRanker(settings).fit(train, validation, small_log.vectors, seed=1, start_from=earlier)
    assert on.checks_[0].validation_log_loss_nats < fresh.checks_[0].validation_log_loss_nats


def test_what_adagrad_saw_is_stored_with_the_model(earlier, tmp_path):
    earlier.save_(tmp_path / "model")
    loaded = TowerRanker.load(tmp_path / "model")
    for own, stored in zip(
        earlier.network_.production.tables.accumulators(),
        loaded.network_.production.tables.accumulators(),
        strict=True,
    ):
        assert torch.equal(own, stored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary_sizes": (2, 3, 4)}, "would shrink from"),
        ({"dense_names": ("price", "weight")}, "dense columns"),
    ],
)
def test_other_features_are_refused(small_log, earlier, change, message):
    signature = replace(InputSignature.of(small_log.train, small_log.vectors), **change)
    network, _ = build_network(CONFIG, signature)
    with pytest.raises(ValueError, match=message):
        carry_over_(network, signature, earlier)


def test_other_layers_are_refused(small_log, earlier):
    signature = InputSignature.of(small_log.train, small_log.vectors)
    network, _ = build_network(CONFIG.model_copy(update={"head": (32,)}), signature)
    with pytest.raises(ValueError, match=r"head\.0\.weight has shape .* a model goes on only"):
        carry_over_(network, signature, earlier)
