"""Claims on real photos: stage 1 on a grocery shop's pictures and on a fashion catalogue.

Shape letters: N photos, K classes or candidates, D embedding size, P products.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from embeddings.baselines import off_the_shelf_products
from embeddings.cross_modal import linear_probe_f1, recall_at, retrieval_ranks
from embeddings.model import DashClip
from embeddings.stage1 import train_stage1
from embeddings.stage1_config import Stage1Config
from embeddings.view_config import ViewConfig
from experiments.importers import import_fashion
from experiments.progress import Progress, Silent
from experiments.records import write_json, write_metrics
from features.dataset import Dataset

GROCERY = Stage1Config(
    max_text_tokens=96,
    trainable_text_layers=0,
    fusion_layers=1,
    image_px=112,
    source_px=144,
    patch_px=16,
    stem_blocks=(0, 0, 1, 1),
    image_width=192,
    image_layers=2,
    image_views="crops",
    views=ViewConfig(
        min_scale=0.3,
        aspect=1.35,
        rotation_degrees=30.0,
        outside="reflection",
        horizontal_flip=0.5,
        brightness=0.24,
        contrast=0.4,
        saturation=0.4,
        erase=0.1,
    ),
    small_px=64,
    small_share=0.8,
    objective="all_texts",
    smoothing=0.1,
    cutmix=0.5,
    steps=8000,
    batch=64,
    itm_rows=0,
    learning_rate=7e-4,
    text_learning_rate=7e-4,
    weight_decay=0.3,
    warmup_steps=300,
    momentum=0.998,
    final_weights="momentum",
)
"""Thirteen minutes on two cores; chosen on the validation photos."""

HELD_OUT_SHARE = 14
"""The training without the held-out products takes one in so many of the steps."""

FASHION = Stage1Config(
    max_text_tokens=24,
    image_px=64,
    stem_blocks=(),
    image_width=192,
    image_layers=2,
    steps=900,
    batch=128,
    learning_rate=5e-4,
    warmup_steps=100,
    momentum=0.99,
    final_weights="momentum",
)
"""Five minutes on two cores."""

HELD_CLASSES = 16
"""Grocery products that the second training never sees."""
CANDIDATES = 2000
"""Fashion products among which an image looks for its title."""
MIN_CATEGORY_ROWS = 10
BINS = 8
"""Steps of each colour in the histogram baseline."""

Figures = dict[str, float]


def reproduce_grocery(
    source: Path,
    out: Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    config: Stage1Config = GROCERY,
    progress: Progress | None = None,
) -> Figures:
    """Find the product in a shop's photo, trained on that shop's photos and texts alone.

    Stage 1 sees the training photos of the Grocery Store Dataset with the descriptions of their 81
    products. A test photo then looks for its product among the 81 texts. A second training leaves
    16 products out, whose photos look for their text among the 16 and among all 81.

    Args:
        source: Folder with grocery_store/ (classes, descriptions, natural_images_160).
        out: Folder of the run; an interrupted one goes on.
        seed: Of training.
        overwrite: Begin anew.
        config: Of stage 1.
        progress: Told of the stages.

    Returns:
        ``test.r1`` and ``test.r5`` (also ``val.``), ``test.colour_histogram.r1``,
        ``held_out.r1_among_themselves``, ``held_out.r1_among_all``, ``train_seconds``.

    Raises:
        ValueError: If the data is not there, or ``out`` holds another run.
    """
    progress = progress or Silent()
    photos, classes = read_grocery(Path(source))
    _begin(out, overwrite=overwrite)
    train = photos.filter(pl.col("split") == "train")
    began = time.monotonic()
    model = _trained(train, config, out / "model", seed, progress)
    metrics: Figures = {"train_seconds": time.monotonic() - began}
    for split in ("val", "test"):
        rows = photos.filter(pl.col("split") == split)
        recalls = recall_at(photo_ranks(model, rows, classes), (1, 5))
        metrics |= {f"{split}.{name}": value for name, value in recalls.items()}
    with progress.stage("colour histogram"):
        test = photos.filter(pl.col("split") == "test")
        metrics["test.colour_histogram.r1"] = colour_histogram_accuracy(train, test)
    held = held_classes(classes)
    seen = pl.col("group_id").is_in(held).not_()
    shorter = config.model_copy(update={"steps": max(1, config.steps // HELD_OUT_SHARE)})
    fewer = _trained(train.filter(seen), shorter, out / "model_held_out", seed, progress)
    unseen = photos.filter(~seen & (pl.col("split") == "test"))
    few = classes.filter(~seen)
    for name, among in (("themselves", few), ("all", classes)):
        rank_N = photo_ranks(fewer, unseen, among)
        metrics[f"held_out.r1_among_{name}"] = float((rank_N <= 1).mean())
    metrics["held_out.photos"] = float(len(unseen))
    return _finish(out, metrics, {"name": "grocery", "seed": seed, "config": config})


def reproduce_fashion(
    source: Path,
    out: Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    config: Stage1Config = FASHION,
    progress: Progress | None = None,
) -> Figures:
    """Find the title of a picture among 2,000, and the article type in the vectors.

    A fifth of the titles is held out with all their products. Vectors of held-out products are
    judged beside those of the frozen text encoder, TF-IDF and random ones.

    Args:
        source: Folder with fashion44k/ (products, images).
        out: Folder of the run; an interrupted one goes on.
        seed: Of training.
        overwrite: Begin anew.
        config: Of stage 1.
        progress: Told of the stages.

    Returns:
        ``test.r1`` and ``test.r10`` (image to text), ``test.text_to_image.r1`` and ``.r10``, and
        ``NAME.article_type_f1`` for image, text, multimodal, off_the_shelf, tfidf, random.

    Raises:
        ValueError: If the data is not there, or ``out`` holds another run.
    """
    progress = progress or Silent()
    folder = Path(source) / "fashion44k"
    if not folder.is_dir():
        raise ValueError(f"{source} has no folder fashion44k with products.parquet and images")
    _begin(out, overwrite=overwrite)
    with progress.stage("importing fashion"):
        data = out / "data"
        if not (data / "dataset.toml").is_file():
            import_fashion(folder, data, overwrite=True)
        products = Dataset.open(data).table("products")
    held = pl.col("group_id").map_elements(lambda key: _tenth(key) < 2, return_dtype=pl.Boolean)
    train, test = products.filter(~held), products.filter(held)
    began = time.monotonic()
    model = _trained(train, config, out / "model", seed, progress)
    metrics: Figures = {"train_seconds": time.monotonic() - began}
    one_each = test.filter(pl.col("image").is_not_null() & (pl.col("title").str.len_chars() > 0))
    one_each = one_each.unique("group_id", keep="first", maintain_order=True)
    one_each = one_each.sort(pl.col("product_id").hash(seed=0)).head(CANDIDATES)
    image_ND, text_ND = (model.embed_products(one_each, mode) for mode in ("image", "text"))
    group_N = np.arange(len(one_each))
    for name, (left, right) in {
        "test": (image_ND, text_ND),
        "test.text_to_image": (text_ND, image_ND),
    }.items():
        recalls = recall_at(retrieval_ranks(left, right, group_N, group_N), (1, 10))
        metrics |= {f"{name}.{key}": value for key, value in recalls.items()}
    with progress.stage("article types"):
        metrics |= article_type_f1(model, test, seed)
    metrics["test.candidates"], metrics["test.products"] = float(len(one_each)), float(len(test))
    return _finish(out, metrics, {"name": "fashion", "seed": seed, "config": config})


def read_grocery(source: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read photos and products of the Grocery Store Dataset.

    Returns:
        Photos (product_id, title, image, group_id, split) and the 81 products (product_id, title,
        group_id); the title is the product's name, its kind and its description.

    Raises:
        ValueError: If a file is missing.
    """
    folder = source / "grocery_store"
    names = ("classes", "descriptions", "natural_images_160")
    missing = [name for name in names if not (folder / f"{name}.parquet").is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(f'{name}.parquet' for name in missing)}")
    table, described, photos = (pl.read_parquet(folder / f"{name}.parquet") for name in names)
    described = described.select(
        pl.col("path").str.strip_prefix("dataset").alias("Product Description Path (str)"),
        "description",
    )
    name = pl.col("Class Name (str)").str.replace_all("-", " ")
    kind = pl.col("Coarse Class Name (str)").str.replace_all("-", " ")
    classes = table.join(
        described, on="Product Description Path (str)", how="left", maintain_order="left"
    ).select(
        pl.format("class-{}", "Class ID (int)").alias("product_id"),
        pl.format("{}, {}. {}", name, kind, pl.col("description").fill_null("")).alias("title"),
        pl.col("Class ID (int)").cast(pl.String).alias("group_id"),
    )
    photos = photos.select(
        pl.col("path").alias("product_id"),
        pl.col("jpeg").alias("image"),
        pl.col("fine_id").cast(pl.String).alias("group_id"),
        "split",
    ).join(classes.select("group_id", "title"), on="group_id", how="left", maintain_order="left")
    return photos, classes


def held_classes(classes: pl.DataFrame) -> list[str]:
    """The products that the second training does not see: the first by a hash of their title."""
    keyed = sorted(
        classes.select("title", "group_id").rows(),
        key=lambda row: hashlib.md5(row[0].encode()).hexdigest(),
    )
    return [group for _, group in keyed[:HELD_CLASSES]]


def photo_ranks(
    model: DashClip, photos: pl.DataFrame, classes: pl.DataFrame
) -> NDArray[np.float64]:
    """Rank of each photo's product among the products' texts, (N,)."""
    return retrieval_ranks(
        model.embed_products(photos, "image"),
        model.embed_products(classes, "text"),
        photos["group_id"].cast(pl.Int64).to_numpy(),
        classes["group_id"].cast(pl.Int64).to_numpy(),
    )


def colour_histogram_accuracy(train: pl.DataFrame, test: pl.DataFrame) -> float:
    """Accuracy of logistic regression on joint colour histograms: what colour alone tells."""
    model = LogisticRegression(C=10.0, max_iter=300)
    model.fit(_histograms(train), train["group_id"].to_numpy())
    return float(np.mean(model.predict(_histograms(test)) == test["group_id"].to_numpy()))


def article_type_f1(model: DashClip, products: pl.DataFrame, seed: int) -> Figures:
    """Macro-F1 of a linear probe for the article type, for each kind of vector."""
    rows = products.filter(pl.len().over("category") >= MIN_CATEGORY_ROWS)
    category = rows["category"].cast(pl.String).to_numpy()
    held_P = np.array([_tenth(f"probe {key}") < 3 for key in rows["group_id"].to_list()], bool)
    titles = rows["title"].fill_null("").to_list()
    words: Any = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+").fit_transform(titles)
    random_PD = np.random.default_rng(seed).standard_normal((len(rows), model.dim))
    vectors: dict[str, NDArray[np.floating] | csr_array] = {
        "image": model.embed_products(rows, "image"),
        "text": model.embed_products(rows, "text"),
        "multimodal": model.embed_products(rows, "multimodal"),
        "off_the_shelf": np.asarray(off_the_shelf_products(rows).vectors_VD),
        "tfidf": csr_array(words),
        "random": random_PD,
    }
    return {
        f"{name}.article_type_f1": linear_probe_f1(vector, category, held_P)
        for name, vector in vectors.items()
    }


def _trained(
    products: pl.DataFrame, config: Stage1Config, out: Path, seed: int, progress: Progress
) -> DashClip:
    return train_stage1(products, config, seed=seed, out=out, progress=progress.steps)


def _histograms(photos: pl.DataFrame) -> NDArray[np.float64]:
    rows = []
    for content in photos["image"].to_list():
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB").resize((64, 64)))
        code = (pixels // (256 // BINS)).reshape(-1, 3).astype(np.int64)
        joint = code @ np.array([BINS * BINS, BINS, 1])
        rows.append(np.bincount(joint, minlength=BINS**3) / len(joint))
    return np.sqrt(np.array(rows))


def _begin(out: Path, *, overwrite: bool) -> None:
    if (out / "metrics.json").is_file() and not overwrite:
        raise ValueError(
            f"{out} holds a finished run; choose another --out, or pass --overwrite to replace it"
        )
    if overwrite:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)


def _finish(out: Path, metrics: Figures, made_with: dict[str, Any]) -> Figures:
    config = made_with.pop("config")
    write_json(out / "config.json", {**made_with, "stage1": config.model_dump(mode="json")})
    write_metrics(out / "metrics.json", metrics)
    return metrics


def _tenth(key: str) -> int:
    return int(hashlib.md5(str(key).encode()).hexdigest(), 16) % 10
