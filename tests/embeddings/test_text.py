import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from embeddings.cached_text import CachedStates
from embeddings.encoders import TextEncoder, TextShape, initialise_, mean_pool
from embeddings.precision import FLOAT32
from embeddings.text import load_tokenizer, tokenize

TEXTS = ["a" * length for length in (3, 40, 1, 7, 0, 22, 7, 15, 30, 2)]


def tokens_of(lengths, limit=64):
    return tokenize(load_tokenizer(None), ["a" * length for length in lengths], limit)


def test_a_budget_by_hand():
    # Lengths with [CLS] and [SEP]: 12, 5, 5, 3, 2. Twelve has a batch of its own, 2 x 5 fit 13,
    # and so do 2 x 3.
    batches = [batch.tolist() for batch in tokens_of([3, 10, 0, 3, 1]).by_budget(13)]
    assert batches == [[1], [0, 3], [4, 2]]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=40),
    budget=st.integers(1, 400),
)
def test_every_row_comes_once_and_no_batch_is_over_budget_or_needlessly_small(lengths, budget):
    tokens = tokens_of(lengths)
    batches = list(tokens.by_budget(budget))
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * int(tokens.length_P[batch].max()) <= budget
    for batch, following in itertools.pairwise(batches):
        assert (len(batch) + 1) * int(tokens.length_P[batch].max()) > budget
        assert int(tokens.length_P[following].max()) <= int(tokens.length_P[batch].min())


@torch.no_grad()
def vectors(encoder, tokens, batches):
    out_PD = torch.full((len(tokens), encoder.shape.width), float("nan"))
    for row_B in batches:
        id_BL, attend_BL = tokens.padded(row_B)
        out_PD[row_B] = mean_pool(encoder(id_BL, attend_BL), attend_BL)
    return out_PD


@pytest.fixture(scope="module")
def encoder():
    shape = TextShape(vocabulary=300, width=32, layers=2, heads=4, feed_forward=64, positions=64)
    encoder = TextEncoder(shape)
    initialise_(encoder, torch.Generator().manual_seed(0))
    return encoder


@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_vectors_do_not_depend_on_their_batch(encoder, budget):
    tokens = tokenize(load_tokenizer(None), TEXTS, 64)
    alone = vectors(encoder, tokens, torch.arange(len(TEXTS)).split(1))
    for batches in (tokens.by_budget(budget), tokens.by_length(3)):
        batched = vectors(encoder, tokens, batches)
        torch.testing.assert_close(batched, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("budget", [None, 1, 60])
def test_cached_states_are_those_of_the_layers_whatever_the_budget(encoder, budget):
    tokens = tokenize(load_tokenizer(None), TEXTS, 64)
    model = SimpleNamespace(
        text=encoder,
        architecture=SimpleNamespace(text=encoder.shape),
        precision=FLOAT32,
        device=torch.device("cpu"),
    )
    states = CachedStates(model, tokens, 1, token_budget=budget)  # pyright: ignore
    row_B = torch.tensor([5, 0, 9])
    state_BLD, attend_BL = states.batch(row_B)
    id_BL, _ = tokens.padded(row_B)
    with torch.no_grad():
        expected_BLD = encoder.run(encoder.embed(id_BL), attend_BL, first=0, last=1)
    torch.testing.assert_close(state_BLD[attend_BL], expected_BLD[attend_BL], atol=1e-5, rtol=0)


def test_a_budget_below_one_is_refused():
    with pytest.raises(ValueError, match="tokens=0 must be at least 1"):
        next(tokens_of([1]).by_budget(0))


def test_no_texts_are_an_empty_table():
    tokens = tokens_of([])
    assert len(tokens) == 0
    assert list(tokens.by_budget(8)) == []


def test_too_few_tokens_for_the_marks_are_refused():
    with pytest.raises(ValueError, match="max_tokens=2 must be above 2"):
        tokens_of([5], limit=2)
    assert tokens_of([5], limit=3).length_P.tolist() == [3]


def test_a_tokenizer_that_leaves_a_text_without_tokens_is_refused():
    bare = Tokenizer(models.WordLevel({"[UNK]": 0, "cup": 1}, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="text 1, '', has no token"):
        tokenize(bare, ["cup", ""], 8)


def test_batches_by_tokens_are_full_and_hold_every_text():
    tokens = tokens_of([3, 10, 1, 3, 1])
    for budget in (13, 30):
        batches = [batch.tolist() for batch in tokens.batches(2, budget)]
        for batch in batches:
            assert len(batch) == max(1, budget // int(tokens.length_P[batch[0]]))
        rows = [row for batch in batches for row in batch]
        assert list(dict.fromkeys(rows)) == [1, 0, 3, 2, 4]
    assert [len(batch) for batch in tokens.batches(2, None)] == [2, 2, 1]
