import math

import pytest
import torch
import torch.nn.functional as F

from embeddings.losses import momentum_itc_loss
from embeddings.queue import KeyQueue


def push(queue, values, *, step=0, group=None, kind=0):
    vectors = F.one_hot(torch.as_tensor(values), 12).float()
    group = torch.as_tensor(values if group is None else group)
    keys = queue.keys(vectors, vectors, group, torch.full_like(group, kind))
    queue.push_(keys, len(group), step)
    return keys


def test_the_queue_begins_empty_and_empty_places_are_no_keys():
    queue = KeyQueue(6, 12)
    keys = push(queue, [0, 1])
    assert keys.filled_K.tolist() == [True] * 2 + [False] * 6
    later = push(queue, [2, 3])
    assert later.filled_K.tolist() == [True] * 4 + [False] * 4
    assert later.group_K[:4].tolist() == [2, 3, 0, 1]


def test_an_empty_queue_leaves_the_contrast_within_the_batch():
    torch.manual_seed(0)
    image, text, group = torch.randn(4, 12), torch.randn(4, 12), torch.arange(4)
    kind = torch.zeros(4, dtype=torch.int64)
    losses = [
        momentum_itc_loss(
            image,
            text,
            KeyQueue(places, 12).keys(image, text, group, kind),
            temperature=0.1,
            soft_weight=0.4,
        )
        for places in (0, 50)
    ]
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=1e-6)


@pytest.mark.parametrize("batches", [[[0, 1, 2]], [[0, 1, 2]] * 3, [[0, 1], [2, 3, 4], [5, 6]]])
def test_the_oldest_keys_give_way_whatever_the_batch_size(batches):
    queue = KeyQueue(5, 12)
    pushed = []
    for step, values in enumerate(batches):
        push(queue, values, step=step)
        pushed += values
    kept = queue.group_Q[queue.filled_Q].tolist()
    assert sorted(kept) == sorted(pushed[-5:])
    assert int(queue.next) == len(pushed) % 5


def test_of_a_batch_larger_than_the_queue_its_end_is_kept():
    queue = KeyQueue(3, 12)
    push(queue, [0, 1, 2, 3, 4])
    assert sorted(queue.group_Q.tolist()) == [2, 3, 4]


def test_drift_is_measured_on_the_same_product_only():
    queue = KeyQueue(4, 12)
    push(queue, [0, 1])
    assert math.isnan(queue.drift(push(KeyQueue(0, 12), [5, 6]), 2))
    assert queue.drift(push(KeyQueue(0, 12), [0, 7]), 2) == 0
    moved = queue.keys(torch.eye(12)[[3]], torch.eye(12)[[3]], torch.tensor([0]), torch.tensor([0]))
    assert queue.drift(moved, 1) == 1
    assert math.isnan(queue.drift(push(KeyQueue(0, 12), [0], kind=1), 1))
