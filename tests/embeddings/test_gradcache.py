import pytest
import torch
from torch import nn

from embeddings.gradcache import embed_parts, part_surrogate
from embeddings.losses import itc_loss


@pytest.fixture
def encoders():
    torch.manual_seed(0)
    pair = [nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 4)).double() for _ in range(2)]
    return nn.ModuleList(pair)


def gradients(encoders):
    return torch.cat([p.grad.flatten() for p in encoders.parameters()])


@pytest.mark.parametrize("size", [1, 3, 5, 12])
def test_gradients_in_parts_equal_those_of_the_whole_batch(encoders, size):
    data = torch.randn(2, 12, 6, dtype=torch.float64)
    group = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 0])
    left, right = encoders
    whole = itc_loss(left(data[0]), right(data[1]), group, temperature=0.07)
    whole.backward()
    expected = gradients(encoders)
    encoders.zero_grad()
    parts = torch.arange(12).split(size)

    def embed(part):
        return left(data[0, part]), right(data[1, part])

    leaves = embed_parts(parts, embed)
    loss = itc_loss(*leaves, group, temperature=0.07)
    loss.backward()
    for part in parts:
        part_surrogate(embed(part), (leaves[0].grad[part], leaves[1].grad[part])).backward()
    assert loss.item() == pytest.approx(whole.item(), abs=1e-12)
    assert float((gradients(encoders) - expected).abs().max()) < 1e-6


def test_adding_up_the_losses_of_parts_is_another_gradient(encoders):
    # What GradCache is for: fewer negatives give another direction.
    data = torch.randn(2, 12, 6, dtype=torch.float64)
    left, right = encoders
    itc_loss(left(data[0]), right(data[1]), torch.arange(12), temperature=0.07).backward()
    whole = gradients(encoders)
    encoders.zero_grad()
    for part in torch.arange(12).split(3):
        loss = itc_loss(left(data[0, part]), right(data[1, part]), part, temperature=0.07)
        (loss / 4).backward()
    assert float(torch.cosine_similarity(whole, gradients(encoders), dim=0)) < 0.97
