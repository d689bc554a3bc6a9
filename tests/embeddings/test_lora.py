import copy
import math

import pytest
import torch
from torch import nn

from embeddings.lora import add_lora_, has_lora, merge_lora_
from embeddings.transformer import TransformerLayer


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return nn.ModuleList(TransformerLayer(16, 4, 32, norm="pre") for _ in range(2))


def outputs(layers):
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
    for layer in layers:
        # Both ways through a layer, for one of them reads slices of the weight.
        x = x + layer.feed(layer.attend(x, None, read_B1D=x[:, :1]))
        x = layer(x)
    return x


def adapted(layers, **settings):
    generator = torch.Generator().manual_seed(2)
    return add_lora_(layers, **{"rank": 4, "alpha": 8.0, "generator": generator, **settings})


def train_(layers, adapters, steps=3):
    optimizer = torch.optim.SGD(adapters, lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        outputs(layers).square().mean().backward()
        optimizer.step()


def test_adapters_begin_as_nothing_and_only_they_train(layers):
    before, plain = outputs(layers), copy.deepcopy(layers.state_dict())
    adapters = adapted(layers)
    assert torch.equal(outputs(layers), before)
    assert {id(p) for p in layers.parameters() if p.requires_grad} == {id(p) for p in adapters}
    # Four maps a layer: 4 x (16 + 48), (16 + 16), (16 + 32), (32 + 16).
    assert sum(p.numel() for p in adapters) == 2 * 4 * (64 + 32 + 48 + 48)
    train_(layers, adapters)
    assert not torch.allclose(outputs(layers), before)
    merge_free = {
        name.replace(".base.", "."): tensor
        for name, tensor in layers.state_dict().items()
        if not name.endswith(("down_RI", "up_OR"))
    }
    assert all(torch.equal(merge_free[name], tensor) for name, tensor in plain.items())


def test_an_adapter_adds_its_scaled_product():
    holder = nn.Sequential(nn.Linear(3, 2))
    weight = holder[0].weight.detach().clone()
    down, up = adapted([holder], rank=2, alpha=6.0)
    assert down.abs().max() <= 1 / math.sqrt(3)
    with torch.no_grad():
        up.fill_(1.0)
    expected = weight + 3.0 * down.sum(0).expand(2, 3)
    torch.testing.assert_close(holder[0].weight, expected)
    x = torch.randn(4, 3)
    torch.testing.assert_close(holder(x), x @ expected.T + holder[0].bias)


def test_merging_gives_the_plain_module_with_the_same_outputs(layers):
    names = list(layers.state_dict())
    train_(layers, adapted(layers))
    assert has_lora(layers)
    before = outputs(layers)
    assert merge_lora_(layers) is layers
    torch.testing.assert_close(outputs(layers), before, atol=1e-6, rtol=0)
    assert sorted(layers.state_dict()) == sorted(names)
    assert not has_lora(layers)
    assert all(p.requires_grad for p in layers.parameters())


def test_training_goes_on_from_a_saved_state_to_the_same_bits(layers):
    other = copy.deepcopy(layers)
    adapters = adapted(layers)
    train_(layers, adapters)
    resumed = adapted(other, generator=torch.Generator().manual_seed(99))
    other.load_state_dict(layers.state_dict())
    train_(layers, adapters)
    train_(other, resumed)
    assert torch.equal(outputs(layers), outputs(other))


def test_a_copy_has_adapters_of_its_own(layers):
    adapters = adapted(layers)
    follower = copy.deepcopy(layers)
    before = outputs(follower)
    train_(layers, adapters)
    assert torch.equal(outputs(follower), before)
    merge_lora_(follower)
    assert torch.equal(outputs(follower), before)
    assert not torch.allclose(outputs(layers), before)


def test_adapters_that_cannot_be_are_refused(layers):
    with pytest.raises(ValueError, match="rank=0"):
        adapted(layers, rank=0)
    with pytest.raises(ValueError, match="no linear map"):
        adapted([nn.LayerNorm(3)])
    adapted(layers)
    with pytest.raises(ValueError, match="adapters already"):
        adapted(layers)
