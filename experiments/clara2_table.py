"""The figures of the search clicks' claim as tables on the terminal."""

from __future__ import annotations

from experiments.terminal import nested, print_figures, print_measures

_COLUMNS = (
    "auc",
    "auc_low",
    "auc_high",
    "log_loss",
    "calibration_ratio",
    "calibration_ratio_fixed",
    "same_rank_auc",
)


def print_clara2(metrics: dict[str, float]) -> None:
    """Print the models with the position, those without, and what debiasing changes."""
    groups = nested(metrics)
    without = nested(groups.pop("no_position"))
    debiasing = groups.pop("debiasing")
    print_measures("test rows, position given", groups, _COLUMNS)
    print_measures("test rows, position not given", without, _COLUMNS)
    print_figures("what a tower for the position changes", debiasing)
