"""Masters, copies and the fused optimizer, against the plain way of training."""

import pytest
import torch
from torch import nn

from ranking import layers as layers_module
from ranking.crosses import crossed
from ranking.dense_weights import DenseWeights
from ranking.hidden_layers import hidden_layers
from ranking.layers import CrossNetwork, mlp_of


def network():
    torch.manual_seed(0)
    return nn.Sequential(*mlp_of(6, (8, 4), 0.0), nn.Linear(4, 1))


def batches(count, width=6):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, width, generator=generator) for _ in range(count)]


def train(model, step, count=20, autocast=False):
    for x_BW in batches(count):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hidden_BW = model[:-1](x_BW)
        loss = (model[-1](hidden_BW.float())[:, 0] - x_BW.sum(1)).square().mean()
        loss.backward()
        step()
    return loss.item()


def trained_plainly(count=20):
    plain = network()
    groups = [
        {"params": [p for p in plain.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in plain.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)

    def step():
        optimizer.step()
        optimizer.zero_grad()

    loss = train(plain, step, count)
    return plain, loss


def dense_of(model, **options):
    dense = DenseWeights(model, lr=1e-2, weight_decay=0.1, **{"bf16": False, **options})
    dense.compute_()
    return dense


def test_in_float32_the_weights_are_those_of_plain_adamw():
    own = network()
    dense = dense_of(own)
    train(own, dense.step_)
    dense.release_()
    plain, _ = trained_plainly()
    for mine, theirs in zip(own.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_in_bfloat16_the_loss_comes_down_as_far():
    own = network()
    dense = dense_of(own, bf16=True)
    # Hidden layers compute with rounded weights, the layer of one output with its masters.
    assert [p.dtype for p in own.parameters()] == [torch.bfloat16] * 4 + [torch.float32] * 2
    loss = train(own, dense.step_, count=300, autocast=True)
    dense.release_()
    _, plain_loss = trained_plainly(300)
    assert max(loss, plain_loss) < 0.01, "it begins at 6"
    assert {p.dtype for p in own.parameters()} == {torch.float32}


def test_updates_too_small_for_bfloat16_add_up_in_the_masters():
    layer = nn.Linear(1, 2, bias=False)
    nn.init.ones_(layer.weight)
    dense = DenseWeights(layer, lr=1e-4, weight_decay=0.0, bf16=True)
    dense.compute_()
    # Each step moves the weight by 1e-4, a fortieth of what bfloat16 tells apart near 1.
    for _ in range(50):
        layer.weight.grad = torch.full((2, 1), 1.0, dtype=torch.bfloat16)
        dense.step_()
    dense.score_()
    torch.testing.assert_close(layer.weight, torch.full((2, 1), 1 - 50e-4), rtol=1e-5, atol=0)


def test_the_average_by_hand():
    layer = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(layer.weight)
    dense = DenseWeights(layer, lr=1.0, weight_decay=0.0, bf16=False, ema_decay=0.5)
    # Adam's first steps of rate 1 go down by 1 each; the decay begins at 2/11, then is 3/12.
    expected, weight = 0.0, 0.0
    for step in (1, 2):
        layer.weight.grad = torch.ones(2, 1)
        dense.step_()
        weight -= 1.0
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    dense.score_()
    torch.testing.assert_close(layer.weight.detach(), torch.full((2, 1), expected))


def test_a_restored_state_goes_on_to_the_same_bits():
    own = network()
    dense = dense_of(own, bf16=True, ema_decay=0.9)
    train(own, dense.step_, count=5, autocast=True)
    kept, steps = {k: v.clone() for k, v in dense.tensors().items()}, dense.steps
    train(own, dense.step_, count=7, autocast=True)
    other = network()
    again = dense_of(other, bf16=True, ema_decay=0.9)
    again.restore_(kept, steps)
    train(other, again.step_, count=7, autocast=True)
    for name, value in dense.tensors().items():
        assert torch.equal(value, again.tensors()[name]), name


@pytest.mark.parametrize("rank", [None, 3])
def test_the_crosses_gradient_is_torchs_own(rank):
    torch.manual_seed(0)
    cross = CrossNetwork(7, 3, rank).double()
    x_BW = torch.randn(5, 7, dtype=torch.double, requires_grad=True)
    layers = [list(layer.parameters()) for layer in cross.layers]
    assert torch.autograd.gradcheck(lambda x: crossed(x, layers), (x_BW,))
    plain_BW = x_BW
    for layer in cross.layers:
        plain_BW = x_BW * layer(plain_BW) + plain_BW
    given = [x_BW, *cross.parameters()]
    upstream_BW = torch.randn(5, 7, dtype=torch.double)
    theirs = torch.autograd.grad(plain_BW, given, upstream_BW)
    mine = torch.autograd.grad(cross(x_BW), given, upstream_BW)
    for own, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


def test_the_hidden_layers_gradient_is_torchs_own():
    torch.manual_seed(0)
    plain = mlp_of(7, (6, 5), dropout=0.0).double()
    x_BW = torch.randn(9, 7, dtype=torch.double, requires_grad=True)
    layers = [(layer.weight, layer.bias) for layer in plain if isinstance(layer, nn.Linear)]
    assert torch.autograd.gradcheck(lambda x: hidden_layers(x, layers), (x_BW,))
    given, upstream_BW = [x_BW, *plain.parameters()], torch.randn(9, 5, dtype=torch.double)
    theirs = torch.autograd.grad(plain(x_BW), given, upstream_BW)
    mine = torch.autograd.grad(hidden_layers(x_BW, layers), given, upstream_BW)
    for own, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


def test_hidden_layers_in_bfloat16_are_those_that_torch_would_compute(monkeypatch):
    torch.manual_seed(0)
    own = mlp_of(40, (24, 16), dropout=0.0)
    x_BW, upstream_BW = torch.randn(33, 40, requires_grad=True), torch.randn(33, 16)
    given, calls = [x_BW, *own.parameters()], []

    def taken(*arguments, **options):
        calls.append(arguments)
        return hidden_layers(*arguments, **options)

    monkeypatch.setattr(layers_module, "hidden_layers", taken)

    def gradients(layers):
        with torch.autocast("cpu", torch.bfloat16):
            out_BW = layers(x_BW)
        return [out_BW, *torch.autograd.grad(out_BW, given, upstream_BW.bfloat16())]

    mine = gradients(own)
    assert len(calls) == 1
    theirs = gradients(lambda x: nn.Sequential.forward(own, x))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_hidden_layers_of_three_axes_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(layers_module, "hidden_layers", None)
    layers = mlp_of(40, (24,), dropout=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        out = layers(torch.randn(5, 3, 40))
    assert out.shape == (5, 3, 24)
