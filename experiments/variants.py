"""The variants that a comparison trains: one name, one set of inputs, one model.

A variant is a function that returns a ``Variant``; the standard set is ``STANDARD``. The two
controls have the capacity of real vectors and none of their meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from features.dataset import Dataset

BASELINE = "production"
CONTROLS = ("random_vectors", "shuffled_vectors")

VectorSource = Literal[
    "random", "shuffled", "off_the_shelf", "text_only", "image_only", "stage1", "dashclip"
]
ModelKind = Literal["tower", "logistic", "lightgbm"]


class Variant(BaseModel):
    """One way of predicting clicks, to be compared with the others on the same rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Key of the variant in tables and in ``metrics.json``."""
    meaning: str
    """What it is, in words for a table."""
    model: ModelKind = "tower"
    """Which click model is trained."""
    vectors: VectorSource | None = None
    """Which vectors it is given; None is none."""
    single_tower: bool = False
    """Vectors beside the sparse features in one tower, instead of a tower of their own."""
    derived: bool = True
    """Whether it sees cos(product, query) and cos(product, history)."""
    tower: dict[str, JsonValue] = {}
    """Settings of ``TowerConfig`` that make the variant what it is."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The tables and columns this variant needs beside impressions."""
        if self.tower.get("entire_space"):
            return ("impressions.purchased",)
        if self.tower.get("position_slots"):
            return ("impressions.position",)
        if self.vectors is None:
            return ()
        if self.vectors == "off_the_shelf":
            return ("products", "queries")
        if self.vectors == "stage1":
            return ("products", "queries", "products.image")
        # A placebo needs no text of its own, but it copies the size of the DashCLIP vectors.
        needs = ("products", "queries", "relevance")
        return (*needs, "products.image") if self.vectors == "image_only" else needs

    def lacks(self, dataset: Dataset) -> list[str]:
        """Return those of ``needs`` that a dataset does not have."""
        return [need for need in self.needs if not _has(dataset, need)]


def production() -> Variant:
    """The click model without vectors: the baseline of every comparison."""
    return Variant(name=BASELINE, meaning="sparse and dense features, DCN-v2, no vectors")


def random_vectors() -> Variant:
    """Placebo: a random direction for every product and query."""
    return Variant(
        name="random_vectors", meaning="placebo: random directions of equal size", vectors="random"
    )


def shuffled_vectors() -> Variant:
    """Placebo: the DashCLIP vectors, each handed to another product or query."""
    return Variant(
        name="shuffled_vectors",
        meaning="placebo: DashCLIP vectors dealt to the wrong products and queries",
        vectors="shuffled",
    )


def off_the_shelf() -> Variant:
    """Frozen text encoder, as downloaded."""
    return Variant(
        name="off_the_shelf", meaning="frozen text encoder, no training", vectors="off_the_shelf"
    )


def text_only() -> Variant:
    """DashCLIP vectors made from titles alone."""
    return Variant(name="text_only", meaning="DashCLIP without images", vectors="text_only")


def image_only() -> Variant:
    """DashCLIP vectors made from images alone."""
    return Variant(name="image_only", meaning="DashCLIP without text", vectors="image_only")


def stage1() -> Variant:
    """Image-text vectors before product-query alignment."""
    return Variant(name="stage1", meaning="image-text contrast and matching only", vectors="stage1")


def dashclip() -> Variant:
    """Image-text vectors after product-query alignment: the paper's proposal."""
    return Variant(
        name="dashclip", meaning="stage 1, then product-query alignment", vectors="dashclip"
    )


def single_tower() -> Variant:
    """DashCLIP vectors beside the sparse features in one tower."""
    return dashclip().model_copy(
        update={
            "name": "single_tower",
            "meaning": "DashCLIP vectors inside the production tower",
            "single_tower": True,
        }
    )


def no_derived() -> Variant:
    """DashCLIP vectors without the cosines."""
    return dashclip().model_copy(
        update={
            "name": "no_derived",
            "meaning": "DashCLIP vectors without the cosines",
            "derived": False,
        }
    )


def full_rank() -> Variant:
    """DCN-v2 with full cross matrices instead of low-rank ones."""
    return Variant(
        name="full_rank",
        meaning="DCN-v2 with full crosses, no vectors",
        tower={"cross_rank": None, "cross_layers": 3},
    )


def attention() -> Variant:
    """DashCLIP vectors, and the candidate attends to the history by them."""
    return dashclip().model_copy(
        update={
            "name": "attention",
            "meaning": "DashCLIP vectors, target attention over the history",
            "tower": {"attention": "vectors"},
        }
    )


def attention_ids() -> Variant:
    """No vectors; the candidate attends to the history by embeddings of the products' own."""
    return Variant(
        name="attention_ids",
        meaning="target attention over the history's ids, no vectors",
        tower={"attention": "ids"},
    )


def semantic_ids() -> Variant:
    """DashCLIP vectors as semantic ids alone: three levels of sparse features, no vector."""
    return dashclip().model_copy(
        update={
            "name": "semantic_ids",
            "meaning": "DashCLIP vectors as semantic ids, three levels",
            "tower": {"use_vectors": False, "semantic_levels": 3},
        }
    )


def frequency_gate() -> Variant:
    """The product's id embedding mixed with its DashCLIP vector by how often it was shown."""
    return dashclip().model_copy(
        update={
            "name": "frequency_gate",
            "meaning": "product id and DashCLIP vector mixed by frequency",
            "tower": {"use_vectors": False, "frequency_gate": "product_id"},
        }
    )


def position_tower() -> Variant:
    """The position in a shallow tower at training, absent at scoring; no vectors."""
    return Variant(
        name="position_tower",
        meaning="position in a tower of its own at training, no vectors",
        tower={"position_slots": 20},
    )


def entire_space() -> Variant:
    """Clicks and purchases learned together (ESMM), no vectors."""
    return Variant(
        name="entire_space",
        meaning="clicks and purchases learned together, no vectors",
        tower={"entire_space": True},
    )


def logistic() -> Variant:
    """Logistic regression on ids and dense columns."""
    return Variant(name="logistic", meaning="logistic regression, no vectors", model="logistic")


def lightgbm() -> Variant:
    """Gradient-boosted trees on ids and dense columns."""
    return Variant(name="lightgbm", meaning="gradient-boosted trees, no vectors", model="lightgbm")


def lightgbm_dashclip() -> Variant:
    """Gradient-boosted trees with the two DashCLIP cosines as columns."""
    return Variant(
        name="lightgbm_dashclip",
        meaning="gradient-boosted trees with the DashCLIP cosines",
        model="lightgbm",
        vectors="dashclip",
    )


REGISTRY: dict[str, Callable[[], Variant]] = {
    make.__name__: make
    for make in (
        production,
        random_vectors,
        shuffled_vectors,
        off_the_shelf,
        text_only,
        image_only,
        stage1,
        dashclip,
        single_tower,
        no_derived,
        full_rank,
        attention,
        attention_ids,
        semantic_ids,
        frequency_gate,
        position_tower,
        entire_space,
        logistic,
        lightgbm,
        lightgbm_dashclip,
    )
}
STANDARD = (
    "production",
    "random_vectors",
    "shuffled_vectors",
    "off_the_shelf",
    "stage1",
    "dashclip",
    "logistic",
    "lightgbm",
    "lightgbm_dashclip",
)


def find_variants(names: Sequence[str], dataset: Dataset) -> list[Variant]:
    """Look variants up by name and refuse those the dataset cannot feed.

    Args:
        names: Names from ``REGISTRY``, each once.
        dataset: The dataset they are to be trained on.

    Returns:
        The variants in the order given.

    Raises:
        ValueError: If a name is unknown or repeated, or a variant needs tables the dataset lacks;
            the message names the variants and the tables.
    """
    unknown = [name for name in names if name not in REGISTRY]
    if unknown:
        raise ValueError(f"unknown variants {unknown}; known are {', '.join(REGISTRY)}")
    if len(set(names)) != len(names):
        raise ValueError(f"variants are named twice: {', '.join(names)}")
    variants = [REGISTRY[name]() for name in names]
    lacking = {v.name: v.lacks(dataset) for v in variants if v.lacks(dataset)}
    if lacking:
        missing = sorted({need for needs in lacking.values() for need in needs})
        possible = [v.name for v in variants if v.name not in lacking]
        raise ValueError(
            f"dataset {dataset.spec.name!r} has no {' and no '.join(missing)}, which the variants "
            f"{', '.join(lacking)} need to make their vectors. Add what is missing and name it in "
            "dataset.toml, or train what the data can feed: --variants "
            f"{' '.join(possible or feasible_variants(dataset, tuple(REGISTRY)))}"
        )
    return variants


def feasible_variants(dataset: Dataset, names: Sequence[str] = STANDARD) -> list[str]:
    """Return those of ``names`` that a dataset can feed."""
    return [name for name in names if not REGISTRY[name]().lacks(dataset)]


def _has(dataset: Dataset, need: str) -> bool:
    table, _, column = need.partition(".")
    if not dataset.has(table):
        return False
    return not column or column in dataset.column_names(table)
