"""What a run leaves for its readers: figures, curves, costs, notes and the page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from embeddings.evaluate import figure_data
from embeddings.relevance_split import split_relevance
from experiments.category_map import category_map
from experiments.figures import (
    Curve,
    calibration_figure,
    figure_4,
    figure_5,
    training_curves,
)
from experiments.forest import ForestRow, Interval, LiftRow, ab_forest, variant_forest
from experiments.records import write_json
from experiments.report import write_report
from experiments.report_content import (
    NOTES,
    TRAINING,
    Cost,
    Notes,
    TrainingRecord,
    curve_of_history,
    write_figure,
)
from experiments.variants import CONTROLS, VectorSource
from ranking.calibration import reliability_curve

if TYPE_CHECKING:
    from experiments.pipeline import Run, RunResult
    from experiments.training import Trained

TrainedByName = Mapping[str, "list[Trained]"]

AB_NAMES = {"ctr": "CTR", "cvr": "CVR", "rpm": "revenue per mille"}


def write_run_report(line: Run, trained: TrainedByName, result: RunResult) -> None:
    """Draw the figures of a run, write its records and its page."""
    curves = _curves(line, trained)
    write_json(
        line.folder.path / TRAINING, TrainingRecord(curves=curves, costs=_costs(line, trained))
    )
    for draw in (_forest, _ab_forest, _figure_4, _figure_5, _calibration):
        draw(line, trained, result)
    if curves:
        write_figure(
            line.folder.path,
            "training",
            training_curves(curves),
            title="Training",
            caption="Loss by step of the embedding stages, and validation log loss of each click "
            "model by epoch (first seed).",
        )
    write_json(line.folder.path / NOTES, _notes(line, result))
    write_report(line.folder.path)


def _forest(line: Run, trained: TrainedByName, result: RunResult) -> None:
    comparison = result.comparison
    if comparison is None:
        return
    rows = [
        ForestRow(
            name=row.name,
            against_baseline=_interval(row.delta_auc, row.delta_auc_low, row.delta_auc_high),
            against_placebo=None
            if row.delta_placebo is None
            or row.delta_placebo_low is None
            or row.delta_placebo_high is None
            else _interval(row.delta_placebo, row.delta_placebo_low, row.delta_placebo_high),
            is_placebo=row.name in CONTROLS,
        )
        for row in comparison.rows
        if row.name != comparison.baseline
    ]
    image = variant_forest(
        rows,
        baseline=comparison.baseline,
        placebo=comparison.placebo,
        confidence=comparison.confidence,
    )
    write_figure(
        line.folder.path,
        "variants",
        image,
        title="What each variant is worth",
        caption="Difference in test AUC with user-clustered intervals, Holm-corrected over the "
        "set. A vector is worth shipping if it clears zero in both panels.",
    )


def _ab_forest(line: Run, trained: TrainedByName, result: RunResult) -> None:
    if result.ab is None:
        return
    rows = [
        LiftRow(
            name=AB_NAMES.get(lift.name, lift.name),
            lift=_interval(lift.lift, lift.low, lift.high),
            true=lift.true,
        )
        for lift in result.ab.lifts.values()
    ]
    image = ab_forest(
        rows,
        control=line.config.ab.control,
        treatment=line.config.ab.treatment,
        confidence=result.ab.confidence,
    )
    write_figure(
        line.folder.path,
        "ab",
        image,
        title="Simulated A/B test",
        caption="Relative lift with user-level intervals; the true lift is what both rankings of "
        "all requests would have earned in expectation.",
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


def _interval(value: float, low: float, high: float) -> Interval:
    return Interval(value=value, low=low, high=high)


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
        )
        for name, seeds in trained.items()
    )
    return (*line.vectors.costs(), *click_models)


def _notes(line: Run, result: RunResult) -> Notes:
    config = line.config
    command = ["adtower", "run", "--data", str(config.data), "--out", str(config.out)]
    command += ["--seed", str(config.seed), "--seeds", str(config.seeds)]
    if config.variants is not None:
        command += ["--variants", *config.variants]
    limits = []
    if result.comparison is not None and (leak := result.comparison.leak_warning()):
        limits.append(leak)
    return Notes(
        title=f"What are embeddings worth? {line.dataset.spec.name}",
        command=shlex.join(command),
        meanings={variant.name: variant.meaning for variant in line.variants},
        limits=tuple(limits),
        left_out=line.left_out,
    )
