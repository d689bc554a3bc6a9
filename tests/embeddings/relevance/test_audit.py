"""Agreement with people: numbers by hand, scikit-learn's kappa, and what an audit refuses."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from embeddings.relevance import agreement
from embeddings.relevance.agreement import coincidence_matrix, reliability, weighted_kappa
from embeddings.relevance.audit import Audit, audit_labels


def labelled(rows, columns=("query_id", "product_id", "label")):
    return pl.DataFrame(rows, schema=list(columns), orient="row")


def drawn_pairs(seed=0, queries=60, noise=0.3):
    """Human labels, and an annotator who errs by one class now and then, with probabilities."""
    rng = np.random.default_rng(seed)
    human = labelled(
        [(f"q{q}", f"p{p}", int(rng.integers(3))) for q in range(queries) for p in range(5)]
    )
    label_N = human["label"].to_numpy()
    slip_N = np.where(rng.random(len(label_N)) < noise, rng.choice([-1, 1], len(label_N)), 0)
    given_N = np.clip(label_N + slip_N, 0, 2)
    p_NK = np.full((len(label_N), 3), 0.15)
    p_NK[np.arange(len(label_N)), given_N] = 0.7
    given = human.select("query_id", "product_id").with_columns(
        label=pl.Series(given_N), **{f"p{k}": pl.Series(p_NK[:, k]) for k in range(3)}
    )
    return human, given


@pytest.mark.parametrize("weights", ["linear", "quadratic"])
def test_weighted_kappa_is_scikit_learns(weights):
    human, given = drawn_pairs()
    a, b = human["label"].to_numpy(), given["label"].to_numpy()
    ours = weighted_kappa(agreement.confusion_matrix(a, b), weights)
    assert ours == pytest.approx(cohen_kappa_score(a, b, weights=weights), abs=1e-12)
    np.testing.assert_array_equal(agreement.confusion_matrix(a, b), confusion_matrix(a, b))


def test_kappa_of_two_who_know_one_class_is_undefined():
    ones = np.ones(4, np.int64)
    assert weighted_kappa(agreement.confusion_matrix(ones, ones), "quadratic") is None


def test_kappa_is_one_for_equal_labels_and_zero_for_a_constant():
    label_N = np.array([0, 1, 2, 2])
    assert weighted_kappa(agreement.confusion_matrix(label_N, label_N), "quadratic") == 1.0
    constant_N = np.full(4, 1)
    found = weighted_kappa(agreement.confusion_matrix(label_N, constant_N), "quadratic")
    assert found == pytest.approx(0.0)


def test_coincidences_of_people_by_hand():
    # Three labels 0, 0, 2 on one pair: six ordered couples, halved; the pair with one label is out.
    both_KK = coincidence_matrix(np.array([0, 0, 2, 1]), np.array([7, 7, 7, 9]))
    np.testing.assert_allclose(both_KK, [[1, 0, 1], [0, 0, 0], [1, 0, 0]])
    assert coincidence_matrix(np.array([0, 1]), np.array([0, 1])) is None


def test_reliability_by_hand():
    # Two bins; .2 came true in one of two, .9 in both.
    curve = reliability(np.array([0.2, 0.2, 0.9, 0.9]), np.array([0, 1, 1, 1], bool), bins=2)
    assert curve == [(0.2, 0.5, 2), (pytest.approx(0.9), 1.0, 2)]
    assert agreement.calibration_error(curve) == pytest.approx((2 * 0.3 + 2 * 0.1) / 4)


def test_an_audit_counts_precision_recall_and_what_was_not_labelled():
    human = labelled([("q1", "a", 2), ("q1", "b", 0), ("q2", "a", 2), ("q2", "b", 1)])
    given = labelled([("q1", "a", 2), ("q1", "b", 2), ("q2", "a", 2), ("q2", "b", None)])
    audit = audit_labels(human, given, annotator="llm", resamples=0)
    assert (audit.pairs, audit.queries, audit.not_labelled) == (3, 2, 1)
    assert audit.confusion == [[0, 0, 1], [0, 0, 0], [0, 0, 2]]
    assert audit.metrics["precision_2"] == pytest.approx(2 / 3)
    assert audit.metrics["recall_0"] == 0.0
    # Nobody said 0, so there is no precision of it; no probabilities, so no AUC.
    assert "precision_0" not in audit.metrics and "auc_2v0" not in audit.metrics
    assert audit.intervals == {} and audit.humans is None


def test_rmse_compares_ratings_where_both_sides_have_them():
    columns = ("query_id", "product_id", "label", "rating")
    human = labelled([("q1", "a", 2, 3.0), ("q1", "b", 0, 1.0)], columns)
    given = labelled([("q1", "a", 2, 2.0), ("q1", "b", 0, None)], columns)
    audit = audit_labels(human, given, annotator="judge", resamples=0)
    assert audit.metrics["rmse"] == 1.0


def test_where_two_annotators_differ_the_human_says_who_is_right():
    human = labelled([("q", "a", 2), ("q", "b", 0), ("q", "c", 1), ("q", "d", 1)])
    given = labelled([("q", "a", 2), ("q", "b", 0), ("q", "c", 0), ("q", "d", 1)])
    other = labelled([("q", "a", 0), ("q", "b", 1), ("q", "c", 1), ("q", "d", 1)])
    found = audit_labels(human, given, annotator="judge", other=other, resamples=0).disagreement
    assert (found.compared, found.pairs) == (4, 3)
    assert found.annotator_right == pytest.approx(2 / 3)
    assert found.other_right == pytest.approx(1 / 3)


def test_people_who_labelled_one_pair_are_compared_with_each_other():
    human = labelled([("q", "a", 2), ("q", "a", 2), ("q", "b", 0), ("q", "b", 1), ("q", "c", 1)])
    given = labelled([("q", "a", 2), ("q", "b", 1), ("q", "c", 1)])
    audit = audit_labels(human, given, annotator="llm", resamples=0)
    assert audit.humans.pairs == 2
    assert audit.humans.exact == 0.5
    # The rounded mean of 0 and 1 is 1, one row a pair.
    assert audit.metrics["accuracy"] == 1.0 and audit.pairs == 3


def test_intervals_hold_the_estimate_and_repeat_to_the_bit():
    human, given = drawn_pairs()
    audit = audit_labels(human, given, annotator="judge", seed=3, resamples=60)
    for name, (low, high) in audit.intervals.items():
        assert low <= audit.metrics[name] <= high or name.startswith("ece"), name
    assert audit == audit_labels(human, given, annotator="judge", seed=3, resamples=60)
    assert audit == Audit.model_validate_json(audit.model_dump_json())


def test_drawing_queries_knows_that_their_pairs_err_together():
    # All pairs of a query right or all wrong: 60 independent facts, not 300.
    human, given = drawn_pairs(noise=0.0)
    wrong = [f"q{q}" for q in range(0, 60, 3)]
    together = given.with_columns(
        pl.when(pl.col("query_id").is_in(wrong)).then((pl.col("label") + 1) % 3).otherwise("label")
        .alias("label")
    ).select("query_id", "product_id", "label")  # fmt: skip
    low, high = audit_labels(human, together, annotator="j", resamples=300).intervals["accuracy"]
    deviation = np.sqrt(2 / 9 / 60)
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.2)


def test_what_an_audit_refuses():
    human, given = drawn_pairs(queries=2)
    with pytest.raises(ValueError, match="no human label"):
        audit_labels(human.clear(), given, annotator="judge")
    with pytest.raises(ValueError, match="labelled none of the 10 pairs"):
        audit_labels(human, given.with_columns(pl.lit("x").alias("query_id")).head(1),
                     annotator="judge")  # fmt: skip
    with pytest.raises(ValueError, match="one row a pair"):
        audit_labels(human, pl.concat([given, given]), annotator="judge")
    with pytest.raises(ValueError, match="sum to 1"):
        audit_labels(human, given.with_columns(p0=pl.lit(0.9)), annotator="judge")
    with pytest.raises(ValueError, match="labels are 0, 1 and 2"):
        audit_labels(human, given.with_columns(label=pl.lit(3)), annotator="judge")
