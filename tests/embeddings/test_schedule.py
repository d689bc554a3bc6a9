import torch

from embeddings.schedule import Batches, generator_at


def test_every_row_is_seen_once_an_epoch_and_orders_differ():
    batches = Batches(10, 3, seed=0)
    epochs = [torch.cat([batches.next() for _ in range(3)]) for _ in range(2)]
    for rows in epochs:
        assert len(rows.unique()) == 9
    assert not torch.equal(*epochs)


def test_batches_go_on_from_two_numbers():
    whole = Batches(10, 3, seed=4)
    expected = [whole.next() for _ in range(12)]
    for cut in range(12):
        begun = Batches(10, 3, seed=4)
        for _ in range(cut):
            begun.next()
        resumed = Batches(10, 3, seed=4, epoch=begun.epoch, position=begun.position)
        for rows in expected[cut:]:
            assert torch.equal(resumed.next(), rows)


def test_random_numbers_depend_on_seed_purpose_and_index_alone():
    def draw(*key):
        return torch.rand(4, generator=generator_at(*key)).tolist()

    assert draw(1, "views", 7) == draw(1, "views", 7)
    others = [draw(2, "views", 7), draw(1, "itm", 7), draw(1, "views", 8)]
    assert draw(1, "views", 7) not in others
