"""One page that says what the vectors are worth, and everything needed to doubt it.

The page is a single file: styles and figures are inside it, it has no script, and nothing on it
reaches for the network. It is made from the files of a run folder alone (see
``experiments.report_content``), so it can be rendered again at any time.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from experiments.comparison import Comparison, VariantResult
from experiments.figure_style import THEME
from experiments.figures import training_curves
from experiments.forest import ForestRow, Interval, LiftRow, ab_forest, variant_forest
from experiments.headline import (
    LIFT_NAMES,
    ab_sentence,
    arms,
    best_variant,
    headline,
    headroom,
    number,
    tiles,
    verdict_rest,
)
from experiments.inline_svg import inline_svg
from experiments.records import write_bytes
from experiments.report_content import FigureImage, ReportContent, read_report_content

REPORT = "report.html"
LARGEST_FIGURE_BYTES = 1_500_000
LARGEST_PAGE_BYTES = 5_000_000

MEASURE_NAMES = {
    "recall@10": "recall@10",
    "ndcg@10": "nDCG@10",
    "map": "mAP",
    "mrr": "MRR",
    "auc_2v0": "AUC 2 v 0",
    "auc_2v1": "AUC 2 v 1",
    "auc_1v0": "AUC 1 v 0",
    "category_f1": "category macro-F1",
}
"""Measures of the embedding table's first screen, in order; others follow below it."""
EMBEDDING_ORDER = ("random", "shuffled", "tfidf", "bm25", "off_the_shelf", "image_only")
EMBEDDING_ORDER += ("text_only", "stage1", "dashclip")
EMBEDDING_NAMES = {
    "random": "random vectors (placebo)",
    "shuffled": "shuffled vectors (placebo)",
    "tfidf": "TF-IDF",
    "bm25": "BM25",
    "off_the_shelf": "off the shelf, frozen",
}

PLACED = ("variants", "ab", "figure_4", "figure_5", "calibration", "training")
"""Figures that have their place on the page; others follow after them."""
_PARTS = frozenset(
    {"comparison", "ab", "embeddings", "figure_4", "figure_5", "calibration", "training", "oracle"}
)


def write_report(run_folder: Path | str) -> Path:
    """Render a run folder's report anew from the files that lie in it.

    Args:
        run_folder: A finished run.

    Returns:
        The path of ``report.html`` in that folder, replaced as a whole.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a file of the run is damaged or of another version; it is named, and an
            older report stays as it was.
    """
    page = render_report(read_report_content(run_folder))
    path = Path(run_folder) / REPORT
    write_bytes(path, page.encode("utf-8"))
    return path


def render_report(content: ReportContent) -> str:
    """Turn the content of a run into one self-contained HTML page.

    All text is escaped: titles, categories and names come from users' tables.

    Args:
        content: What to show; empty parts are left out with a sentence that says why.

    Returns:
        The page, below 5 MB.

    Raises:
        ValueError: If a figure is no drawing (see ``inline_svg``).
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "auc": lambda value: number(value, "{:.4f}"),
        "signed": lambda value: number(value, "{:+.4f}"),
        "percent": lambda value: number(value, "{:+.1%}"),
        "share": lambda value: number(value, "{:.2%}"),
        "count": lambda value: number(value, "{:,.0f}"),
        "duration": _duration,
        "breakable": _breakable,
        "sentence": lambda text: text if text.endswith((".", "?", "!")) else f"{text}.",
    }
    page = environment.get_template("report.html.j2").render(
        content=content,
        theme=THEME,
        best=best_variant(content.comparison),
        headroom=headroom(content),
        headline=headline(content),
        verdict_rest=verdict_rest(content),
        ab_sentence=ab_sentence(content),
        tiles=tiles(content),
        variant_rows=_variant_rows(content.comparison),
        slices=_slices(content),
        lift_names=LIFT_NAMES,
        arms=arms(content),
        embeddings=_embedding_table(content.embeddings),
        costs=_costs(content),
        settings=json.dumps(content.config, indent=2, ensure_ascii=False),
        figures=_figures(content),
        captions={figure.name: figure.caption for figure in content.figures},
        extra=[figure for figure in content.figures if figure.name not in PLACED],
        missing_variants={
            name: why for name, why in content.notes.left_out.items() if name not in _PARTS
        },
    )
    assert len(page.encode()) < LARGEST_PAGE_BYTES, "the figures' budget should prevent this"
    return page


def _breakable(name: str) -> markupsafe.Markup:
    """A name that narrow columns may break after its underscores."""
    return markupsafe.Markup("_<wbr>").join(name.split("_"))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _variant_rows(comparison: Comparison | None) -> list[dict[str, Any]]:
    """The variant table: baseline, placebos, then candidates from the best down."""
    if comparison is None:
        return []
    set_apart = [row for row in comparison.rows if row not in comparison.candidates]
    rows: list[dict[str, Any]] = []
    for row in (*set_apart, *comparison.candidates):
        placebo = row.name in comparison.controls
        if row.name == comparison.baseline:
            says = "baseline"
        elif placebo:
            says = "placebo"
        elif row.ships:
            says = "above both"
        elif row.below_baseline:
            says = f"below {comparison.baseline}"
        elif row.above_baseline and row.delta_placebo is not None:
            says = "not clearly above the placebo"
        elif row.above_baseline:
            says = f"above {comparison.baseline}, no placebo trained"
        else:
            says = f"not told apart from {comparison.baseline}"
        rows.append({"row": row, "placebo": placebo, "says": says})
    return rows


def _slices(content: ReportContent) -> dict[str, dict[str, float]]:
    """Slice to variant to AUC, from ``VARIANT.slice.SLICE.auc`` of the flat figures."""
    names = [row.name for row in content.comparison.rows] if content.comparison else []
    table: dict[str, dict[str, float]] = {}
    for name in names:
        start, end = f"{name}.slice.", ".auc"
        for key, value in content.metrics.items():
            if key.startswith(start) and key.endswith(end):
                table.setdefault(key[len(start) : -len(end)], {})[name] = value
    # Cold beside warm products, head beside tail queries.
    return dict(sorted(table.items(), key=lambda pair: (pair[0].split("_")[-1], pair[0])))


def _embedding_table(embeddings: dict[str, dict[str, float | None]]) -> dict[str, Any]:
    """Kinds of vectors in a telling order, their measures, and which value leads each column."""
    kinds = [kind for kind in EMBEDDING_ORDER if kind in embeddings]
    kinds += [kind for kind in embeddings if kind not in kinds]
    seen = {name for measures in embeddings.values() for name in measures}
    main = [name for name in MEASURE_NAMES if name in seen]
    rest = [name for kind in kinds for name in embeddings[kind] if name not in main]
    leads = {}
    for name in main:
        values = [v for kind in kinds if (v := embeddings[kind].get(name)) is not None]
        leads[name] = max(values) if len(values) > 1 else None
    return {
        "kinds": kinds,
        "names": EMBEDDING_NAMES,
        "main": main,
        "headers": MEASURE_NAMES,
        "rest": list(dict.fromkeys(rest)),
        "values": embeddings,
        "leads": leads,
    }


def _costs(content: ReportContent) -> list[dict[str, Any]]:
    """What each part cost: what training recorded, and the click models of the flat figures."""
    costs: list[dict[str, Any]] = [cost.model_dump() for cost in content.training.costs]
    known = {cost["what"] for cost in costs}
    for key, seconds in content.metrics.items():
        name = key.removesuffix(".fit_seconds")
        if name != key and name not in known:
            parameters = content.metrics.get(f"{name}.parameters")
            costs.append({"what": name, "seconds": seconds, "parameters": parameters})
    return costs


def _figures(content: ReportContent) -> dict[str, markupsafe.Markup]:
    """Every figure as markup: the stored ones, and those drawn here from the records.

    A figure that is too large for the page gives its place to a sentence that says so.
    """
    markup: dict[str, markupsafe.Markup] = {}
    left = LARGEST_PAGE_BYTES - 1_000_000
    for figure in content.figures + _drawn(content):
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


def _drawn(content: ReportContent) -> tuple[FigureImage, ...]:
    """The figures that the records suffice for, where the run stored none of that name."""
    images: dict[str, tuple[str, bytes]] = {}
    comparison, ab = content.comparison, content.ab
    if comparison is not None and len(comparison.rows) > 1:
        rows = [_forest_row(one["row"], one["placebo"]) for one in _variant_rows(comparison)
                if one["row"].name != comparison.baseline]  # fmt: skip
        image = variant_forest(
            rows,
            baseline=comparison.baseline,
            placebo=comparison.placebo,
            confidence=comparison.confidence,
        )
        images["variants"] = ("Differences in AUC with their intervals", image)
    if ab is not None and ab.lifts:
        control, treatment = arms(content)
        lifts = [
            LiftRow(
                name=LIFT_NAMES.get(name, name),
                lift=Interval(value=lift.lift, low=lift.low, high=lift.high),
                true=lift.true,
            )
            for name, lift in ab.lifts.items()
        ]
        image = ab_forest(lifts, control=control, treatment=treatment, confidence=ab.confidence)
        images["ab"] = ("Lifts of the A/B test with their intervals", image)
    if content.training.curves:
        images["training"] = ("Training curves", training_curves(content.training.curves))
    return tuple(
        FigureImage(name=name, title=title, caption="", image=image)
        for name, (title, image) in images.items()
        if content.figure(name) is None
    )


def _forest_row(row: VariantResult, placebo: bool) -> ForestRow:
    against_placebo = None
    if row.delta_placebo is not None:
        assert row.delta_placebo_low is not None and row.delta_placebo_high is not None
        against_placebo = Interval(
            value=row.delta_placebo, low=row.delta_placebo_low, high=row.delta_placebo_high
        )
    return ForestRow(
        name=row.name,
        against_baseline=Interval(
            value=row.delta_auc, low=row.delta_auc_low, high=row.delta_auc_high
        ),
        against_placebo=against_placebo,
        is_placebo=placebo,
    )
