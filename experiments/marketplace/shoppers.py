"""Shoppers and what they respond to: tastes, price sensitivity and habits that no feature shows.

Shape letters: U users, P products, D taste size, T favourites, W words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.marketplace.parameters import WorldParameters

# How much brand, stated attributes and a product's own character count in its appeal.
# Stated choice: brand loyalty and attribute taste alike, the inexplicable a little less.
BRAND_WEIGHT, ATTRIBUTE_WEIGHT, OWN_WEIGHT = 0.6, 0.6, 0.5


@dataclass(frozen=True, kw_only=True)
class Shoppers:
    """The users of a world; the fields of ``WorldState`` of the same names."""

    user_id_U: NDArray[np.str_]
    taste_UD: NDArray[np.float64]
    price_sensitivity_U: NDArray[np.float64]
    activity_U: NDArray[np.float64]
    favourite_UT: NDArray[np.int64]


def make_shoppers(
    requests: int, theme_Q: NDArray[np.int64], parameters: WorldParameters, seed: int
) -> Shoppers:
    """Draw the users of a world with ``requests`` requests.

    Args:
        requests: Length of the log; sets the number of users.
        theme_Q: Theme of each query; habits are drawn from the themes that occur.
        parameters: Activity, taste size and number of favourites.
        seed: The same seed gives the same shoppers.
    """
    rng = np.random.default_rng([seed, 6])
    users = max(2, round(requests / parameters.requests_per_user))
    activity_U = rng.lognormal(0.0, parameters.activity_sd, users)
    themes = np.unique(theme_Q[theme_Q >= 0])
    themes = themes if len(themes) else np.array([-1])
    return Shoppers(
        user_id_U=np.array([f"u{row:06d}" for row in range(users)]),
        taste_UD=rng.normal(size=(users, parameters.taste_size)),
        # Mean 1: a lognormal's mean is exp(sd^2 / 2).
        price_sensitivity_U=rng.lognormal(-0.125, 0.5, users),
        activity_U=activity_U / activity_U.sum(),
        favourite_UT=rng.choice(themes, size=(users, parameters.favourite_themes)),
    )


def grocery_appeal(
    brand_P: NDArray[np.int64], has_PA: NDArray[np.bool_], parameters: WorldParameters, seed: int
) -> NDArray[np.float64]:
    """What tastes respond to in a grocery product: brand, attributes and its own character.

    Returns:
        Unit vectors, shape (P, D).
    """
    rng = np.random.default_rng([seed, 7])
    size = parameters.taste_size
    brand_BD = rng.normal(size=(int(brand_P.max()) + 1, size))
    attribute_AD = rng.normal(size=(has_PA.shape[1], size))
    count_P = np.maximum(has_PA.sum(axis=1, keepdims=True), 1)
    return _unit(
        BRAND_WEIGHT * brand_BD[brand_P]
        + ATTRIBUTE_WEIGHT * (has_PA @ attribute_AD) / np.sqrt(count_P)
        + OWN_WEIGHT * rng.normal(size=(len(brand_P), size))
    )


def hashed_appeal(
    title_P: Sequence[str | None],
    brand_P: Sequence[str | None],
    parameters: WorldParameters,
    seed: int,
) -> NDArray[np.float64]:
    """What tastes respond to in a product known by its words alone.

    Each word of the title, and the brand where there is one, is a direction drawn from its hash.

    Returns:
        Unit vectors, shape (P, D).
    """
    rng = np.random.default_rng([seed, 7])
    size = parameters.taste_size
    words_P = [sorted(set((title or "").lower().split())) for title in title_P]
    names = sorted({word for words in words_P for word in words})
    row_of = {name: row for row, name in enumerate(names)}
    word_WD = np.array([_direction(f"word {name}", seed, size) for name in names]).reshape(-1, size)
    appeal_PD = OWN_WEIGHT * rng.normal(size=(len(words_P), size))
    brands = sorted({b for b in brand_P if b})
    brand_direction = {b: _direction(f"brand {b}", seed, size) for b in brands}
    for row, (words, brand) in enumerate(zip(words_P, brand_P, strict=True)):
        if words:
            sum_D = word_WD[[row_of[word] for word in words]].sum(axis=0)
            appeal_PD[row] += ATTRIBUTE_WEIGHT * sum_D / np.sqrt(len(words))
        if brand:
            appeal_PD[row] += BRAND_WEIGHT * brand_direction[brand]
    return _unit(appeal_PD)


def _direction(name: str, seed: int, size: int) -> NDArray[np.float64]:
    """A standard normal vector that depends on ``name`` and ``seed`` alone."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little")).normal(size=size)


def _unit(vector_PD: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector_PD / np.linalg.norm(vector_PD, axis=1, keepdims=True)
