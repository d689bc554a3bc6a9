"""What tables on the terminal say of numbers."""

from experiments.terminal import print_figures


def test_figures_keep_the_digits_that_tell_them_apart(capsys):
    print_figures(
        "benchmark",
        {"auc": 0.65591, "rows_per_second": 165266.3, "rows": 2e6, "ms": 132.71, "gap": -1.11e-16},
    )
    said = capsys.readouterr().out
    for figure in ("0.6559", "165,266", "2,000,000", "132.7", "-1.11e-16"):
        assert figure in said
