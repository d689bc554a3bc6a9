import pytest
import torch
from torch import nn

from embeddings.momentum import AverageWeights, follow_, momentum_copy


def test_the_follower_is_the_moving_average_by_hand():
    online = nn.Linear(1, 1, bias=False)
    nn.init.constant_(online.weight, 1.0)
    follower = momentum_copy(online)
    nn.init.constant_(online.weight, 2.0)
    follow_(follower, online, 0.9)
    assert follower.weight.item() == torch.tensor(1.1).item()
    follow_(follower, online, 0.9)
    torch.testing.assert_close(follower.weight.item(), 1.19)
    assert not follower.weight.requires_grad


def test_buffers_are_copied():
    online = nn.BatchNorm1d(3)
    follower = momentum_copy(online)
    online(torch.randn(50, 3) * 4 + 7)
    follow_(follower, online, 0.995)
    torch.testing.assert_close(follower.running_mean, online.running_mean)
    assert int(follower.num_batches_tracked) == 1


def test_what_is_frozen_is_shared_and_what_trains_is_not():
    online = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    online[0].requires_grad_(requires_grad=False)
    follower = momentum_copy(online)
    assert follower[0].weight is online[0].weight
    assert follower[1].weight is not online[1].weight
    assert online[1].weight.requires_grad


def averaged(values, decay):
    """What an average holds after a parameter had these values, one a step."""
    parameter = nn.Parameter(torch.tensor([9.0]))
    average = AverageWeights([parameter], decay)
    for step, value in enumerate(values, start=1):
        nn.init.constant_(parameter, value)
        average.take_in_(step)
    average.put_in_()
    assert parameter.requires_grad
    return parameter.item()


def test_the_average_begins_as_a_plain_mean_without_the_first_weights():
    assert averaged([1.0, 2.0, 6.0], 0.99) == pytest.approx(3.0)


def test_the_average_forgets_what_is_long_past():
    assert averaged([1.0, 2.0, 6.0], 0.5) == pytest.approx(0.5 * 1.5 + 0.5 * 6.0)
    assert averaged([1.0, 2.0, 6.0], 0.0) == 6.0
