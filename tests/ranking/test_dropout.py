"""Masks: the share asked for, independent, a function of torch's generator; and their gradient."""

import numpy as np
import pytest
import torch
from torch import nn

from ranking.dropout import Dropout, drawn, scale_of
from ranking.layers import mlp_of

N = 400_000


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.97])
def test_the_share_asked_for_is_dropped_and_the_mean_is_kept(share):
    torch.manual_seed(1)
    dropped = drawn((N,), share)
    assert dropped.dtype == torch.bool
    deviation = np.sqrt(share * (1 - share) / N)
    assert float(dropped.float().mean()) == pytest.approx(share, abs=4 * deviation + 2**-17)
    assert scale_of(share) == pytest.approx(1 / (1 - share), rel=1e-3)
    layer = Dropout(share)
    out = layer(torch.full((N,), 2.0))
    assert out.unique().tolist() == pytest.approx([0.0, 2 * scale_of(share)])
    assert float(out.mean()) == pytest.approx(2.0, abs=8 * deviation / (1 - share))


def test_elements_are_dropped_independently_of_their_neighbours_and_of_the_next_mask():
    torch.manual_seed(2)
    one, two = (drawn((N,), 0.3).float() - 0.3 for _ in range(2))
    for lag in (1, 2, 3, 4, 8, 128):
        assert abs(float((one[lag:] * one[:-lag]).mean())) < 5 * 0.21 / np.sqrt(N), lag
    assert abs(float((one * two).mean())) < 5 * 0.21 / np.sqrt(N)


def test_masks_are_a_function_of_torchs_generator_alone():
    masks = []
    threads = torch.get_num_threads()
    for seed, used in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(seed)
        torch.set_num_threads(used)
        masks.append([drawn((7, 33), 0.4) for _ in range(2)])
    torch.set_num_threads(threads)
    first, again, other = masks
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (7, 33)


def test_nothing_is_dropped_while_scoring_or_without_a_share():
    x = torch.randn(5, 3)
    before = torch.get_rng_state()
    assert torch.equal(Dropout(0.9).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(torch.get_rng_state(), before), "nor is anything drawn"


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_layers_by_hand_drop_what_the_modules_would(share):
    torch.manual_seed(5)
    layers = mlp_of(24, (32, 16), share).train()
    x_BW = torch.randn(64, 24, dtype=torch.bfloat16)
    pull = torch.randn(64, 16)
    found = {}
    for name in ("by hand", "modules"):
        own_BW = x_BW.clone().requires_grad_()
        layers.zero_grad()
        torch.manual_seed(6)
        with torch.autocast("cpu", torch.bfloat16):
            out = layers(own_BW) if name == "by hand" else nn.Sequential.forward(layers, own_BW)
        (out.float() * pull).sum().backward()
        found[name] = [
            out.detach().float(),
            own_BW.grad.float(),
            *(p.grad for p in layers.parameters()),
        ]
    assert (found["by hand"][0] == 0).float().mean() > share
    for one, two in zip(found["by hand"], found["modules"], strict=True):
        assert torch.allclose(one, two, rtol=0.05, atol=0.05 * float(two.abs().max()))
        # One mask more or less would be far from that.
        assert torch.equal(one == 0, two == 0) or one.ndim == 1


def test_layers_by_hand_drop_nothing_while_scoring():
    layers = mlp_of(24, (32,), 0.5).eval()
    x_BW = torch.randn(64, 24, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = layers(x_BW)
        with torch.no_grad():
            scored = layers(x_BW)
    assert out.requires_grad and torch.equal(out, scored)


def test_a_gradient_passes_through_what_is_kept():
    torch.manual_seed(7)
    x = torch.randn(50, 8, requires_grad=True)
    layer = Dropout(0.5)
    torch.manual_seed(8)
    kept = layer(x) != 0
    torch.manual_seed(8)
    layer(x).sum().backward()
    assert torch.equal(x.grad, kept * scale_of(0.5))
