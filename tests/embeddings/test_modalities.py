import numpy as np
import polars as pl
import pytest

from embeddings.images import decode_images
from embeddings.modalities import judge_modalities
from embeddings.stage1 import train_stage1


@pytest.fixture(scope="module")
def model(products, stage1_config):
    return train_stage1(products, stage1_config, seed=0)


def judged(model, products):
    return judge_modalities(model, products, decode_images(products, 16))


def test_each_modality_is_measured_apart(model, products):
    grown = pl.concat(
        [products.with_columns(product_id=pl.col("product_id") + f"-{i}") for i in range(3)]
    )
    figures = judged(model, grown)
    # The colour is the category and in both modalities; the thing is in the title alone.
    assert figures["image.category_f1"] > 0.8
    assert figures["multimodal.category_f1"] > 0.8
    assert figures["image_to_text.r10"] > 10 / 48
    assert figures["image_to_text.r1"] <= figures["image_to_text.r10"]
    assert figures["image.coverage"] == figures["text.coverage"] == 1.0


def test_products_that_lack_a_modality_are_left_out_of_it(model, products):
    third = pl.int_range(pl.len()) % 3 == 0
    bare = products.with_columns(
        image=pl.when(third).then(None).otherwise(pl.col("image")),
    )
    figures = judged(model, bare)
    assert figures["image.coverage"] == pytest.approx(2 / 3)
    assert figures["text.coverage"] == figures["multimodal.coverage"] == 1.0


def test_texts_alone_support_no_retrieval_between_modalities(model, products):
    figures = judged(model, products.drop("image"))
    assert not any("_to_" in name for name in figures)
    assert figures["image.coverage"] == 0
    assert np.isfinite(list(figures.values())).all()
