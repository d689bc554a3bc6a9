"""Stage 1: image and text of the same product are drawn together (ITC) and told apart from
mismatched pairs (ITM). No query and no click anywhere.

Shape letters: P products, N of them that train, B rows of a batch, S pixels a side.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl

from embeddings.image_encoder import ImageShape
from embeddings.image_text_batches import TrainingData
from embeddings.image_text_training import ImageTextTraining
from embeddings.images import decode_images
from embeddings.model import DashClip
from embeddings.product_groups import product_groups, refuse_one_group
from embeddings.ranks import Ranks
from embeddings.schedule import generator_at
from embeddings.stage1_config import Stage1Config
from embeddings.stages import Progress, digest_of, finished_stage
from embeddings.text import product_texts
from embeddings.weights import ResolvedWeights, find_image_weights, find_text_weights


def train_stage1(
    products: pl.DataFrame,
    config: Stage1Config | None = None,
    *,
    seed: int,
    out: str | Path | None = None,
    image_root: str | Path | None = None,
    image_cache: str | Path | None = None,
    progress: Progress | None = None,
) -> DashClip:
    """Pre-train the encoders on a catalogue.

    Products with an image and a text are contrasted side by side. A product that lacks one is
    contrasted with its like by two views of what it has. A catalogue of texts alone returns the
    model as it begins (pretrained text, no training), with an empty history.

    Under torchrun every rank calls this with the same arguments and gets the same model; the
    first one writes it.

    Args:
        products: product_id, the text columns, [image], [group_id].
        config: Settings; the defaults if None.
        seed: Decides initial weights, batches, views and negatives.
        out: Folder for the trained model. If it already holds one from the same products,
            settings and seed, that one is returned and nothing is trained. An interrupted run
            leaves its state beside it, and the same call goes on from there to the same bits.
        image_root: Folder that relative image paths start from.
        image_cache: File that keeps the decoded images between runs; see ``decode_images``.
        progress: Called after every step.

    Raises:
        ValueError: If the table is empty, an image cannot be decoded, only one product has both
            modalities, all are one group, the loss becomes NaN, training has collapsed, or
            ``out`` holds another model.
    """
    config = config or Stage1Config()
    ranks = Ranks.current()
    if not len(products):
        raise ValueError("the products table is empty; stage 1 needs a catalogue")
    pretrained = config.require_pretrained
    text_weights = find_text_weights(config.text_weights, require_pretrained=pretrained)
    image_weights = find_image_weights(config.image_weights, require_pretrained=pretrained)
    images = decode_images(
        products,
        config.source_px or config.image_px,
        image_root=image_root,
        cache=image_cache,
        progress=progress,
    )
    texts = product_texts(products, config.text_columns)
    group_P = product_groups(products, texts)
    run = {
        "stage": 1,
        "seed": seed,
        "config": config.model_dump(mode="json"),
        "weights_sha256": text_weights.sha256,
        "image_weights_sha256": image_weights.sha256,
        "data": digest_of(texts, group_P, images.pixel_PSS3, images.present_P),
    }
    finished = finished_stage(out, run)
    if ranks.agree(int(finished is not None)):
        return finished if finished is not None else DashClip.load(Path(str(out)))
    model = _initial_model(config, text_weights, image_weights, seed).to(ranks.device)
    data = TrainingData.of(products["product_id"].to_list(), texts, images, group_P)
    state = None if out is None else _state_folder(Path(out))
    if len(data):
        refuse_one_group(data.group_N.numpy())
        training = ImageTextTraining(config, model, data, seed, ranks)
        model.history["stage1"] = training.run(run, state, progress)
        run = {**run, "arithmetic": training.arithmetic}
    model.stage, model.run = 1, run
    if out is not None and ranks.rank == 0:
        model.save_(out)
        shutil.rmtree(_state_folder(Path(out)), ignore_errors=True)
    # The others wait, so that they find the model where they were told it would be.
    ranks.agree(0)
    return model


def _initial_model(
    config: Stage1Config, text: ResolvedWeights, image: ResolvedWeights, seed: int
) -> DashClip:
    shape = ImageShape(
        pixels=config.image_px,
        patch=config.patch_px,
        width=config.image_width,
        layers=config.image_layers,
        heads=config.image_heads,
        stem_blocks=_blocks_after_halvings(config),
    )
    return DashClip.initial(
        text,
        image=shape,
        image_weights=image,
        fusion_layers=config.fusion_layers,
        trainable_text_layers=config.trainable_text_layers,
        trainable_image_layers=config.trainable_image_layers,
        image_views=config.image_views,
        embedding_dim=config.embedding_dim,
        text_columns=config.text_columns,
        max_text_tokens=config.max_text_tokens,
        max_query_tokens=config.max_query_tokens,
        generator=generator_at(seed, "weights", 0),
    )


def _blocks_after_halvings(config: Stage1Config) -> tuple[int, ...]:
    if config.stem_blocks is not None:
        return config.stem_blocks
    halvings = config.patch_px.bit_length() - 1
    return (0, *(1 for _ in range(halvings - 1)))


def _state_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}-training")
