"""The figures of a page: those that a run stored, those drawn from its records, their budget."""

from __future__ import annotations

import base64

import markupsafe

from experiments.comparison import Comparison, VariantResult
from experiments.exchange_figure import exchange_figure
from experiments.figures import training_curves
from experiments.forest import ForestRow, Interval, variant_forest
from experiments.headline import best_variant
from experiments.inline_svg import inline_svg
from experiments.report_ab import DrawnFigure, ab_figures
from experiments.report_content import FigureImage, ReportContent
from experiments.slice_comparison import SliceResult

LARGEST_FIGURE_BYTES = 1_500_000
LARGEST_FIGURES_BYTES = 4_000_000
"""All figures of a page together."""

EXCHANGED = ("recall@10", "auc_2v1")
"""Embedding metrics whose exchange rate is drawn; the others stand in the table."""
EXCHANGE_NAMES = {
    "recall@10": "recall@10",
    "ndcg@10": "nDCG@10",
    "auc_2v0": "AUC 2 v 0",
    "auc_2v1": "AUC 2 v 1",
}


def page_figures(content: ReportContent) -> tuple[FigureImage, ...]:
    """Return the stored figures and, of those that records suffice for, the missing ones."""
    drawn = (
        FigureImage(name=one.name, title=one.title, caption=one.caption, image=one.draw())
        for one in _drawn(content)
        if content.figure(one.name) is None
    )
    return (*content.figures, *drawn)


def figure_markup(figures: tuple[FigureImage, ...]) -> dict[str, markupsafe.Markup]:
    """Return each figure as markup.

    A figure that is too large for the page gives its place to a sentence that says so.

    Raises:
        ValueError: If a figure is no drawing (see ``inline_svg``).
    """
    markup: dict[str, markupsafe.Markup] = {}
    left = LARGEST_FIGURES_BYTES
    for figure in figures:
        size = len(figure.image) if figure.is_svg else len(figure.image) * 4 // 3
        if size > min(LARGEST_FIGURE_BYTES, left):
            sentence = markupsafe.escape(
                f"{figure.title}: {size / 1e6:.1f} MB are too many for this page; see the file "
                f"figures/{figure.name} of the run."
            )
            markup[figure.name] = markupsafe.Markup(f'<p class="absent">{sentence}</p>')
            continue
        left -= size
        markup[figure.name] = _image(figure)
    return markup


def _image(figure: FigureImage) -> markupsafe.Markup:
    if figure.is_svg:
        # Parsed, checked and written anew by inline_svg, text escaped.
        return markupsafe.Markup(inline_svg(figure.image, prefix=figure.name, label=figure.title))
    data = base64.b64encode(figure.image).decode("ascii")
    label = markupsafe.escape(figure.title)
    return markupsafe.Markup(f'<img alt="{label}" src="data:image/png;base64,{data}">')


def _drawn(content: ReportContent) -> list[DrawnFigure]:
    figures = ab_figures(content)
    comparison = content.comparison
    if comparison is not None and len(comparison.rows) > 1:
        figures.append(
            DrawnFigure(
                name="variants",
                title="Differences in AUC with their intervals",
                caption="",
                draw=lambda: _draw_variants(comparison),
            )
        )
        figures += _slices(comparison)
        if any(rate.measure in EXCHANGED for rate in comparison.exchange):
            figures.append(
                DrawnFigure(
                    name="exchange",
                    title="Click AUC over the quality of the vectors",
                    caption="Each mark is the same click model fed with other vectors; crosses are "
                    "placebos.",
                    draw=lambda: exchange_figure(comparison, EXCHANGED, EXCHANGE_NAMES),
                )
            )
    if curves := content.training.curves:
        figures.append(
            DrawnFigure(
                name="training",
                title="Training curves",
                caption="",
                draw=lambda: training_curves(curves),
            )
        )
    return figures


def _draw_variants(comparison: Comparison) -> bytes:
    set_apart = [row for row in comparison.rows if row not in comparison.candidates]
    rows = [
        _forest_row(row.name, row, placebo=row.name in comparison.controls)
        for row in (*set_apart, *comparison.candidates)
        if row.name != comparison.baseline
    ]
    return variant_forest(
        rows,
        baseline=comparison.baseline,
        placebo=comparison.placebo,
        confidence=comparison.confidence,
    )


def _slices(comparison: Comparison) -> list[DrawnFigure]:
    """The best variant on each part of the test impressions that could be compared."""
    best = best_variant(comparison)
    rows = [
        _forest_row(f"{part.slice.replace('_', ' ')} ({part.clicks:,} clicks)", part)
        for part in comparison.slices
        if best is not None and part.variant == best.name and part.delta_auc is not None
    ]
    if best is None or not rows:
        return []
    figure = DrawnFigure(
        name="slices",
        title=f"{best.name} on parts of the test impressions",
        caption=f"{best.name} on each part. The intervals stand alone: with this many, one in "
        "twenty misses by chance.",
        draw=lambda: variant_forest(
            rows,
            baseline=comparison.baseline,
            placebo=comparison.placebo,
            confidence=comparison.confidence,
            adjusted="",
        ),
    )
    return [figure]


def _forest_row(name: str, row: VariantResult | SliceResult, *, placebo: bool = False) -> ForestRow:
    assert row.delta_auc is not None
    assert row.delta_auc_low is not None and row.delta_auc_high is not None
    against_placebo = None
    if row.delta_placebo is not None:
        assert row.delta_placebo_low is not None and row.delta_placebo_high is not None
        against_placebo = Interval(
            value=row.delta_placebo, low=row.delta_placebo_low, high=row.delta_placebo_high
        )
    return ForestRow(
        name=name,
        against_baseline=Interval(
            value=row.delta_auc, low=row.delta_auc_low, high=row.delta_auc_high
        ),
        against_placebo=against_placebo,
        is_placebo=placebo,
    )
