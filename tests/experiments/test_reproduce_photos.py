"""Claims on photos are repeated by one command, from the published files to figures."""

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from embeddings.stage1_config import Stage1Config
from experiments.records import read_metrics
from experiments.reproduce_photos import (
    HELD_CLASSES,
    colour_histogram_accuracy,
    held_classes,
    read_grocery,
    reproduce_fashion,
    reproduce_grocery,
)

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
TINY = Stage1Config(
    text_weights="random",
    image_px=16,
    image_width=16,
    image_heads=2,
    max_text_tokens=24,
    embedding_dim=16,
    steps=4,
    batch=16,
    warmup_steps=1,
)


def jpeg(colour, seed):
    noise = np.random.default_rng(seed).normal(0, 10, (20, 20, 3))
    file = io.BytesIO()
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="module")
def grocery(tmp_path_factory):
    """A folder like shared/data: twenty products of one colour each, six photos a product."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data") / "grocery_store"
    folder.mkdir()
    colours = rng.integers(0, 255, (20, 3))
    pl.DataFrame(
        {
            "Class Name (str)": [f"Fruit-{k}" for k in range(20)],
            "Class ID (int)": list(range(20)),
            "Coarse Class Name (str)": ["Fruit"] * 20,
            "Product Description Path (str)": [f"/texts/{k}.txt" for k in range(20)],
        }
    ).write_parquet(folder / "classes.parquet")
    pl.DataFrame(
        {
            "path": [f"dataset/texts/{k}.txt" for k in range(20)],
            "description": [f"Fruit number {k}." for k in range(20)],
        }
    ).write_parquet(folder / "descriptions.parquet")
    rows = [
        (f"dataset/{split}/{k}/{i}.jpg", split, k, jpeg(colours[k], 100 * k + i))
        for k in range(20)
        for i, split in enumerate(["train"] * 3 + ["val"] + ["test"] * 2)
    ]
    pl.DataFrame(rows, schema=["path", "split", "fine_id", "jpeg"], orient="row").write_parquet(
        folder / "natural_images_160.parquet"
    )
    return folder.parent


def test_the_products_text_is_name_kind_and_description(grocery):
    photos, classes = read_grocery(grocery)
    assert classes["title"][3] == "Fruit 3, Fruit. Fruit number 3."
    assert photos["title"][0] == classes["title"][0]
    assert photos["split"].value_counts().sort("split")["count"].to_list() == [40, 60, 20]


def test_the_grocery_claim_from_files_to_figures(grocery, tmp_path):
    out = tmp_path / "run"
    metrics = reproduce_grocery(grocery, out, config=TINY)
    assert read_metrics(out / "metrics.json") == metrics
    assert {"test.r1", "test.r5", "val.r1", "held_out.r1_among_all"} <= metrics.keys()
    assert metrics["test.r1"] <= metrics["test.r5"]
    # One colour a product: the histogram is nearly always right, the trainer after four steps not.
    assert metrics["test.colour_histogram.r1"] > 0.8
    assert metrics["held_out.photos"] == 2 * HELD_CLASSES
    assert metrics["held_out.r1_among_all"] <= metrics["held_out.r1_among_themselves"]
    with pytest.raises(ValueError, match="holds a finished run"):
        reproduce_grocery(grocery, out, config=TINY)
    again = reproduce_grocery(grocery, out, config=TINY, overwrite=True)
    assert again["test.r1"] == metrics["test.r1"]


def test_photos_of_held_out_products_are_not_trained_on(grocery, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "experiments.reproduce_photos._trained",
        lambda products, *rest: seen.append(products) or pytest.skip.Exception,
    )
    monkeypatch.setattr("experiments.reproduce_photos.photo_ranks", lambda *given: np.ones(2))
    reproduce_grocery(grocery, tmp_path / "run", config=TINY)
    held = held_classes(read_grocery(grocery)[1])
    assert len(held) == HELD_CLASSES
    assert set(seen[0]["split"]) == {"train"}
    assert len(seen[0]) == 60
    assert not set(seen[1]["group_id"]) & set(held)
    assert len(seen[1]) == 3 * (20 - HELD_CLASSES)


def test_a_histogram_tells_colours_apart():
    def photos(seed):
        colours = {"a": (250, 10, 10), "b": (10, 10, 250)}
        rows = [(group, jpeg(c, seed + i)) for i in range(4) for group, c in colours.items()]
        return pl.DataFrame(rows, schema=["group_id", "image"], orient="row")

    assert colour_histogram_accuracy(photos(0), photos(50)) == 1.0


def test_the_fashion_claim_from_files_to_figures(tmp_path):
    colours = {"Shirts": (230, 20, 20), "Jeans": (20, 20, 230), "Hats": (20, 200, 20)}
    rows = [
        (i, f"{maker} {kind} {i // 2}", kind, jpeg(colours[kind], i))
        for i, (maker, kind) in enumerate(
            (maker, kind) for _ in range(40) for maker in ("Ace", "Bee") for kind in colours
        )
    ]
    folder = tmp_path / "data" / "fashion44k"
    folder.mkdir(parents=True)
    table = pl.DataFrame(
        rows, schema=["id", "productDisplayName", "articleType", "jpeg"], orient="row"
    )
    attributes = ("gender", "masterCategory", "subCategory", "baseColour", "season", "usage")
    table.with_columns(pl.lit("x").alias(name) for name in attributes).drop("jpeg").write_parquet(
        folder / "products.parquet"
    )
    table.select("id", "jpeg").write_parquet(folder / "images_60x80.parquet")
    metrics = reproduce_fashion(folder.parent, tmp_path / "run", config=TINY)
    assert read_metrics(tmp_path / "run" / "metrics.json") == metrics
    assert {"test.r1", "test.r10", "test.text_to_image.r1"} <= metrics.keys()
    # The title names the type; random vectors do not.
    assert metrics["tfidf.article_type_f1"] == 1.0
    assert metrics["off_the_shelf.article_type_f1"] > 0.9
    assert metrics["random.article_type_f1"] < 0.7
    assert 20 < metrics["test.products"] < 80


@pytest.mark.parametrize(
    ("claim", "message"),
    [(reproduce_grocery, "lacks classes.parquet"), (reproduce_fashion, "no folder fashion44k")],
)
def test_a_folder_without_the_data_is_refused_and_nothing_is_written(claim, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        claim(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_public_photos_teach_a_small_encoder_something(tmp_path):
    if not (SHARED / "grocery_store").is_dir():
        pytest.skip("no grocery_store in a folder shared/data beside the repository")
    config = TINY.model_copy(update={"image_px": 32, "steps": 200, "batch": 64})
    metrics = reproduce_grocery(SHARED, tmp_path / "run", config=config)
    assert metrics["test.colour_histogram.r1"] > 0.4
    assert metrics["test.r1"] > 0.08
