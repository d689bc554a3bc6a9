"""What a run leaves for its readers: figures, curves, costs, notes and the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from embeddings.evaluate import figure_data
from embeddings.relevance_split import split_relevance
from experiments.category_map import category_map
from experiments.figures import Curve, calibration_figure, figure_4, figure_5
from experiments.headline import best_variant
from experiments.leak_checks import LEAK_CHECKS, check_leaks
from experiments.model_figure import figure_3
from experiments.model_shape import read_model_shape
from experiments.records import write_json
from experiments.repeat_command import repeat_command
from experiments.report import write_report
from experiments.report_content import (
    NOTES,
    SCORED_TOGETHER,
    TRAINING,
    Cost,
    Notes,
    TrainingRecord,
    curve_of_history,
    write_figure,
)
from experiments.training import limited_threads
from experiments.variants import CONTROLS, VectorSource
from ranking.calibration import reliability_curve

if TYPE_CHECKING:
    from experiments.pipeline import Run, RunResult
    from experiments.training import Trained

TrainedByName = Mapping[str, "list[Trained]"]

REPEATS = 20
"""Requests scored to take the median time of one."""


def write_run_report(line: Run, trained: TrainedByName, result: RunResult) -> None:
    """Draw the figures that need models or vectors, write a run's records and its page.

    What the records suffice for is drawn when the page is made.
    """
    folder = line.folder.path
    record = TrainingRecord(curves=_curves(line, trained), costs=_costs(line, trained))
    write_json(folder / TRAINING, record)
    leaks = check_leaks(line.dataset, line.built.arrays if line.built else line.split)
    write_json(folder / LEAK_CHECKS, [check.model_dump() for check in leaks])
    for draw in (_figure_3, _figure_4, _figure_5, _calibration):
        draw(line, trained, result)
    write_json(folder / NOTES, _notes(line, trained, result))
    write_report(folder)


def _figure_3(line: Run, trained: TrainedByName, result: RunResult) -> None:
    towers = [name for name, seeds in trained.items() if seeds[0].variant.model == "tower"]
    best = best_variant(result.comparison)
    wanted = [best.name] if best is not None else []
    wanted += [line.config.ab.treatment, *reversed(towers)]
    name = next((name for name in wanted if name in towers), None)
    if name is None:
        line.left_out["figure_3"] = "no click network was trained, only other kinds of models"
        return
    write_figure(
        line.folder.path,
        "figure_3",
        figure_3(read_model_shape(trained[name][0].folder / "model")),
        title=f"Figure 3: the click network of {name}",
        caption=f"The network of {name}, first seed, read from its stored weights. From top to "
        "bottom: what is known of an impression, the towers, the layers over both, the logit.",
    )


def _figure_4(line: Run, trained: TrainedByName, result: RunResult) -> None:
    products = line.dataset.table("products") if line.dataset.has("products") else None
    shown = _shown_sources(trained)
    if not shown or products is None or "category" not in products.columns:
        line.left_out["figure_4"] = "the map of products needs vectors and a category column"
        return
    categories = products["category"].to_list()
    try:
        maps = [
            category_map(
                name, line.vectors.stores(source)[0].vectors_VD, categories, seed=line.config.seed
            )
            for name, source in shown.items()
        ]
    except ValueError as error:
        line.left_out["figure_4"] = str(error)
        return
    write_figure(
        line.folder.path,
        "figure_4",
        figure_4(maps),
        title="Figure 4: products of the ten most frequent categories",
        caption="t-SNE of the product vectors; the silhouette is measured in the original space.",
    )


def _figure_5(line: Run, trained: TrainedByName, result: RunResult) -> None:
    shown = _shown_sources(trained)
    if not shown or not line.dataset.has("relevance"):
        line.left_out["figure_5"] = "cosines by relevance class need vectors and a relevance table"
        return
    _, test_pairs = split_relevance(line.dataset.table("relevance"), line.dataset.table("queries"))
    cosines = {
        name: figure_data(*line.vectors.stores(source), test_pairs)
        for name, source in shown.items()
    }
    write_figure(
        line.folder.path,
        "figure_5",
        figure_5(cosines),
        title="Figure 5: cosine of query and product by relevance class",
        caption="Pairs of held-out queries, which no stage saw. The further apart the classes, "
        "the more the cosine tells a click model.",
    )


def _calibration(line: Run, trained: TrainedByName, result: RunResult) -> None:
    label_N = line.parts.test.label_N
    assert label_N is not None
    curves = {
        name: reliability_curve(label_N, seeds[0].p_test_N, bins=12)
        for name, seeds in trained.items()
        if name not in CONTROLS
    }
    write_figure(
        line.folder.path,
        "calibration",
        calibration_figure(dict(list(curves.items())[:6])),
        title="Calibration",
        caption="Observed against predicted click rate on test rows, in bins of equal size; on the "
        "diagonal, pCTR means what it says.",
    )


def _shown_sources(trained: TrainedByName) -> dict[str, VectorSource]:
    """The two kinds of vectors that Figures 4 and 5 set side by side, those there are."""
    used = {seeds[0].variant.vectors for seeds in trained.values()}
    wanted: tuple[VectorSource, ...] = ("off_the_shelf", "dashclip")
    return {source.replace("_", " "): source for source in wanted if source in used}


def _curves(line: Run, trained: TrainedByName) -> tuple[Curve, ...]:
    curves: list[Curve | None] = []
    labels = {"stage1": "Stage 1: image and text", "stage2": "Stage 2: products and queries"}
    for stage, history in line.vectors.histories().items():
        names = [n for n in ("itc", "itm", "pqc", "graded") if n in history]
        for name in names:
            rows = [{"loss": value} for value in history[name]]
            curves.append(curve_of_history(labels.get(stage, stage), name, rows))
    for name, seeds in trained.items():
        curves.append(
            curve_of_history(
                "Click models: validation",
                name,
                seeds[0].curve,
                x="epoch",
                y="validation_log_loss_nats",
                y_label="log loss (nats)",
            )
        )
    return tuple(curve for curve in curves if curve is not None)


def _costs(line: Run, trained: TrainedByName) -> tuple[Cost, ...]:
    click_models = (
        Cost(
            what=name,
            seconds=float(np.mean([one.seconds for one in seeds])),
            parameters=seeds[0].parameters,
            peak_bytes=max(one.peak_bytes for one in seeds),
            score_ms=_score_ms(line, seeds[0]),
        )
        for name, seeds in trained.items()
    )
    return (*line.vectors.costs(), *click_models)


def _score_ms(line: Run, trained: Trained) -> float:
    """Median time to score as many rows as a request has candidates, all inputs at hand."""
    model, vectors = trained.model(), line.joined(trained.variant)
    few = line.parts.test.take(slice(0, SCORED_TOGETHER))
    rows = line.pipeline_of(trained.variant).with_cosines(few)
    with limited_threads(line.config.threads):
        # The first calls pay for what is set up once.
        seconds = [_seconds(lambda: model.predict_proba(rows, vectors)) for _ in range(REPEATS + 3)]
    return 1000 * float(np.median(seconds[3:]))


def _seconds(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def _notes(line: Run, trained: TrainedByName, result: RunResult) -> Notes:
    limits = []
    if result.comparison is not None and (leak := result.comparison.leak_warning()):
        limits.append(leak)
    vectors = {seeds[0].variant.vectors: seeds[0].variant for seeds in trained.values()}
    joined = {source: line.joined(variant) for source, variant in vectors.items()}
    fingerprints = {
        f"vectors, {str(source).replace('_', ' ')}": one.fingerprint
        for source, one in joined.items()
        if one is not None
    }
    if line.built is not None:
        fingerprints["built features"] = line.built.arrays.manifest["features"]
    return Notes(
        title=f"What are embeddings worth? {line.dataset.spec.name}",
        command=repeat_command(line.config),
        meanings={variant.name: variant.meaning for variant in line.variants},
        limits=tuple(limits),
        left_out=line.left_out,
        fingerprints=fingerprints,
    )
