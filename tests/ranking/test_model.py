"""The click network, layer by layer."""

import numpy as np
import pytest
import torch

from features.embedding_join import derived_features, gather_vectors
from ranking.contract import InputSignature
from ranking.fused_tables import FusedTables
from ranking.inputs import ExampleTensors, FrozenVectors
from ranking.layers import CrossNetwork
from ranking.network import build_network, network_to_fill
from ranking.tower_config import TowerConfig
from ranking.vector_features import VectorFeatures


@pytest.fixture
def tables():
    torch.manual_seed(0)
    return FusedTables(["user_id", "products.brand"], [5, 3], 4, learning_rate=0.5)


def test_a_cross_by_hand():
    # x0 = 3, W = 2, b = 1: x1 = 3 * (2*3 + 1) + 3 = 24, x2 = 3 * (2*24 + 1) + 24 = 171.
    cross = CrossNetwork(1, 2, rank=None)
    with torch.no_grad():
        for layer in cross.layers:
            layer.weight.fill_(2.0)
            layer.bias.fill_(1.0)
    assert cross(torch.tensor([[3.0]])).item() == 171.0


def test_a_low_rank_cross_equals_the_full_one_with_the_product_matrix():
    torch.manual_seed(0)
    low, full = CrossNetwork(5, 1, rank=2), CrossNetwork(5, 1, rank=None)
    narrow, wide = low.layers[0]
    with torch.no_grad():
        full.layers[0].weight.copy_(wide.weight @ narrow.weight)
        full.layers[0].bias.copy_(wide.bias)
    x_BW = torch.randn(7, 5)
    torch.testing.assert_close(low(x_BW), full(x_BW))


def test_no_crosses_return_the_input():
    x_BW = torch.randn(2, 3)
    assert torch.equal(CrossNetwork(3, 0, rank=None)(x_BW), x_BW)


def test_fused_tables_return_each_features_own_row(tables):
    user_VE, brand_VE = tables.weights()
    out_BW = tables(torch.tensor([[4, 1], [2, 2]]))
    torch.testing.assert_close(out_BW[0], torch.cat([user_VE[4], brand_VE[1]]))
    torch.testing.assert_close(out_BW[1], torch.cat([user_VE[2], brand_VE[2]]))


def test_one_step_of_row_wise_adagrad_by_hand(tables):
    # Every gradient is 1, so the row's mean square is 1 after one step and 2 after two:
    # the row moves by 0.5 / sqrt(1), then at a tenth of the rate by 0.05 / sqrt(2).
    before_VE = tables.weights()[0].detach().clone()
    tables(torch.tensor([[4, 1]])).sum().backward()
    step_VE = before_VE - tables.weights()[0].detach()
    torch.testing.assert_close(step_VE[4], torch.full((4,), 0.5))
    assert torch.equal(step_VE[:4], torch.zeros(4, 4))
    tables.set_learning_rate(0.05)
    tables(torch.tensor([[4, 1]])).sum().backward()
    step_VE = before_VE - tables.weights()[0].detach()
    torch.testing.assert_close(step_VE[4], torch.full((4,), 0.5 + 0.05 / 2**0.5))


def test_out_of_vocabulary_starts_without_an_opinion(tables):
    assert torch.equal(tables(torch.tensor([[0, 0]])), torch.zeros(1, 8))


def test_gathered_vectors_equal_those_of_the_features_package(small_log):
    rows = gather_vectors(small_log.vectors, small_log.test)
    batch = ExampleTensors(small_log.test, FrozenVectors(small_log.vectors)).batch(slice(None))
    expected = (rows.product_ND, rows.query_ND, rows.history_ND, rows.present_N3)
    for found_BX, expected_NX in zip(batch[2:], expected, strict=True):
        np.testing.assert_allclose(found_BX.numpy(), expected_NX, atol=1e-6)
    assert rows.present_N3.min() == 0, "the test needs rows that lack vectors"


def test_cosines_are_the_derived_features_on_the_scale_of_training(small_log):
    rows = gather_vectors(small_log.vectors, small_log.test)
    layer = VectorFeatures(8, projected=4, derived=True, presence=True, dropout=0.0)
    layer.set_cosine_statistics(torch.tensor([0.1, -0.2]), torch.tensor([0.5, 0.25]))
    given = [
        torch.from_numpy(array)
        for array in (rows.product_ND, rows.query_ND, rows.history_ND, rows.present_N3)
    ]
    _, plain_BW = layer(*given)
    both_N2 = rows.present_N3[:, :1] * rows.present_N3[:, 1:]
    expected_N2 = (derived_features(rows) - [0.1, -0.2]) / [0.5, 0.25] * both_N2
    np.testing.assert_allclose(plain_BW[:, :2].numpy(), expected_N2, atol=1e-5)
    np.testing.assert_array_equal(plain_BW[:, 2:].numpy(), rows.present_N3)


def test_the_length_of_a_vector_does_not_matter_only_its_direction(small_log):
    layer = VectorFeatures(8, projected=4, derived=True, presence=False, dropout=0.0)
    product_BD, query_BD, history_BD = torch.randn(3, 6, 8)
    present_B3 = torch.ones(6, 3)
    once = layer(product_BD, query_BD, history_BD, present_B3)
    scaled = layer(7 * product_BD, 0.1 * query_BD, 3 * history_BD, present_B3)
    for a_BW, b_BW in zip(once, scaled, strict=True):
        torch.testing.assert_close(a_BW, b_BW)


def test_the_baseline_is_the_production_tower_with_the_same_head(small_log):
    signature = InputSignature.of(small_log.train, small_log.vectors)
    networks = []
    for use_vectors in (False, True):
        torch.manual_seed(3)
        networks.append(build_network(TowerConfig(use_vectors=use_vectors), signature)[0])
    alone, beside = (network.production.state_dict() for network in networks)
    assert alone.keys() == beside.keys()
    assert all(torch.equal(alone[name], beside[name]) for name in alone)
    assert [m.__class__ for m in networks[0].head] == [m.__class__ for m in networks[1].head]
    assert networks[0].vectors is None
    assert networks[0].tower is None


def test_an_untrained_network_predicts_about_the_base_rate(small_log):
    torch.manual_seed(0)
    signature = InputSignature.of(small_log.train, small_log.vectors)
    network, _ = build_network(TowerConfig(), signature)
    network.set_base_rate(0.04)
    batch = ExampleTensors(small_log.test, FrozenVectors(small_log.vectors)).batch(slice(None))
    p_click_B = torch.sigmoid(network.eval()(*batch))
    assert p_click_B.mean().item() == pytest.approx(0.04, rel=0.3)


def test_a_network_to_fill_leaves_the_callers_generator_alone(small_log):
    signature = InputSignature.of(small_log.train, small_log.vectors)
    before = torch.get_rng_state()
    filled = network_to_fill(TowerConfig(), signature)
    without = network_to_fill(TowerConfig(), signature, rows=False)
    assert torch.equal(torch.get_rng_state(), before)
    drawn, _ = build_network(TowerConfig(), signature)
    shapes = {name: value.shape for name, value in drawn.state_dict().items()}
    for network, held in ((filled, True), (without, False)):
        assert {n: v.shape for n, v in network.state_dict().items()} == shapes
        assert {weight_VE.is_meta for weight_VE in network.production.tables.weights()} == {
            not held
        }
