"""Stage 1: image and text of the same product are drawn together (ITC) and told apart from
mismatched pairs (ITM). No query and no click anywhere.

Shape letters: P products, B rows of a batch, R rows of it that enter ITM, L tokens, D text width,
I image tokens, C image width, E embedding size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import rankdata
from torch import Tensor

from embeddings import checkpoint
from embeddings.augment import random_views
from embeddings.cached_text import CachedStates
from embeddings.encoders import ImageShape, mean_pool
from embeddings.images import ImageTable, decode_images
from embeddings.losses import draw_itm_negatives, itc_logits, itc_loss, itm_loss
from embeddings.model import DashClip, scale_pixels
from embeddings.schedule import adamw, learning_rate_factor, shuffled_batches, take_step_
from embeddings.text import product_texts, tokenize
from embeddings.weights import find_text_weights

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called after each step with stage, steps done, steps in all, and metrics."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5
"""The learnable temperature stays between these, as in ALBEF."""


class Stage1Config(BaseModel):
    """Settings of the image-text pre-training; the defaults fit two CPU cores and 48 px."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_weights: str = "minilm"
    """What ``find_text_weights`` resolves: "minilm", "random", a folder, a cached repository."""
    require_pretrained: bool = False
    """Refuse to start from random text weights."""
    text_columns: tuple[str, ...] = ("title",)
    """Product columns that make its text, in order."""
    max_text_tokens: int = Field(default=48, ge=3)
    max_query_tokens: int = Field(default=24, ge=3)
    image_px: int = Field(default=48, ge=8)
    """Images are decoded to squares of this side."""
    patch_px: int = Field(default=8, ge=2)
    """Side of the square that one image token stands for; a power of two."""
    image_width: int = Field(default=128, ge=8)
    image_layers: int = Field(default=1, ge=1)
    image_heads: int = Field(default=4, ge=1)
    fusion_layers: int = Field(default=2, ge=1)
    """Last text layers that look at the image in the multimodal encoder."""
    trainable_text_layers: int = Field(default=2, ge=1)
    """Last text layers that train; the rest are frozen and run once."""
    embedding_dim: int = Field(default=128, ge=2)
    steps: int = Field(default=300, ge=1)
    batch: int = Field(default=64, ge=2)
    """Products per step, all of them each other's negatives but for their own group."""
    itm_rows: int = Field(default=16, ge=1)
    """Products of each batch that enter ITM, each as one matched and two mismatched pairs."""
    itm_temperature: float = Field(default=0.5, gt=0)
    """Temperature of the draw of ITM negatives: the smaller, the harder. At the temperature of the
    contrast itself, as in ALBEF, 300 steps taught ITM nothing on the generated world (AUC .49);
    at 0.5 they reach .89."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak, for parts that start random."""
    text_learning_rate: float = Field(default=1e-4, gt=0)
    """Peak, for layers that start pretrained."""
    warmup_steps: int = Field(default=40, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)


def train_stage1(
    products: pl.DataFrame,
    config: Stage1Config | None = None,
    *,
    seed: int,
    out: str | Path | None = None,
    image_root: str | Path | None = None,
    progress: Progress | None = None,
) -> DashClip:
    """Pre-train the encoders on a catalogue.

    Only products with an image and a text are contrasted. A catalogue without any returns the
    model as it begins (pretrained text, no training), with an empty history.

    Args:
        products: product_id, the text columns, [image], [group_id].
        config: Settings; the defaults if None.
        seed: Decides initial weights, batches, views and negatives.
        out: Folder for the trained model. If it already holds one from the same products,
            settings and seed, that one is returned and nothing is trained.
        image_root: Folder that relative image paths start from.
        progress: Called after every step.

    Raises:
        ValueError: If the table is empty, an image cannot be decoded, only one product has both
            modalities, all are one group, the loss becomes NaN, or ``out`` holds another model.
    """
    config = config or Stage1Config()
    if not len(products):
        raise ValueError("the products table is empty; stage 1 needs a catalogue")
    weights = find_text_weights(config.text_weights, require_pretrained=config.require_pretrained)
    images = decode_images(products, config.image_px, image_root=image_root)
    texts = product_texts(products, config.text_columns)
    group_P = product_groups(products, texts)
    run = {
        "stage": 1,
        "seed": seed,
        "config": config.model_dump(mode="json"),
        "weights_sha256": weights.sha256,
        "data": digest_of(texts, group_P, images.pixel_PSS3, images.present_P),
    }
    finished = finished_stage(out, run)
    if finished is not None:
        return finished
    generator = torch.Generator().manual_seed(seed)
    model = DashClip.initial(
        weights,
        image=ImageShape(
            pixels=config.image_px,
            patch=config.patch_px,
            width=config.image_width,
            layers=config.image_layers,
            heads=config.image_heads,
        ),
        fusion_layers=config.fusion_layers,
        trainable_text_layers=config.trainable_text_layers,
        embedding_dim=config.embedding_dim,
        text_columns=config.text_columns,
        max_text_tokens=config.max_text_tokens,
        max_query_tokens=config.max_query_tokens,
        generator=generator,
    )
    has_text_P = np.array([len(text) > 0 for text in texts])
    pair_N = np.flatnonzero(images.present_P & has_text_P)
    if len(pair_N):
        refuse_one_group(group_P[pair_N])
        history = _fit(model, config, texts, images, group_P, pair_N, generator, progress)
        model.history["stage1"] = history
    model.stage, model.run = 1, run
    if out is not None:
        model.save_(out)
    return model


def _fit(
    model: DashClip,
    config: Stage1Config,
    texts: list[str],
    images: ImageTable,
    group_P: NDArray[np.int64],
    pair_N: NDArray[np.int64],
    generator: torch.Generator,
    progress: Progress | None,
) -> dict[str, list[float]]:
    """Train ``model`` in place on the products ``pair_N``, which have both modalities."""
    first, last = model.architecture.frozen_text_layers, len(model.text.layers)
    tokens = tokenize(
        model.tokenizer, [texts[row] for row in pair_N.tolist()], config.max_text_tokens
    )
    states = CachedStates(model, tokens, first)
    pixel_NSS3, group_N = images.pixel_PSS3[pair_N], torch.from_numpy(group_P[pair_N])
    text_parameters = list(model.text.layers[first:].parameters())
    new_parameters = [
        parameter
        for part in (model.image, model.multimodal, model.itc_image, model.itm_head)
        for parameter in part.parameters()
    ]
    optimizer = adamw(
        [
            ([*text_parameters, *model.itc_text.parameters()], config.text_learning_rate),
            ([*new_parameters, model.temperature], config.learning_rate),
        ],
        config.weight_decay,
    )
    batches = _batches_of_several_groups(group_N, config.batch, generator)
    history: dict[str, list[float]] = {}
    for step in range(config.steps):
        row_B = next(batches)
        group_B = group_N[row_B].to(model.device)
        x_BLD, attend_BL = states.batch(row_B)
        pixel_BSS3 = random_views(scale_pixels(pixel_NSS3[row_B.numpy()], model.device), generator)
        with model.precision.autocast(model.device):
            state_BLD = model.text.run(x_BLD, attend_BL, first=first, last=last)
            text_BE = model.itc_text(mean_pool(state_BLD, attend_BL))
            image_BIC = model.image(pixel_BSS3)
            image_BE = model.itc_image(image_BIC.mean(1))
            itc = itc_loss(image_BE, text_BE, group_B, temperature=model.temperature)
            draw_temperature = model.temperature.detach().clamp(min=config.itm_temperature)
            logit_BB = itc_logits(image_BE.detach(), text_BE.detach(), draw_temperature)
            text_row_N, image_row_N, matched_N = itm_pairs(
                logit_BB.cpu(), group_B.cpu(), config.itm_rows, generator
            )
            score_N2 = _match(model, x_BLD, attend_BL, image_BIC, text_row_N, image_row_N, first)
            itm = itm_loss(score_N2, matched_N.to(model.device))
        take_step_(
            optimizer,
            itc + itm,
            factor=learning_rate_factor(step, config.steps, config.warmup_steps),
            max_norm=config.max_gradient_norm,
            where=f"stage 1, step {step + 1}",
        )
        with torch.no_grad():
            model.temperature.clamp_(MIN_TEMPERATURE, MAX_TEMPERATURE)
        metrics = {
            "loss": float(itc.detach() + itm.detach()),
            "itc": float(itc.detach()),
            "itm": float(itm.detach()),
            "itm_auc": pair_auc((score_N2[:, 1] - score_N2[:, 0]).detach(), matched_N),
            "temperature": float(model.temperature.detach()),
        }
        for name, value in metrics.items():
            history.setdefault(name, []).append(value)
        if progress is not None:
            progress("stage1", step + 1, config.steps, metrics)
    return history


def itm_pairs(
    logit_BB: Tensor, group_B: Tensor, rows: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the pairs that ITM judges.

    The first ``rows`` products (all, if the batch has fewer) enter once matched, once with a hard
    image and once with a hard text.

    Returns:
        Text row, image row and match (1 or 0) of each pair, each (3R,), mismatches fewer where a
        product had none to draw.
    """
    text_for_image_B, image_for_text_B, possible_B = draw_itm_negatives(
        logit_BB, group_B, generator
    )
    own_R = torch.arange(min(rows, len(group_B)))
    hard_R = own_R[possible_B[own_R]]
    text_row_N = torch.cat([own_R, hard_R, text_for_image_B[hard_R]])
    image_row_N = torch.cat([own_R, image_for_text_B[hard_R], hard_R])
    matched_N = (torch.arange(len(text_row_N)) < len(own_R)).long()
    return text_row_N, image_row_N, matched_N


def _match(
    model: DashClip,
    x_BLD: Tensor,
    attend_BL: Tensor,
    image_BIC: Tensor,
    text_row_N: Tensor,
    image_row_N: Tensor,
    first: int,
) -> Tensor:
    """ITM scores of pairs named by their text and image row in the batch, (N, 2)."""
    # index_select, because the gradient of plain indexing adds up in no fixed order.
    text_row_N, image_row_N = text_row_N.to(x_BLD.device), image_row_N.to(x_BLD.device)
    enc_ND = model.multimodal(
        model.text,
        x_BLD.index_select(0, text_row_N),
        attend_BL.index_select(0, text_row_N),
        [part.index_select(0, image_row_N) for part in model.multimodal.keys_values(image_BIC)],
        first=first,
    )
    return model.itm_head(enc_ND)


def pair_auc(score_N: Tensor, matched_N: Tensor) -> float:
    """Chance that a matched pair scores above a mismatched one; ties count half, NaN if none."""
    rank_N = rankdata(score_N.float().cpu().numpy())
    matched = matched_N.cpu().numpy().astype(bool)
    positives, negatives = int(matched.sum()), int((~matched).sum())
    if not positives or not negatives:
        return float("nan")
    return float(
        (rank_N[matched].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    )


def product_groups(products: pl.DataFrame, texts: Sequence[str] | None = None) -> NDArray[np.int64]:
    """Number the groups of products that must not be each other's negatives.

    Products share a group if their ``group_id`` is equal, if their text is equal, or through a
    chain of both.

    Args:
        products: [group_id].
        texts: The products' texts, for image-text contrast: an image cannot tell which of two
            equal titles is its own. None leaves them out, for contrast with queries: products of
            one title may differ in what their images show.

    Returns:
        A code per product, shape (P,).
    """
    count = len(products)
    keys: list[list[str | None]] = []
    if texts is not None:
        keys.append([text.lower() or None for text in texts])
    if "group_id" in products.columns:
        keys.append(products["group_id"].cast(pl.String).to_list())
    edges: list[tuple[int, int]] = []
    for column in keys:
        first_row: dict[str, int] = {}
        for row, key in enumerate(column):
            if key is not None:
                edges.append((row, first_row.setdefault(key, row)))
    row_E, other_E = np.array(edges, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(row_E), np.int8), (row_E, other_E)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def refuse_one_group(group_N: NDArray[np.int64]) -> None:
    """Raise if there are no two groups to contrast."""
    if len(np.unique(group_N)) < 2:
        raise ValueError(
            f"all {len(group_N)} products with image and text are one group, so there are no "
            "negatives; are group_id and the titles filled in correctly?"
        )


def finished_stage(out: str | Path | None, run: dict[str, object]) -> DashClip | None:
    """Return the model in ``out`` if the very same run made it, None if there is nothing.

    Raises:
        ValueError: If ``out`` holds the model of another run.
    """
    record = checkpoint.read_record(Path(out)) if out is not None else None
    if out is None or record is None:
        return None
    wanted = json.loads(json.dumps(run))
    if record["run"] != wanted:
        differing = sorted(key for key in wanted if record["run"].get(key) != wanted[key])
        raise ValueError(
            f"{out} holds a model of another run (different: {', '.join(differing)}); name "
            "another folder, or remove it to train again"
        )
    return DashClip.load(out)


def digest_of(*parts: object) -> str:
    """SHA-256 over arrays and lists of texts, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(json.dumps(part).encode())
    return digest.hexdigest()


def _batches_of_several_groups(
    group_N: Tensor, batch: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Shuffled batches without those that hold one group only, which have no negatives."""
    for row_B in shuffled_batches(len(group_N), batch, generator):
        if bool((group_N[row_B] != group_N[row_B[0]]).any()):
            yield row_B
