"""The grocery catalogue, its images, queries and judgements."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from experiments.marketplace import grocery
from experiments.marketplace.catalogue import make_catalogue, product_table
from experiments.marketplace.drawing import draw_product
from experiments.marketplace.judgements import judge
from experiments.marketplace.parameters import WorldParameters
from experiments.marketplace.queries import _misspell, make_queries, true_relevance
from experiments.marketplace.shoppers import grocery_appeal, hashed_appeal

PARAMETERS = WorldParameters()


@pytest.fixture(scope="module")
def catalogue():
    return make_catalogue(900, PARAMETERS, seed=1)


@pytest.fixture(scope="module")
def titles(catalogue):
    blank = [b""] * len(catalogue)
    return product_table(catalogue, blank, np.zeros(len(catalogue), dtype=np.int64), seed=1)


@pytest.fixture(scope="module")
def queries(catalogue):
    return make_queries(catalogue, PARAMETERS, seed=1)


def says(text: str, attribute: str) -> bool:
    return any(word in text.lower() for word in grocery.ATTRIBUTE_WORDS[attribute])


def test_every_type_has_its_own_words():
    words = [*grocery.TYPE_NAMES, *(word for words in grocery.TYPE_SYNONYMS for word in words)]
    assert len(grocery.TYPE_NAMES) == 60
    assert len(words) == len(set(words))
    assert len(set(grocery.BRANDS)) == 80
    assert len(grocery.ATTRIBUTES) == 24


def test_every_attribute_is_told_by_the_title_or_the_image(catalogue):
    told_PA = catalogue.in_title_PA | catalogue.in_image_PA
    assert np.array_equal(told_PA, catalogue.has_PA)


def test_two_fifths_of_the_attributes_are_missing_from_the_title(catalogue):
    hidden = 1 - catalogue.in_title_PA.sum() / catalogue.has_PA.sum()
    assert hidden == pytest.approx(PARAMETERS.hidden_from_title, abs=0.03)


def test_hidden_attributes_are_in_no_text_of_the_product(catalogue, titles):
    # Words that happen to be part of a type's own name ("iced tea in a bag") cannot betray.
    checked = 0
    for row, (title, description) in enumerate(
        zip(titles["title"], titles["description"], strict=True)
    ):
        kind = catalogue.type_P[row]
        own = " ".join((grocery.TYPE_NAMES[kind], *grocery.TYPE_SYNONYMS[kind]))
        hidden_A = catalogue.has_PA[row] & ~catalogue.in_title_PA[row]
        for attribute in (grocery.ATTRIBUTES[a] for a in np.flatnonzero(hidden_A)):
            if not says(own, attribute) and attribute != "can":
                assert not says(f"{title} {(description or '').split('Good for')[0]}", attribute)
                checked += 1
    assert checked > 500


def test_told_attributes_brand_and_size_are_in_the_title(catalogue, titles):
    for row, title in enumerate(titles["title"]):
        assert grocery.BRANDS[catalogue.brand_P[row]] in title
        assert grocery.SIZES[catalogue.size_P[row]] in title
        for a in np.flatnonzero(catalogue.in_title_PA[row]):
            assert grocery.ATTRIBUTE_WORDS[grocery.ATTRIBUTES[a]][0] in title


def test_another_listing_of_an_item_has_its_facts(catalogue):
    repeated = np.flatnonzero(catalogue.group_P != np.arange(len(catalogue)))
    assert len(repeated) > 5
    first = catalogue.group_P[repeated]
    assert np.array_equal(catalogue.has_PA[repeated], catalogue.has_PA[first])
    assert np.array_equal(catalogue.brand_P[repeated], catalogue.brand_P[first])


def pixels(*attributes: str, kind: int = 0, seed: int = 0) -> np.ndarray:
    png = draw_product(kind, attributes, 48, np.random.default_rng(seed))
    return np.asarray(Image.open(io.BytesIO(png)), dtype=float)


def test_images_are_small_rgb_pngs():
    assert pixels("jar", "organic").shape == (48, 48, 3)


@pytest.mark.parametrize("attribute", [a for a in grocery.ATTRIBUTES if a not in grocery.PACKS])
def test_each_attribute_leaves_a_mark_in_the_image(attribute):
    # Same randomness, so that only the attribute differs; 25 grey levels are far above the noise.
    plain, marked = pixels("can"), pixels("can", attribute)
    assert (np.abs(plain - marked).max(axis=2) > 25).sum() >= 15


@pytest.mark.parametrize("family", [grocery.FLAVOURS, grocery.PREPARATIONS, grocery.DIETS])
def test_no_two_attributes_leave_the_same_mark(family):
    for one, other in itertools.combinations(family, 2):
        differs = np.abs(pixels("can", one) - pixels("can", other)).max(axis=2) > 25
        assert differs.sum() >= 10, (one, other)


def test_pack_forms_have_silhouettes_of_their_own():
    for one, other in itertools.combinations(grocery.PACKS, 2):
        assert (np.abs(pixels(one) - pixels(other)).max(axis=2) > 25).sum() >= 50, (one, other)


def test_an_attribute_has_no_fixed_pixels():
    # Seals move between corners: the mark of one drawing is not the mark of another.
    marks = [
        np.abs(pixels("can", seed=s) - pixels("can", "organic", seed=s)).max(axis=2) > 25
        for s in range(12)
    ]
    assert not np.logical_and.reduce(marks).any()


def test_no_two_types_have_the_same_emblem():
    bare = {kind: pixels("box", kind=kind).tobytes() for kind in range(60)}
    assert len(set(bare.values())) == 60


def test_true_relevance_by_hand(catalogue, queries):
    relevance_QP = true_relevance(queries, catalogue)
    rng = np.random.default_rng(0)
    for query, row in zip(
        rng.integers(0, len(queries), 4000), rng.integers(0, 900, 4000), strict=True
    ):
        wanted = queries.wants_QT[query, catalogue.type_P[row]]
        asked = set(np.flatnonzero(queries.asks_QA[query]))
        has = set(np.flatnonzero(catalogue.has_PA[row]))
        right_brand = queries.brand_Q[query] in (-1, catalogue.brand_P[row])
        expected = wanted if wanted < 2 or (asked <= has and right_brand) else 1
        assert relevance_QP[query, row] == expected


def test_every_query_that_names_a_type_has_a_relevant_product(catalogue, queries):
    relevance_QP = true_relevance(queries, catalogue)
    assert (relevance_QP[queries.theme_Q >= 0].max(axis=1) == 2).all()


def test_synonyms_mean_the_same_type(catalogue, queries):
    rows = {text: row for row, text in enumerate(queries.text_Q)}
    relevance_QP = true_relevance(queries, catalogue)
    pairs = [
        (rows[name], rows[synonym])
        for name, synonyms in zip(grocery.TYPE_NAMES, grocery.TYPE_SYNONYMS, strict=True)
        for synonym in synonyms
        if name in rows and synonym in rows
    ]
    assert len(pairs) > 5
    for name, synonym in pairs:
        assert np.array_equal(relevance_QP[name], relevance_QP[synonym])


def test_popularity_is_zipf(queries):
    sorted_Q = np.sort(queries.popularity_Q)[::-1]
    rank = np.arange(1, len(queries) + 1)
    slope = np.polyfit(np.log(rank), np.log(sorted_Q), 1)[0]
    assert slope == pytest.approx(-PARAMETERS.zipf_exponent)


@pytest.fixture(scope="module")
def judged(catalogue, queries):
    relevance_QP = true_relevance(queries, catalogue)
    department_P = np.array(grocery.TYPE_DEPARTMENT)[catalogue.type_P]
    judged = judge(relevance_QP, department_P, ~catalogue.late_P, PARAMETERS, seed=1)
    return relevance_QP, judged


def test_a_tenth_of_the_human_labels_is_wrong_mostly_by_one(judged):
    relevance_QP, (query_N, product_N, label_N, source_N) = judged
    human_N = source_N == "human"
    truth_N = relevance_QP[query_N, product_N]
    miss_N = np.abs(label_N - truth_N)[human_N]
    assert (miss_N > 0).mean() == pytest.approx(PARAMETERS.label_noise, abs=0.015)
    assert (miss_N == 2).sum() < 0.15 * (miss_N > 0).sum()
    assert (label_N[~human_N] == 0).all() and (truth_N[~human_N] == 0).all()


def test_seven_tenths_of_the_queries_are_labelled_and_no_pair_twice(judged):
    relevance_QP, (query_N, product_N, _, _) = judged
    share = len(np.unique(query_N)) / len(relevance_QP)
    assert share == pytest.approx(PARAMETERS.labelled_share, abs=0.001)
    assert len(np.unique(query_N * 10_000 + product_N)) == len(query_N)


def test_late_products_are_not_judged(catalogue, judged):
    _, (_, product_N, _, _) = judged
    assert not catalogue.late_P[product_N].any()


def test_appeals_are_unit_vectors_so_that_tastes_have_the_stated_spread(catalogue):
    for appeal_PD in (
        grocery_appeal(catalogue.brand_P, catalogue.has_PA, PARAMETERS, seed=1),
        hashed_appeal(["steel drill", None, ""], ["acme", None, "acme"], PARAMETERS, seed=1),
    ):
        assert np.linalg.norm(appeal_PD, axis=1) == pytest.approx(1.0)


def test_products_of_one_brand_appeal_alike(catalogue):
    appeal_PD = grocery_appeal(catalogue.brand_P, catalogue.has_PA, PARAMETERS, seed=1)
    likeness_PP = appeal_PD @ appeal_PD.T
    same_PP = catalogue.brand_P[:, None] == catalogue.brand_P[None, :]
    np.fill_diagonal(same_PP, False)
    assert likeness_PP[same_PP].mean() > likeness_PP[~same_PP].mean() + 0.2


def test_too_small_a_catalogue_is_refused():
    with pytest.raises(ValueError, match="products=20 is too small"):
        make_catalogue(20, PARAMETERS, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": 20}, "one probability per slot"),
        ({"examination": (1.5,) * 8}, "must lie in"),
        ({"click_rate_by_class": (0.0, 0.1, 0.2)}, "must lie in"),
        ({"pool_shares": (0.5, 0.5, 0.5)}, "sum to 1"),
        ({"hidden_from_title": 0.9, "hidden_from_image": 0.2}, "told nowhere"),
        ({"no_such_knob": 1}, "Extra inputs"),
    ],
)
def test_parameters_that_cannot_work_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        WorldParameters(**change)


def test_words_too_short_to_misspell_stay_as_they_are():
    # "oj" is orange juice; now and then someone misspells a query.
    rng = np.random.default_rng(0)
    assert _misspell("oj", rng) == "oj"
    assert {_misspell("ham", rng) for _ in range(40)} == {"hma", "hm"}
