"""The figure of an audit is drawn of its numbers, the same bytes each time."""

import pytest

from embeddings.relevance.audit import Audit
from experiments.audit_figure import audit_figure


@pytest.fixture
def audit():
    return Audit(
        annotator="judge", pairs=600, queries=90, not_labelled=0,
        metrics={"kappa_quadratic": 0.4321, "ece_classes": 0.025},
        intervals={}, confusion=[[60, 30, 10], [50, 120, 80], [10, 60, 180]],
        reliability={
            k: [(0.1 * k + 0.05, 0.1 * k + 0.07, 200), (0.7, 0.66, 400)] for k in range(3)
        },
    )  # fmt: skip


def test_the_figure_names_counts_shares_and_classes(audit):
    drawn = audit_figure(audit, image_format="svg").decode()
    for text in ("60%", "48%", "180", "quadratic kappa 0.432", "judge says", "irrelevant"):
        assert text in drawn, text
    assert drawn == audit_figure(audit, image_format="svg").decode()


def test_an_annotator_without_probabilities_has_a_confusion_alone(audit):
    plain = audit.model_copy(update={"reliability": {}})
    drawn = audit_figure(plain, image_format="svg").decode()
    assert "reliability" not in drawn and "judge says" in drawn


def test_a_png_is_written(audit):
    assert audit_figure(audit).startswith(b"\x89PNG\r\n")
