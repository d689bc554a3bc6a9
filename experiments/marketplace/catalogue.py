"""The grocery catalogue: what each product is, and which of its facts the title tells.

Every attribute of a product is told by the title, by the image, or by both. Brand and size stand
in the title alone, so neither text nor image knows everything.

Shape letters: P products, A attributes (``grocery.ATTRIBUTES``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.marketplace import grocery
from experiments.marketplace.parameters import WorldParameters

MIN_PRODUCTS = 60
"""Fewer products leave too few of any type to ask for."""


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The facts of every product, as numbers into ``grocery``'s lists."""

    product_id_P: NDArray[np.str_]
    type_P: NDArray[np.int64]
    brand_P: NDArray[np.int64]
    size_P: NDArray[np.int64]
    has_PA: NDArray[np.bool_]
    """The attributes that the product truly has."""
    in_title_PA: NDArray[np.bool_]
    """Of those, the ones that the title tells."""
    in_image_PA: NDArray[np.bool_]
    """Of those, the ones that the image shows."""
    group_P: NDArray[np.int64]
    """Row of the first listing of the same item; its own row for most products."""
    price_P: NDArray[np.float64]
    late_P: NDArray[np.bool_]
    """Whether the product is launched in the last fifth of the log."""

    def __len__(self) -> int:
        return len(self.product_id_P)


def make_catalogue(products: int, parameters: WorldParameters, seed: int) -> Catalogue:
    """Invent ``products`` products.

    Args:
        products: How many, at least ``MIN_PRODUCTS``. All sixty types appear from 720 upward.
        parameters: The shares of hidden facts, late products and repeated listings.
        seed: The same seed gives the same catalogue.

    Returns:
        The facts; ``product_table`` writes them as title, image and columns.

    Raises:
        ValueError: If ``products`` is below ``MIN_PRODUCTS``.
    """
    if products < MIN_PRODUCTS:
        raise ValueError(
            f"products={products} is too small a catalogue to ask queries of; use at least "
            f"{MIN_PRODUCTS} (120 for a quick test, 3000 for the demo)"
        )
    rng = np.random.default_rng([seed, 1])
    n_types = min(len(grocery.TYPE_NAMES), max(5, products // 12))
    popularity_T = rng.lognormal(0.0, 0.4, n_types)
    type_P = rng.choice(n_types, size=products, p=popularity_T / popularity_T.sum())
    brand_P = _draw_brands(type_P, rng)
    has_PA = _draw_attributes(type_P, rng)
    size_P = rng.integers(0, len(grocery.SIZES), products)
    group_P = np.arange(products)
    repeated_P = rng.random(products) < parameters.duplicate_share
    repeated_P[: products // 2] = False
    group_P[repeated_P] = rng.integers(0, products // 2, repeated_P.sum())
    type_P, brand_P, size_P = type_P[group_P], brand_P[group_P], size_P[group_P]
    has_PA = has_PA[group_P]
    in_title_PA, in_image_PA = _tell(has_PA, parameters, rng)
    return Catalogue(
        product_id_P=np.array([f"p{row:05d}" for row in range(products)]),
        type_P=type_P,
        brand_P=brand_P,
        size_P=size_P,
        has_PA=has_PA,
        in_title_PA=in_title_PA,
        in_image_PA=in_image_PA,
        group_P=group_P,
        price_P=_draw_prices(type_P, brand_P, size_P, has_PA, rng),
        late_P=_draw_late(products, parameters.late_share, rng),
    )


def product_table(
    catalogue: Catalogue, image_P: list[bytes], launched_us_P: NDArray[np.int64], seed: int
) -> pl.DataFrame:
    """Write the catalogue as the ``products`` table of a dataset.

    ``category`` is the product type itself (sixty of them): the finest label a shop would have, so
    that the model without vectors is not starved.

    Args:
        catalogue: The facts.
        image_P: One encoded image a product.
        launched_us_P: Launch times, microseconds since the epoch, UTC.
        seed: Draws the wording of titles and descriptions.

    Returns:
        Columns product_id, title, description (some missing), image, category, department, brand,
        price, group_id, launched.
    """
    rng = np.random.default_rng([seed, 2])
    department_P = np.array(grocery.TYPE_DEPARTMENT)[catalogue.type_P]
    rows = range(len(catalogue))
    return pl.DataFrame(
        {
            "product_id": catalogue.product_id_P,
            "title": [_title(catalogue, row, rng) for row in rows],
            "description": [_description(catalogue, row, rng) for row in rows],
            "image": image_P,
            "category": [grocery.TYPE_NAMES[t] for t in catalogue.type_P],
            "department": [grocery.DEPARTMENTS[d].name for d in department_P],
            "brand": [grocery.BRANDS[b] for b in catalogue.brand_P],
            "price": catalogue.price_P,
            "group_id": catalogue.product_id_P[catalogue.group_P],
            "launched": pl.Series(launched_us_P).cast(pl.Datetime("us", "UTC")),
        }
    )


def _draw_brands(type_P: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Give each product a brand of its department: each brand is at home in three of them."""
    n_departments = len(grocery.DEPARTMENTS)
    size_B = rng.lognormal(0.0, 0.8, len(grocery.BRANDS))
    at_home_BD = rng.random((len(grocery.BRANDS), n_departments)).argsort(axis=1) < 3
    weight_BD = size_B[:, None] * at_home_BD + 1e-9
    cumulative_DB = np.cumsum(weight_BD.T / weight_BD.sum(axis=0)[:, None], axis=1)
    department_P = np.array(grocery.TYPE_DEPARTMENT)[type_P]
    below_PB = cumulative_DB[department_P] < rng.random((len(type_P), 1))
    return np.minimum(below_PB.sum(axis=1), len(grocery.BRANDS) - 1)


def _draw_attributes(type_P: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """One pack, most often one flavour, often one preparation, up to two diet claims."""
    column = {name: a for a, name in enumerate(grocery.ATTRIBUTES)}
    has_PA = np.zeros((len(type_P), len(grocery.ATTRIBUTES)), dtype=bool)
    for row, kind in enumerate(type_P):
        department = grocery.DEPARTMENTS[grocery.TYPE_DEPARTMENT[kind]]
        names = [str(rng.choice(department.packs))]
        if rng.random() < 0.65:
            names.append(str(rng.choice(department.flavours)))
        if rng.random() < 0.5:
            names.append(str(rng.choice(department.preparations)))
        claims = rng.permutation(department.diets)[: rng.integers(0, 3)]
        has_PA[row, [column[name] for name in (*names, *claims)]] = True
    return has_PA


def _tell(
    has_PA: NDArray[np.bool_], parameters: WorldParameters, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Decide which attributes the title tells and which the image shows; never neither."""
    draw_PA = rng.random(has_PA.shape)
    in_title_PA = has_PA & (draw_PA >= parameters.hidden_from_title)
    hidden_from_image_PA = draw_PA >= 1 - parameters.hidden_from_image
    hidden_from_image_PA[:, : len(grocery.PACKS)] = False
    return in_title_PA, has_PA & ~hidden_from_image_PA


def _draw_prices(
    type_P: NDArray[np.int64],
    brand_P: NDArray[np.int64],
    size_P: NDArray[np.int64],
    has_PA: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Usual price of the type, times size, brand, organic premium and chance."""
    brand_factor_B = rng.lognormal(0.0, 0.2, len(grocery.BRANDS))
    organic_P = has_PA[:, grocery.ATTRIBUTES.index("organic")]
    price_P = (
        np.array(grocery.TYPE_PRICES)[type_P]
        * np.array(grocery.SIZE_FACTORS)[size_P]
        * brand_factor_B[brand_P]
        * np.where(organic_P, 1.25, 1.0)
        * rng.lognormal(0.0, 0.15, len(type_P))
    )
    return np.round(price_P, 2)


def _draw_late(products: int, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    late_P = np.zeros(products, dtype=bool)
    late_P[rng.permutation(products)[: round(share * products)]] = True
    return late_P


def _title(catalogue: Catalogue, row: int, rng: np.random.Generator) -> str:
    """Brand, told attributes, a name of the type and the size, in one of three orders."""
    kind = catalogue.type_P[row]
    names = (grocery.TYPE_NAMES[kind], *grocery.TYPE_SYNONYMS[kind])
    name = names[0] if rng.random() < 0.7 else names[rng.integers(len(names))]
    told = [grocery.ATTRIBUTES[a] for a in np.flatnonzero(catalogue.in_title_PA[row])]
    words = [grocery.ATTRIBUTE_WORDS[t][0] for t in told]
    if rng.random() < 0.4:
        words.append(grocery.FILLERS[rng.integers(len(grocery.FILLERS))])
    rng.shuffle(words)
    brand, size = grocery.BRANDS[catalogue.brand_P[row]], grocery.SIZES[catalogue.size_P[row]]
    order = rng.integers(3)
    if order == 0:
        return " ".join([brand, *words, name, size])
    if order == 1:
        return " ".join([brand, name, *words]) + f", {size}"
    return " ".join([*words, name]) + f" by {brand} {size}"


def _description(catalogue: Catalogue, row: int, rng: np.random.Generator) -> str | None:
    """A line of praise for most products; it never tells an attribute that the title hides."""
    if rng.random() >= 0.6:
        return None
    kind = catalogue.type_P[row]
    names = (grocery.TYPE_NAMES[kind], *grocery.TYPE_SYNONYMS[kind])
    name = names[rng.integers(len(names))]
    needs = [need for need, types in grocery.NEEDS.items() if names[0] in types]
    filler = grocery.FILLERS[rng.integers(len(grocery.FILLERS))]
    use = f" Good for {needs[rng.integers(len(needs))]}." if needs else ""
    return f"{filler.capitalize()} {name} from {grocery.BRANDS[catalogue.brand_P[row]]}.{use}"
