"""A command that compares settings of the product-query alignment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from embeddings.stage2_config import Stage2Config
from experiments.terminal import JsonFile, new_progress, print_table, write_figures

Settings = Annotated[Stage2Config, tyro.conf.arg(name="")]

DEFAULTS = Stage2Config()


def compare_ratios(
    run_folder: tyro.conf.Positional[Path],
    data: Path,
    ratio: tuple[str, ...] = ("1:1:1", "2:1:1", "4:2:1", "2:2:1", "3:3:2"),
    seeds: int = 2,
    config: Settings = DEFAULTS,
    json: JsonFile = None,
) -> None:
    """Compare ratios between the relevance classes by aligning once with each.

    Judged on training queries held out for it; test queries are not read.

    Args:
        run_folder: A run that trained stage 1, whose encoders are aligned anew.
        data: The dataset that it was trained on.
        ratio: Products of label 2, 1 and 0 drawn for each query.
        seeds: Alignments for each ratio.
        config: Everything else.
        json: Also write the figures there, flat.
    """
    from embeddings.model import DashClip
    from experiments.alignment_trials import compare_alignments, ratio_settings
    from experiments.terminal import Table
    from experiments.vectors import model_folder
    from features.dataset import Dataset

    found = compare_alignments(
        Dataset.open(data),
        DashClip.load(model_folder(run_folder, 1)),
        ratio_settings(ratio, config),
        seeds=range(seeds),
        progress=new_progress(),
    )
    table = Table(*found.columns)
    for row in found.iter_rows():
        table.add_row(*[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row])
    print_table(table)
    figures = {
        f"{row['setting']}.seed_{row['seed']}.{name}": value
        for row in found.iter_rows(named=True)
        for name, value in row.items()
        if isinstance(value, float)
    }
    write_figures(json, figures)


ALIGNMENT_COMMANDS: dict[str, Callable[..., Any]] = {"compare-ratios": compare_ratios}
"""Verb to command."""
