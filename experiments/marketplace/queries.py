"""Queries from a grammar of intents, and what each product is truly worth to them.

Intents: a type, a type with attributes, a brand with a type, a department, a need. Types and
attributes come by any of their names, a few words are misspelled, popularity follows Zipf.

True relevance: 2 where the type and everything asked for match; 1 where the type matches but
something asked for does not, or the product's type substitutes the asked one; 0 otherwise.

Shape letters: Q queries, P products, T product types, A attributes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.marketplace import grocery
from experiments.marketplace.catalogue import Catalogue
from experiments.marketplace.parameters import WorldParameters

# A misspelled query is this much less popular than its intent: nearly everyone spells it right.
MISSPELLED_POPULARITY = 0.1

# Share of each intent among the drawn queries, and how much more popular it is than the rest.
# Stated choice: short queries are the head, specific ones the tail, as in every search log.
INTENTS = {
    "type": (0.16, 6.0),
    "type and attribute": (0.36, 1.0),
    "type and two attributes": (0.12, 0.4),
    "brand and type": (0.23, 1.0),
    "brand, type and attribute": (0.07, 0.3),
    "department or need": (0.06, 3.0),
}


@dataclass(frozen=True, kw_only=True)
class Queries:
    """The queries, what they ask for, and how popular they are."""

    query_id_Q: NDArray[np.str_]
    text_Q: list[str]
    wants_QT: NDArray[np.int8]
    """2 for an asked type, 1 for a substitute, 0 for any other."""
    asks_QA: NDArray[np.bool_]
    """The attributes asked for."""
    brand_Q: NDArray[np.int64]
    """The brand asked for, -1 for none."""
    theme_Q: NDArray[np.int64]
    """The type asked for, -1 where the query asks for a department or need."""
    popularity_Q: NDArray[np.float64]
    """Share of all searches, summing to 1."""

    def __len__(self) -> int:
        return len(self.text_Q)


def make_queries(catalogue: Catalogue, parameters: WorldParameters, seed: int) -> Queries:
    """Draw distinct queries, each asking for something that some product is.

    Args:
        catalogue: Where the asked-for combinations are taken from.
        parameters: How many queries, their popularity and misspellings.
        seed: The same seed gives the same queries.

    Returns:
        ``round(queries_per_product * P)`` queries in random order, or fewer where the grammar of a
        very small catalogue has no more to say.
    """
    rng = np.random.default_rng([seed, 4])
    wanted = max(1, round(parameters.queries_per_product * len(catalogue)))
    drawn: dict[str, tuple[float, list[int], NDArray[np.bool_], int]] = {}
    names = list(INTENTS)
    shares = np.array([INTENTS[name][0] for name in names])
    for _ in range(20 * wanted):
        if len(drawn) == wanted:
            break
        intent = names[rng.choice(len(names), p=shares / shares.sum())]
        text, types, asks_A, brand = _draw_query(intent, catalogue, rng)
        popularity = INTENTS[intent][1]
        if rng.random() < parameters.misspelled_share:
            text, popularity = _misspell(text, rng), popularity * MISSPELLED_POPULARITY
        drawn.setdefault(text, (popularity, types, asks_A, brand))
    rows = list(drawn.values())
    weight_Q = np.array([row[0] for row in rows]) * rng.lognormal(0, 0.8, len(rows))
    rank_Q = np.empty(len(rows))
    rank_Q[np.argsort(-weight_Q, kind="stable")] = np.arange(1, len(rows) + 1)
    popularity_Q = rank_Q**-parameters.zipf_exponent
    return Queries(
        query_id_Q=np.array([f"q{row:05d}" for row in range(len(rows))]),
        text_Q=list(drawn),
        wants_QT=np.array([_wants(row[1]) for row in rows], dtype=np.int8),
        asks_QA=np.array([row[2] for row in rows]),
        brand_Q=np.array([row[3] for row in rows], dtype=np.int64),
        theme_Q=np.array([row[1][0] if len(row[1]) == 1 else -1 for row in rows], dtype=np.int64),
        popularity_Q=popularity_Q / popularity_Q.sum(),
    )


def true_relevance(queries: Queries, catalogue: Catalogue) -> NDArray[np.int8]:
    """Return the true class of every query and product, shape (Q, P), values 0, 1, 2."""
    relevance_QP = queries.wants_QT[:, catalogue.type_P].copy()
    lacks_PA = (~catalogue.has_PA).astype(np.float32)
    missing_QP = queries.asks_QA.astype(np.float32) @ lacks_PA.T
    other_brand_QP = (queries.brand_Q[:, None] >= 0) & (
        queries.brand_Q[:, None] != catalogue.brand_P[None, :]
    )
    relevance_QP[(relevance_QP == 2) & ((missing_QP > 0.5) | other_brand_QP)] = 1
    return relevance_QP


def _draw_query(
    intent: str, catalogue: Catalogue, rng: np.random.Generator
) -> tuple[str, list[int], NDArray[np.bool_], int]:
    """Return text, asked types, asked attributes and asked brand of one query."""
    asks_A = np.zeros(len(grocery.ATTRIBUTES), dtype=bool)
    if intent == "department or need":
        text, types = _draw_need(rng)
        return text, types, asks_A, -1
    row = int(rng.integers(len(catalogue)))
    kind, brand = int(catalogue.type_P[row]), -1
    names = (grocery.TYPE_NAMES[kind], *grocery.TYPE_SYNONYMS[kind])
    before, after = [], []
    n_attributes = {"type": 0, "brand and type": 0, "type and two attributes": 2}.get(intent, 1)
    has_A = rng.permutation(np.flatnonzero(catalogue.has_PA[row]))
    for attribute in has_A[:n_attributes]:
        asks_A[attribute] = True
        said = grocery.ATTRIBUTE_WORDS[grocery.ATTRIBUTES[attribute]]
        word = said[0] if rng.random() < 0.7 else said[rng.integers(len(said))]
        (after if word.startswith("in a") or rng.random() < 0.25 else before).append(word)
    if intent.startswith("brand"):
        brand = int(catalogue.brand_P[row])
        before.insert(0, grocery.BRANDS[brand].lower())
    name = names[0] if rng.random() < 0.5 else names[rng.integers(len(names))]
    return " ".join([*before, name, *after]), [kind], asks_A, brand


def _draw_need(rng: np.random.Generator) -> tuple[str, list[int]]:
    """A department or a need, and the types that serve it."""
    if rng.random() < 0.5:
        need = list(grocery.NEEDS)[rng.integers(len(grocery.NEEDS))]
        types = [grocery.TYPE_NAMES.index(name) for name in grocery.NEEDS[need]]
        phrases = grocery.NEED_PHRASES
    else:
        department = int(rng.integers(len(grocery.DEPARTMENTS)))
        need = grocery.DEPARTMENTS[department].name
        types = [t for t, d in enumerate(grocery.TYPE_DEPARTMENT) if d == department]
        phrases = grocery.DEPARTMENT_PHRASES
    return phrases[rng.integers(len(phrases))].format(need), types


def _wants(types: list[int]) -> NDArray[np.int8]:
    """2 for the asked types, 1 for what substitutes them."""
    groups_T = np.array(grocery.TYPE_SUBSTITUTES)
    wants_T = np.isin(groups_T, groups_T[types]).astype(np.int8)
    wants_T[types] = 2
    return wants_T


def _misspell(text: str, rng: np.random.Generator) -> str:
    """Exchange two neighbouring letters, or leave one out; the first one stays."""
    if len(text) < 3:
        return text
    at = int(rng.integers(1, len(text) - 1))
    if rng.random() < 0.5:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + text[at + 1 :]
