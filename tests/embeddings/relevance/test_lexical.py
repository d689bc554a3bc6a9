"""What the judge reads beside its encoder's states: numbers, units, misspelt words, heads."""

import numpy as np
import pytest

from embeddings.bm25 import Bm25Scores
from embeddings.evaluate import CosineScores
from embeddings.relevance.lexical import (
    COLUMNS,
    LexicalFeatures,
    head_of,
    word_similarity,
    words_of,
)
from embeddings.relevance.thresholds import threshold_labels
from embeddings.store import VectorStore

CATALOGUE = [
    "5/8 in. x 4 ft. Drywall Screw",
    "5/8 in. x 8 ft. Drywall Screw",
    "Snow Shovel with Steel Handle",
    "Red Paint",
]


def columns(query, product):
    features = LexicalFeatures.fit(CATALOGUE)
    row_C = features.compute([query], [product], np.zeros(1, np.int64), np.zeros(1, np.int64))[0]
    return dict(zip(COLUMNS, row_C.tolist(), strict=True))


def test_words_bring_units_under_one_name_and_part_numbers_from_letters():
    assert words_of('5/8" Screws') == ["5/8", "in", "screw"]
    assert words_of("5/8 Inches screw") == ["5/8", "in", "screw"]
    assert words_of("2x4 batteries, glass 40W") == [
        "2", "x", "4", "battery", "glass", "40", "watt",
    ]  # fmt: skip


def test_what_a_product_is_stands_before_what_it_comes_with():
    assert head_of(words_of("Snow Shovel with Steel Handle")) == "shovel"
    assert head_of(words_of("Red Paint")) == "paint"


def test_similarity_of_words_by_hand():
    # ^a ab b$ against ^a ac c$: one of three letter pairs each.
    assert word_similarity("ab", "ac") == pytest.approx(2 / 6)
    assert word_similarity("shovel", "shovel") == 1.0
    assert word_similarity("shovel", "shovle") > 0.5 > word_similarity("shovel", "paint")
    assert word_similarity("40", "4") == 0.0


def test_one_other_number_is_seen():
    right, wrong = (columns("5/8 in x 4 ft drywall", text) for text in CATALOGUE[:2])
    assert right["numbers_shared"] == 1.0 and right["numbers_missing"] == 0.0
    assert wrong["numbers_shared"] == 0.5 and wrong["numbers_missing"] == pytest.approx(np.log(2))
    assert right["shared"] == 1.0 and wrong["shared"] == pytest.approx(5 / 6)


def test_a_misspelt_word_is_shared_by_likeness_alone():
    found = columns("snow shovle", CATALOGUE[2])
    assert found["shared"] == 0.5
    assert 0.5 < found["last_similar"] < 1.0
    assert found["last_to_head"] == found["last_similar"]
    assert found["character_cosine"] > columns("snow shovle", CATALOGUE[3])["character_cosine"]


def test_words_written_together_are_found_inside():
    assert columns("drywallscrew", CATALOGUE[0])["inside"] == 1.0
    assert columns("drywall nail", CATALOGUE[0])["inside"] == 0.0


def test_a_rare_word_weighs_more_than_a_common_one():
    rare, common = columns("paint screw", "paint"), columns("paint screw", "screw")
    assert rare["shared"] == common["shared"] == 0.5
    assert rare["shared_by_rarity"] > 0.5 > common["shared_by_rarity"]


def test_equal_texts_have_cosine_one_and_texts_without_words_are_finite():
    same = columns("red paint", "Red Paint")
    assert same["word_cosine"] == pytest.approx(1) and same["character_cosine"] == pytest.approx(1)
    for query, product in (("", "red"), ("red", ""), ("???", "!!!")):
        assert np.isfinite(list(columns(query, product).values())).all()


def test_pairs_are_compared_by_row(products, queries):
    texts, titles = queries["query"].to_list(), products["title"].to_list()
    features = LexicalFeatures.fit(titles)
    query_N, product_N = np.array([3, 0, 3]), np.array([5, 5, 1])
    together = features.compute(texts, titles, query_N, product_N)
    for row, (q, p) in enumerate(zip(query_N, product_N, strict=True)):
        alone = features.compute([texts[q]], [titles[p]], np.zeros(1, int), np.zeros(1, int))
        np.testing.assert_allclose(together[row], alone[0], atol=1e-6)


def test_a_score_cut_in_three_labels_as_people_do_where_it_can(products, queries, split):
    labels = threshold_labels(Bm25Scores(products, queries), split[0], split[1])
    both = labels.join(split[1], on=["query_id", "product_id"], suffix="_human")
    agree = (both["label"] == both["label_human"]).mean()
    assert agree > 0.8 and set(labels["source"]) == {"rule"}
    constant = VectorStore.from_arrays(
        products["product_id"].to_list(),
        np.ones((len(products), 2)),
        kind="p",
        encoder_fingerprint="x",
    )
    asked = VectorStore.from_arrays(
        queries["query_id"].to_list(), np.ones((len(queries), 2)), kind="q", encoder_fingerprint="x"
    )
    blind = threshold_labels(CosineScores(constant, asked), split[0], split[1])
    assert blind["label"].n_unique() == 1
    with pytest.raises(ValueError, match="no labelled pair"):
        threshold_labels(Bm25Scores(products, queries), split[0].clear(), split[1])
