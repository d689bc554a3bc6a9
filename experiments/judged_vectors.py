"""Which vectors and scores are judged together: a run's own, and what they have to beat."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from embeddings.baselines import (
    TfidfScores,
    off_the_shelf_products,
    off_the_shelf_queries,
    random_vectors,
    tfidf_products,
)
from embeddings.bm25 import Bm25Scores
from embeddings.images import decode_images
from embeddings.model import DashClip
from embeddings.scores import CosineScores, Scores
from embeddings.store import VectorStore
from embeddings.weights import find_text_weights
from experiments.progress import Progress
from experiments.vectors import model_folder
from features.dataset import Dataset

OFF_THE_SHELF = "off_the_shelf"
OWN = "vectors"
"""Name of vectors that no run made."""
LONGEST_WHY = 160
"""Letters of an error that a note repeats."""
_ORDER = ("dashclip", OWN, "text_only", "image_only", "stage1", OFF_THE_SHELF)
_STAGES = {2: ("dashclip", ""), 1: ("stage1", "stage1_")}
"""Stage to the vectors that hold both modalities, and what the names of one begin with."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One thing to judge."""

    scores: Scores
    """Match queries with products."""
    products: VectorStore | None = None
    """Product vectors; None where there are none."""
    queries: VectorStore | None = None


@dataclass(frozen=True, kw_only=True)
class JudgedSet:
    """All that is judged side by side."""

    by_name: dict[str, Judged]
    subject: str
    """Whose figures are asked for; the others stand beside it."""
    notes: tuple[str, ...]
    """What is missing, and why."""

    def named(self, *names: str) -> dict[str, Judged]:
        """Those of some names that are there."""
        return {name: self.by_name[name] for name in names if name in self.by_name}


def find_judged(
    path: Path,
    dataset: Dataset,
    *,
    text_weights: str,
    modalities: bool,
    seed: int,
    progress: Progress,
) -> JudgedSet:
    """Open the vectors of a run or of a folder, and put the baselines beside them.

    Args:
        path: A run's folder, or one with the stores ``products`` and ``queries``.
        dataset: With products and queries.
        text_weights: Of the frozen off-the-shelf encoder, where the run has not stored its vectors.
        modalities: Also embed the products by image alone and by text alone, where ``path`` has
            the models and the products have images.
        seed: Of the random vectors.
        progress: Told of the stages.

    Raises:
        ValueError: If there are no vectors at ``path``, or they lack a product of the dataset.
    """
    products, queries = dataset.table("products"), dataset.table("queries")
    stored = _stored(path)
    notes: list[str] = []
    if modalities and (path / "embeddings").is_dir():
        stored |= _by_modality(path, dataset, stored, notes, progress)
    if OFF_THE_SHELF not in stored:
        with progress.stage("embedding off the shelf"):
            weights = find_text_weights(text_weights)
            stored[OFF_THE_SHELF] = (
                off_the_shelf_products(products, weights=weights),
                off_the_shelf_queries(queries, weights=weights),
            )
    subject = next(name for name in (*_ORDER, *stored) if name in stored)
    if "random" not in stored:
        dim = stored[subject][0].dim
        stored["random"] = (
            random_vectors(products["product_id"].to_list(), dim, seed),
            random_vectors(queries["query_id"].to_list(), dim, seed + 1),
        )
    names = sorted(stored, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    judged = {name: _judged(name, *stored[name], products) for name in names}
    judged["tfidf"] = Judged(
        scores=TfidfScores(products, queries), products=tfidf_products(products)
    )
    judged["bm25"] = Judged(scores=Bm25Scores(products, queries))
    return JudgedSet(by_name=judged, subject=subject, notes=tuple(notes))


def _stored(path: Path) -> dict[str, tuple[VectorStore, VectorStore]]:
    """Product and query vectors by name, as they lie under a path."""
    run = path / "embeddings"
    folders = {folder.name: folder for folder in sorted(run.iterdir())} if run.is_dir() else {}
    if not folders and path.is_dir():
        folders = {OWN: path}
    found = {
        name: (VectorStore.open(folder / "products"), VectorStore.open(folder / "queries"))
        for name, folder in folders.items()
        if (folder / "products").is_dir() and (folder / "queries").is_dir()
    }
    if not found:
        raise ValueError(
            f"{path} has no vectors to judge: it should be the folder of a run (with "
            "embeddings/NAME/products and queries) or a folder with the stores products and queries"
        )
    return found


def _judged(
    name: str, product_store: VectorStore, query_store: VectorStore, products: pl.DataFrame
) -> Judged:
    try:
        scores = CosineScores(product_store, query_store)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    row_N = product_store.row_of(products["product_id"].to_list())
    if (row_N < 0).any():
        missing = products["product_id"][int((row_N < 0).argmax())]
        raise ValueError(
            f"{name}: {int((row_N < 0).sum())} of {len(products)} products have no vector, "
            f"{missing!r} for one; were the vectors made from another dataset?"
        )
    return Judged(scores=scores, products=product_store, queries=query_store)


def _by_modality(
    path: Path,
    dataset: Dataset,
    stored: dict[str, tuple[VectorStore, VectorStore]],
    notes: list[str],
    progress: Progress,
) -> dict[str, tuple[VectorStore, VectorStore]]:
    """Vectors by text alone and by image alone of each stage's model, those not stored."""
    products = dataset.table("products")
    if "image" not in products.columns:
        notes.append("no modality was judged apart: the products have no images")
        return {}
    found: dict[str, tuple[VectorStore, VectorStore]] = {}
    for stage, (both, prefix) in _STAGES.items():
        folder = model_folder(path, stage)
        if both not in stored or not folder.is_dir():
            continue
        try:
            model = DashClip.load(folder)
        except ValueError as error:
            why = " ".join(str(error).split())[:LONGEST_WHY]
            notes.append(f"{both} was not judged by modality, its model cannot be opened: {why}")
            continue
        if model.fingerprint != stored[both][0].manifest.encoder_fingerprint:
            notes.append(f"{both} was not judged by modality: another model made its vectors")
            continue
        pixels = model.architecture.read_pixels
        for mode in ("text", "image"):
            name = f"{prefix}{mode}_only"
            if name in stored:
                continue
            with progress.stage(f"embedding {name.replace('_', ' ')}"):
                images = None
                if mode == "image":
                    images = decode_images(products, pixels, image_root=dataset.folder)
                store = VectorStore.from_arrays(
                    products["product_id"].to_list(),
                    model.embed_products(products, mode, images=images),
                    kind=f"product/{mode}",
                    encoder_fingerprint=model.fingerprint,
                )
            found[name] = (store, stored[both][1])
    return found
