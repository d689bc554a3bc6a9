"""A run's comparison: its models' predictions, the slices of its test rows, its vectors' metrics.

Shape letters: P products.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from experiments.compare import compare_variants
from experiments.comparison import Comparison
from experiments.records import write_bytes
from experiments.slices import test_slices
from experiments.variants import BASELINE, CONTROLS, Variant
from features.dataset import Dataset

if TYPE_CHECKING:
    from experiments.pipeline import Run
    from experiments.training import Trained

COMPARISON = "comparison.json"


def compare_run(
    line: Run, trained: dict[str, list[Trained]], evaluation: dict[str, dict[str, float]]
) -> Comparison | None:
    """Compare the variants of a run and write ``comparison.json`` to its folder.

    Args:
        line: The run.
        trained: By variant, its models.
        evaluation: By kind of vectors, their metrics.

    Returns:
        None where the baseline, or a second variant, was not trained; ``line.left_out`` says so.
    """
    if BASELINE not in trained or len(trained) < 2:
        line.left_out["comparison"] = (
            f"a comparison needs {BASELINE} and at least one other variant; "
            f"trained were {', '.join(trained)}"
        )
        return None
    test = line.parts.test
    assert test.label_N is not None
    embedding = {
        variant.name: evaluation[variant.vectors]
        for variant in line.variants
        if variant.vectors is not None and variant.vectors in evaluation
    }
    comparison = compare_variants(
        test.label_N,
        test.user_N,
        {name: [one.p_test_N for one in seeds] for name, seeds in trained.items()},
        baseline=BASELINE,
        controls=[name for name in CONTROLS if name in trained],
        confidence=line.config.confidence,
        slices=test_slices(line.parts.train, test, has_image(line)),
        embedding={
            name: {key: value for key, value in measures.items() if np.isfinite(value)}
            for name, measures in embedding.items()
        },
        exchanged=[v.name for v in line.variants if v.name in embedding and _differs_by_vectors(v)],
    )
    write_bytes(line.folder.path / COMPARISON, comparison.to_json().encode())
    return comparison


def has_image(line: Run) -> NDArray[np.bool_] | None:
    """Return whether each product of a run's catalogue has an image, shape (P,); None without."""
    if not _has_images(line.dataset):
        return None
    products = line.dataset.table("products")
    pictured = products.filter(products["image"].is_not_null())["product_id"]
    return np.isin(line.pipeline.product_ids_, pictured.to_numpy())


def _has_images(dataset: Dataset) -> bool:
    return dataset.has("products") and "image" in dataset.column_names("products")


def _differs_by_vectors(variant: Variant) -> bool:
    """Whether the click model is the standard tower, so that only its vectors set it apart."""
    return variant.model == "tower" and variant.derived and not variant.single_tower
