"""One page that says what the vectors are worth, and everything needed to doubt it.

The page is a single file: styles and figures are inside it, it has no script, and nothing on it
reaches for the network. It is made from the files of a run folder alone (see
``experiments.report_content``), so it can be rendered again at any time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from experiments.comparison import Comparison
from experiments.figure_style import THEME
from experiments.headline import (
    ab_sentence,
    best_variant,
    headline,
    headroom,
    number,
    tiles,
    verdict_rest,
)
from experiments.leak_checks import check_results
from experiments.records import write_bytes
from experiments.report_ab import LIFT_NAMES, ab_section
from experiments.report_content import SCORED_TOGETHER, ReportContent, read_report_content
from experiments.report_figures import EXCHANGE_NAMES, figure_markup, page_figures
from experiments.report_honesty import honesty
from experiments.slice_comparison import SliceResult

REPORT = "report.html"
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

PLACED = frozenset(
    {"variants", "slices", "exchange", "ab", "ab_looks", "ab_distortions"}
    | {"figure_3", "figure_4", "figure_5", "calibration", "training"}
)
"""Figures that have their place on the page; others follow after them."""
_PARTS = PLACED | {"comparison", "embeddings", "oracle", "leak_checks"}


def write_report(run_folder: Path | str) -> Path:
    """Render a run folder's report anew from the files that lie in it.

    Args:
        run_folder: A finished run.

    Returns:
        The path of ``report.html`` in that folder, replaced as a whole.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a file of the run is damaged or of another version, or the page would be too
            large; the file is named, and an older report stays as it was.
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
        ValueError: If a figure is no drawing (see ``inline_svg``), or the words and tables alone
            are too large for a page.
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
        "point": lambda value: number(value, "{:+.5f}"),
        "percent": lambda value: number(value, "{:+.1%}"),
        "share": lambda value: number(value, "{:.2%}"),
        "whole": lambda value: number(value, "{:.0%}"),
        "count": lambda value: number(value, "{:,.0f}"),
        "mebibytes": lambda value: number(value / 2**20, "{:,.0f} MiB"),
        "p_value": lambda value: "< 0.0001" if value < 0.0001 else f"{value:.4f}",
        "duration": _duration,
        "breakable": _breakable,
        "sentence": lambda text: text if text.endswith((".", "?", "!")) else f"{text}.",
    }
    figures, oracle_auc = page_figures(content), content.metrics.get("oracle.auc")
    page = environment.get_template("report.html.j2").render(
        content=content,
        comparison=content.comparison,
        theme=THEME,
        best=best_variant(content.comparison),
        headroom=headroom(content),
        headline=headline(content),
        verdict_rest=verdict_rest(content),
        ab_sentence=ab_sentence(content),
        tiles=tiles(content),
        variant_rows=_variant_rows(content.comparison),
        slices=_slices(content.comparison),
        ab=ab_section(content),
        lift_names=LIFT_NAMES,
        embeddings=_embedding_table(content.embeddings),
        exchange_names=EXCHANGE_NAMES,
        leaks=(*content.leaks, *check_results(content.comparison, oracle_auc)),
        honesty=honesty(content.self_test),
        costs=_costs(content),
        scored_together=SCORED_TOGETHER,
        settings=json.dumps(content.config, indent=2, ensure_ascii=False),
        figures=figure_markup(figures),
        captions={figure.name: figure.caption for figure in figures},
        extra=[figure for figure in figures if figure.name not in PLACED],
        missing_variants={
            name: why for name, why in content.notes.left_out.items() if name not in _PARTS
        },
    )
    if (size := len(page.encode())) >= LARGEST_PAGE_BYTES:
        raise ValueError(
            f"the page would have {size / 1e6:.1f} MB, more than {LARGEST_PAGE_BYTES / 1e6:.0f}; "
            "figures are limited, so it is words or tables: does config.json or notes.json hold "
            "data?"
        )
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


def _slices(comparison: Comparison | None) -> dict[str, dict[str, SliceResult]]:
    """Part of the test impressions to variant to its figures there; empty without any."""
    table: dict[str, dict[str, SliceResult]] = {}
    for part in comparison.slices if comparison is not None else ():
        table.setdefault(part.slice, {})[part.variant] = part
    return table


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
            cost = {"what": name, "seconds": seconds, "parameters": parameters}
            costs.append({**cost, "peak_bytes": None, "score_ms": None})
    return costs
