"""Stage 2: products and queries are drawn together by relevance (PQC).

The encoders of stage 1 stay frozen and run once over the catalogue; a projection of their features
and the query encoder train, as in the paper.

Shape letters: P products, B queries of a batch, M products drawn for them, X features of a
product, D text width, E embedding size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from embeddings.cached_text import CachedStates
from embeddings.encoders import initialise_
from embeddings.images import decode_images
from embeddings.judgements import Judgements
from embeddings.model import DashClip, ProductFeatures
from embeddings.pqc import graded_pair_loss, pqc_loss
from embeddings.product_groups import product_groups
from embeddings.schedule import adamw, learning_rate_factor, shuffled_batches, take_step_
from embeddings.stages import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    Progress,
    digest_of,
    finished_stage,
)
from embeddings.text import product_texts, tokenize


class Stage2Config(BaseModel):
    """Settings of the product-query alignment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query_layers: int = Field(default=2, ge=1)
    """Last text layers that the query encoder trains a copy of."""
    projection_width: int = Field(default=512, ge=0)
    """Hidden units of the product projection; 0 is a linear one."""
    class_ratio: tuple[int, int, int] = (2, 1, 1)
    """Products of label 2, 1 and 0 drawn for each query of a batch."""
    steps: int = Field(default=300, ge=1)
    batch: int = Field(default=128, ge=2)
    """Queries per step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak, for the projections."""
    query_learning_rate: float = Field(default=2e-4, gt=0)
    """Peak, for the layers of the query encoder."""
    warmup_steps: int = Field(default=30, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    temperature: float = Field(default=0.07, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)
    """Initial temperature of the contrast; it is learned."""
    graded_weight: float = Field(default=1.0, ge=0)
    """Weight of ``graded_pair_loss`` beside ``pqc_loss``; 0 leaves it out."""
    graded_temperature: float = Field(default=0.1, gt=0)
    modality_dropout: float = Field(default=0.1, ge=0, lt=0.5)
    """Chance that a drawn product is seen by its text alone, and that it is seen by its image
    alone, so that products which lack one are embedded well."""

    @field_validator("class_ratio")
    @classmethod
    def _ratio_has_positives(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(value) < 0 or value[0] + value[1] == 0:
            raise ValueError(
                f"class_ratio={value} must be counts of labels 2, 1, 0 with a positive count for "
                "2 or 1"
            )
        return value


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
        relevance: query_id, product_id, label; training queries only.
        config: Settings; the defaults if None.
        seed: Decides batches, draws and initial weights.
        out: Folder for the trained model. If it already holds one from the same model, data,
            settings and seed, that one is returned and nothing is trained.
        image_root: Folder that relative image paths start from.
        image_cache: File that keeps the decoded images between runs; see ``decode_images``.
        progress: Called after every step.

    Returns:
        The aligned model.

    Raises:
        ValueError: If the labels cannot be used (see ``Judgements``), no query has a positive,
            the loss becomes NaN, or ``out`` holds another model.
    """
    config = config or Stage2Config()
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    texts = product_texts(products, model.architecture.text_columns)
    group_P = product_groups(products)
    judgements = Judgements(relevance, queries, products["product_id"].to_list(), group_P, rng)
    if len(judgements.trainable) < 2:
        raise ValueError(
            f"{len(judgements.trainable)} queries have a pair of label 1 or 2; alignment contrasts "
            "queries with each other and needs 2 or more"
        )
    images = decode_images(
        products, model.architecture.image.pixels, image_root=image_root, cache=image_cache
    )
    run = {
        "stage": 2,
        "seed": seed,
        "config": config.model_dump(mode="json"),
        "model": model.fingerprint,
        "data": digest_of(
            texts,
            group_P,
            images.pixel_PSS3,
            relevance.select("query_id", "product_id").rows(),
            relevance["label"].to_list(),
            queries.select("query_id", "query").rows(),
        ),
    }
    finished = finished_stage(out, run)
    if finished is not None:
        return finished
    aligned = model.with_alignment(config.query_layers, config.projection_width)
    features = model.product_features(products, images=images)
    views = [features]
    if bool((features.has_image_P & features.has_text_P).any()) and config.modality_dropout:
        views.append(model.product_features(products, "text"))
        views.append(model.product_features(products, "image", images=images))
    tokens = tokenize(aligned.tokenizer, judgements.texts, aligned.architecture.max_query_tokens)
    depth = len(aligned.text.layers) - config.query_layers
    states = CachedStates(aligned, tokens, depth)
    initialise_projections_(aligned, features, states, generator)
    aligned.history["stage2"] = _fit(
        aligned, config, views, states, judgements, generator, progress
    )
    aligned.stage, aligned.run = 2, run
    if out is not None:
        aligned.save_(out)
    return aligned


@torch.no_grad()
def initialise_projections_(
    model: DashClip, features: ProductFeatures, states: CachedStates, generator: torch.Generator
) -> None:
    """Start both projections from the principal components of the text features.

    Products and queries then begin with nearly the cosines of the text encoder, each side
    centred; the multimodal and image features begin silent and are learned.
    """
    projection, query = model.product_projection, model.query_encoder
    assert projection is not None and query is not None
    start, width = model.architecture.text.width, model.architecture.text.pooled_width
    text, dim = slice(start, start + width), model.dim
    projection.fit_(features)
    text_PD = features.parts()[0][features.has_text_P, text]
    query_QD = torch.cat(
        [pooled_queries(model, states, row_B) for row_B in states.tokens.by_length(512)]
    )
    initialise_(projection, generator)
    initialise_(query.projection, generator)
    if not len(text_PD):
        return
    product_mean_D, query_mean_D = text_PD.mean(0), query_QD.mean(0)
    centred_ND = torch.cat([text_PD - product_mean_D, query_QD - query_mean_D])
    _, basis_DD = torch.linalg.eigh((centred_ND.T @ centred_ND).double())
    kept = min(dim, width)
    component_ED = torch.zeros(dim, width)
    component_ED[:kept] = basis_DD[:, -kept:].T.float()
    projection.linear.weight.zero_()
    projection.linear.weight[:, text] = component_ED * projection.scale_X[text]
    if projection.down is not None:
        projection.down.weight.zero_()
    query.projection.weight.copy_(component_ED)
    query.projection.bias.copy_(-component_ED @ query_mean_D)


def pooled_queries(model: DashClip, states: CachedStates, row_B: Tensor) -> Tensor:
    """Normalised read-out of the query encoder before its projection, (B, D), on its device."""
    assert model.query_encoder is not None
    x_BLD, attend_BL = states.batch(row_B)
    with model.precision.autocast(model.device):
        return model.query_encoder.pooled(x_BLD, attend_BL)


def _fit(
    model: DashClip,
    config: Stage2Config,
    views: list[ProductFeatures],
    states: CachedStates,
    judgements: Judgements,
    generator: torch.Generator,
    progress: Progress | None,
) -> dict[str, list[float]]:
    """Train the projections and the query encoder of ``model`` in place."""
    projection, query = model.product_projection, model.query_encoder
    assert projection is not None and query is not None
    input_PX = [projection.standardise(view) for view in views]
    temperature = nn.Parameter(torch.tensor(config.temperature, device=model.device))
    optimizer = adamw(
        [
            ([*projection.parameters(), *query.projection.parameters()], config.learning_rate),
            (list(query.layers.parameters()), config.query_learning_rate),
            ([temperature], config.learning_rate),
        ],
        config.weight_decay,
    )
    trainable = judgements.trainable
    batches = shuffled_batches(len(trainable), config.batch, generator)
    history: dict[str, list[float]] = {}
    for step in range(config.steps):
        query_B = trainable[next(batches).numpy()]
        product_M = judgements.draw(query_B, config.class_ratio)
        label_BM = torch.from_numpy(judgements.labels(query_B, product_M)).to(model.device)
        part_MX = draw_views(input_PX, product_M, config.modality_dropout, generator)
        pooled_BD = pooled_queries(model, states, torch.from_numpy(query_B))
        query_BE = query.projection(pooled_BD)
        product_ME = projection(part_MX.to(model.device))
        pqc = pqc_loss(query_BE, product_ME, label_BM, temperature=temperature)
        judged_BM = label_BM >= 0
        cosine_BM = F.normalize(query_BE, dim=1) @ F.normalize(product_ME, dim=1).T
        graded = graded_pair_loss(
            cosine_BM[judged_BM], label_BM[judged_BM], temperature=config.graded_temperature
        )
        loss = take_step_(
            optimizer,
            pqc + config.graded_weight * graded,
            factor=learning_rate_factor(step, config.steps, config.warmup_steps),
            max_norm=config.max_gradient_norm,
            where=f"stage 2, step {step + 1}",
        )
        with torch.no_grad():
            temperature.clamp_(MIN_TEMPERATURE, MAX_TEMPERATURE)
        metrics = {
            "loss": loss,
            "pqc": float(pqc.detach()),
            "graded": float(graded.detach()),
            "temperature": float(temperature.detach()),
        }
        for name, value in metrics.items():
            history.setdefault(name, []).append(value)
        if progress is not None:
            progress("stage2", step + 1, config.steps, metrics)
    return history


def draw_views(
    views: list[Tensor],
    product_M: NDArray[np.int64],
    dropout: float,
    generator: torch.Generator,
) -> Tensor:
    """Features of some products: whole, or now and then by text or by image alone, (M, X).

    Args:
        views: Inputs of all products, whole; and, where there are images, by text and by image.
        product_M: Product rows.
        dropout: Chance of the text view, and of the image view.
        generator: Makes the draw repeatable.
    """
    row_M = torch.from_numpy(product_M)
    part_MX = views[0][row_M]
    if len(views) == 1:
        return part_MX
    chance_M = torch.rand(len(row_M), generator=generator)
    for view, low in ((views[1], 0.0), (views[2], dropout)):
        only_MX = view[row_M]
        # A product without that modality keeps its whole view: there is nothing else of it.
        use_M = (chance_M >= low) & (chance_M < low + dropout) & (only_MX != 0).any(1)
        part_MX = torch.where(use_M[:, None], only_MX, part_MX)
    return part_MX
