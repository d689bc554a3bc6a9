"""Stage 2: products and queries are drawn together by relevance (PQC).

The encoders of stage 1 stay frozen and run once over the catalogue; a projection of their features
and the query encoder train, as in the paper. On request all layers of the text encoders train too.

Shape letters: P products.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embeddings import training_state
from embeddings.alignment_sides import FrozenProducts, Queries, TrainedProducts
from embeddings.alignment_start import initialise_projections_
from embeddings.arithmetic import settle_arithmetic_
from embeddings.cached_text import CachedStates
from embeddings.images import ImageTable, decode_images
from embeddings.judgements import Judgements
from embeddings.model import DashClip
from embeddings.product_features import ProductFeatures
from embeddings.product_groups import product_groups
from embeddings.schedule import generator_at
from embeddings.stage2_config import Stage2Config
from embeddings.stage2_training import AlignmentTraining
from embeddings.stages import (
    Progress,
    digest_of,
    finished_stage,
)
from embeddings.text import product_texts, tokenize

START_PRODUCTS = 8192
"""Products, at most, that the projections start from where the encoders train: what they say of
the rest will change anyway."""


def train_stage2(
    model: DashClip,
    products: pl.DataFrame,
    queries: pl.DataFrame,
    relevance: pl.DataFrame,
    config: Stage2Config | None = None,
    *,
    seed: int,
    out: str | Path | None = None,
    image_root: str | Path | None = None,
    image_cache: str | Path | None = None,
    progress: Progress | None = None,
) -> DashClip:
    """Align products and queries.

    Args:
        model: From ``train_stage1``; left as it is.
        products: The catalogue, as for stage 1; every product of ``relevance`` is in it.
        queries: query_id, query.
        relevance: query_id, product_id, label, [source], [p0, p1, p2]: chances of the classes,
            which count instead of the label where they are given. Training queries only.
        config: Settings; the defaults if None.
        seed: Decides batches, draws and initial weights.
        out: Folder for the trained model. If it already holds one from the same model, data,
            settings and seed, that one is returned and nothing is trained; a run that was cut off
            goes on to the same bits.
        image_root: Folder that relative image paths start from.
        image_cache: File that keeps the decoded images between runs; see ``decode_images``.
        progress: Called after every step.

    Returns:
        The aligned model.

    Raises:
        ValueError: If the labels cannot be used (see ``Judgements``), no query has a positive,
            the loss becomes NaN, or ``out`` holds another model or the state of another run.
    """
    config = config or Stage2Config()
    texts = product_texts(products, model.architecture.text_columns)
    group_P = product_groups(products)
    judgements = Judgements(
        relevance,
        queries,
        products["product_id"].to_list(),
        group_P,
        np.random.default_rng(seed),
        config.source_weights,
    )
    if len(judgements.trainable) < 2:
        raise ValueError(
            f"{len(judgements.trainable)} queries have a pair of label 1 or 2; alignment contrasts "
            "queries with each other and needs 2 or more"
        )
    images = decode_images(
        products, model.architecture.read_pixels, image_root=image_root, cache=image_cache
    )
    run: dict[str, Any] = {
        "stage": 2,
        "seed": seed,
        "config": config.model_dump(mode="json"),
        "model": model.fingerprint,
        "data": digest_of(
            texts,
            group_P,
            images.pixel_PSS3,
            relevance.select("query_id", "product_id").rows(),
            *judgements.known(),
            queries.select("query_id", "query").rows(),
        ),
    }
    finished = finished_stage(out, run)
    if finished is not None:
        return finished
    state = None if out is None else state_folder(Path(out))
    found = None if state is None else training_state.read_state_of(state, run)
    aligned = model.with_alignment(config.query_layers, config.projection_width)
    arithmetic = settle_arithmetic_(aligned, None if found is None else found[1]["arithmetic"])
    training = _prepare(aligned, config, products, texts, images, judgements, group_P, seed)
    if found is not None:
        training.restore(*found)
    aligned.history["stage2"] = training.run(run, arithmetic, state, progress)
    aligned.stage, aligned.run = 2, {**run, "arithmetic": arithmetic}
    if out is not None:
        aligned.save_(out)
        shutil.rmtree(state_folder(Path(out)), ignore_errors=True)
    return aligned


def state_folder(out: Path) -> Path:
    """Where a training that was cut off is kept until it is finished, beside ``out``."""
    return out.with_name(f".{out.name}-training")


def _prepare(
    model: DashClip,
    config: Stage2Config,
    products: pl.DataFrame,
    texts: list[str],
    images: ImageTable,
    judgements: Judgements,
    group_P: NDArray[np.int64],
    seed: int,
) -> AlignmentTraining:
    """Run the frozen parts once and start the projections from what they say."""
    tokens = tokenize(model.tokenizer, judgements.texts, model.architecture.max_query_tokens)
    depth = len(model.text.layers) - model.architecture.query_layers
    states = None if config.end_to_end else CachedStates(model, tokens, depth)
    query_side = Queries(model, tokens, states, config.token_dropout)
    start = generator_at(seed, "projections", 0)
    if config.end_to_end:
        initialise_projections_(
            model, _some_features(model, products, images), query_side.all_pooled(), start
        )
        product_side = TrainedProducts(
            model,
            texts,
            images,
            model.product_features(products, "image", images=images).image_PC
            if images.present_P.any()
            else None,
            dropout=config.modality_dropout,
            token_dropout=config.token_dropout,
        )
    else:
        features = model.product_features(products, images=images)
        initialise_projections_(model, features, query_side.all_pooled(), start)
        views = [features]
        if bool((features.has_image_P & features.has_text_P).any()) and config.modality_dropout:
            views.append(model.product_features(products, "text"))
            views.append(model.product_features(products, "image", images=images))
        product_side = FrozenProducts(model, views, config.modality_dropout)
    return AlignmentTraining(config, model, product_side, query_side, judgements, group_P, seed)


def _some_features(model: DashClip, products: pl.DataFrame, images: ImageTable) -> ProductFeatures:
    """Features of products spread over the catalogue: enough for means, spreads and components."""
    row_S = np.unique(np.linspace(0, len(products) - 1, START_PRODUCTS).astype(np.int64))
    some = ImageTable(pixel_PSS3=images.pixel_PSS3[row_S], present_P=images.present_P[row_S])
    return model.product_features(products[row_S], images=some)
