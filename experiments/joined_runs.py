"""Variants of several finished runs in one comparison, as if one run had trained them all.

They must have been trained and judged on the same impressions; runs on different data are refused,
however alike their numbers look.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.compare import compare_variants
from experiments.comparison import Comparison
from experiments.pipeline import Run, read_run_config
from experiments.progress import Progress
from experiments.records import DATA, read_json
from experiments.run_comparison import has_image
from experiments.run_folder import STATE
from experiments.slices import test_slices
from experiments.training import read_trained, trained_at
from experiments.variants import BASELINE, CONTROLS, REGISTRY


def join_runs(
    run_folders: Sequence[Path], progress: Progress | None = None, *, confidence: float = 0.95
) -> Comparison:
    """Compare the variants of several runs with the first run's ``production``.

    Variants of the first run keep their names; those of the others are called RUN/VARIANT. Placebos
    of any run are placebos, and the best of them all is the one to beat.

    Args:
        run_folders: At least two finished runs on the same data.
        progress: Told of the features' stages.
        confidence: Of the intervals; Holm's families span all runs.

    Raises:
        ValueError: If a run is unfinished or was made from other data, the first has no
            ``production``, or two folders have one name.
    """
    if len(run_folders) < 2:
        raise ValueError(f"{len(run_folders)} run given; joining needs at least two")
    names = [Path(folder).name for folder in run_folders]
    if len(set(names)) < len(names):
        raise ValueError(f"the runs are called {' and '.join(names)}; their names must differ")
    refuse_different_data(run_folders)
    p_click = {}
    for place, folder in enumerate(map(Path, run_folders)):
        config = read_run_config(folder)
        for make in REGISTRY.values():
            variant = make()
            if not (folder / trained_at(variant, 0)).is_dir():
                continue
            name = variant.name if place == 0 else f"{folder.name}/{variant.name}"
            p_click[name] = [
                read_trained(variant, seed, folder).p_test_N for seed in range(config.seeds)
            ]
    if BASELINE not in p_click:
        raise ValueError(
            f"{run_folders[0]} has no {BASELINE}, to which all are compared; name a run first that "
            f"trained it, or train it: adtower compare --variants {BASELINE} ..."
        )
    line = Run.reopen(Path(run_folders[0]), progress)
    test = line.parts.test
    assert test.label_N is not None
    return compare_variants(
        test.label_N,
        test.user_N,
        p_click,
        controls=[name for name in p_click if name.rpartition("/")[2] in CONTROLS],
        confidence=confidence,
        slices=test_slices(line.parts.train, test, has_image(line)),
    )


def refuse_different_data(run_folders: Sequence[Path]) -> None:
    """Refuse runs whose impressions are not the same.

    Raises:
        ValueError: If a folder is no finished run, or two runs' data have different fingerprints;
            the message names the data and sizes of both.
    """
    facts = []
    for folder in map(Path, run_folders):
        state = read_json(folder / STATE) if (folder / STATE).is_file() else {}
        if state.get("state") != "finished" or not (folder / DATA).is_file():
            raise ValueError(
                f"{folder} is no finished run of click models; finish it by repeating its command"
            )
        facts.append(read_json(folder / DATA))
    first = facts[0]
    for folder, other in zip(run_folders, facts, strict=True):
        if other["fingerprint"] != first["fingerprint"]:
            sizes = [one["parts"]["test"]["impressions"] for one in (first, other)]
            raise ValueError(
                f"{run_folders[0]} and {folder} were made from different data: "
                f"{first['name']!r} ({first['fingerprint'][:12]}, {sizes[0]} test impressions) and "
                f"{other['name']!r} ({other['fingerprint'][:12]}, {sizes[1]}). A difference "
                "between their models would be one between their data; train both on one dataset"
            )
