"""Logits of layers that computed in bfloat16, against a float32 copy of all they read."""

import pytest
import torch

from ranking.exact_logit import exact_logit
from ranking.layers import side_by_side

ROWS = 1_300
"""More than two of the pieces that rows are taken in, and no multiple of them."""


def parts(dtypes):
    generator = torch.Generator().manual_seed(3)
    seen = [
        torch.randn(ROWS, 7 + 4 * n, generator=generator).to(dtype).requires_grad_()
        for n, dtype in enumerate(dtypes)
    ]
    weight_W = torch.randn(sum(p.shape[1] for p in seen), generator=generator).requires_grad_()
    bias = torch.tensor([0.3], requires_grad=True)
    d_logit_B = torch.randn(ROWS, generator=generator)
    return seen, weight_W, bias, d_logit_B


@pytest.mark.usefixtures("either_kernels")
@pytest.mark.parametrize(
    "dtypes",
    [[torch.bfloat16], [torch.bfloat16, torch.bfloat16], [torch.bfloat16, torch.float32]],
)
def test_logits_and_gradients_are_those_of_a_float32_layer(dtypes):
    seen, weight_W, bias, d_logit_B = parts(dtypes)
    logit_B = exact_logit(seen, weight_W, bias)
    assert logit_B.dtype == torch.float32
    own = torch.autograd.grad(logit_B, [*seen, weight_W, bias], d_logit_B)
    plain_B = torch.cat([p.float() for p in seen], dim=1) @ weight_W + bias
    plain = torch.autograd.grad(plain_B, [*seen, weight_W, bias], d_logit_B)
    torch.testing.assert_close(logit_B, plain_B, rtol=1e-5, atol=1e-5)
    for mine, theirs, given in zip(own, plain, [*seen, weight_W, bias], strict=True):
        assert mine.dtype == given.dtype and mine.shape == given.shape
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-3)


def test_embeddings_get_their_gradient_in_one_float32_piece():
    embedded_BE = torch.randn(5, 8, requires_grad=True)
    dense_BC = torch.randn(5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        joined_BW = side_by_side(embedded_BE, dense_BC)
    assert joined_BW.dtype == torch.bfloat16
    assert torch.equal(joined_BW, torch.cat([embedded_BE, dense_BC], dim=1).bfloat16())
    d_joined_BW = torch.randn(5, 11).bfloat16()
    (d_embedded_BE,) = torch.autograd.grad(joined_BW, embedded_BE, d_joined_BW)
    assert d_embedded_BE.dtype == torch.float32 and d_embedded_BE.is_contiguous()
    assert torch.equal(d_embedded_BE, d_joined_BW[:, :8].float())
