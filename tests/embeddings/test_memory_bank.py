import pytest
import torch

from embeddings.memory_bank import ProductBank


def push(bank, *rows):
    bank.push_(torch.tensor([[float(row), 1.0] for row in rows]), torch.tensor(rows))


def test_nothing_is_handed_out_before_it_is_filled():
    bank = ProductBank(5, 2)
    vector, row = bank.keys()
    assert vector.shape == (0, 2)
    assert row.shape == (0,)
    push(bank, 3, 4)
    vector, row = bank.keys()
    assert row.tolist() == [3, 4]
    torch.testing.assert_close(vector.norm(dim=1), torch.ones(2))
    assert bank.filled_Q.tolist() == [True, True, False, False, False]


def test_the_oldest_give_way_and_of_a_large_batch_the_end_stays():
    bank = ProductBank(4, 2)
    push(bank, 1, 2, 3)
    push(bank, 4, 5)
    assert sorted(bank.keys()[1].tolist()) == [2, 3, 4, 5]
    push(bank, *range(10, 17))
    assert sorted(bank.keys()[1].tolist()) == [13, 14, 15, 16]


def test_keys_carry_no_gradient():
    bank = ProductBank(4, 2)
    bank.push_(torch.randn(2, 2, requires_grad=True), torch.tensor([0, 1]))
    assert not bank.keys()[0].requires_grad


@pytest.mark.parametrize("count", [0, 3])
def test_a_bank_without_places_stays_empty(count):
    bank = ProductBank(0, 2)
    push(bank, *range(count)) if count else None
    assert len(bank) == 0
    assert len(bank.keys()[1]) == 0


def test_a_bank_is_the_same_after_a_round_trip():
    bank, again = ProductBank(4, 2), ProductBank(4, 2)
    push(bank, 1, 2, 3)
    again.load_state_dict(bank.state_dict())
    push(bank, 7, 8)
    push(again, 7, 8)
    assert torch.equal(bank.keys()[0], again.keys()[0])
    assert torch.equal(bank.keys()[1], again.keys()[1])
