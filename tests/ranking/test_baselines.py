"""Base rate, logistic regression and LightGBM."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression

from features.embedding_join import derived_features, gather_vectors
from ranking.baselines import (
    BaseRate,
    LightGBMConfig,
    LightGBMRanker,
    LogisticRegression,
    LogisticRegressionConfig,
)
from ranking.columns import VECTOR_COLUMNS, dense_columns, tree_columns
from ranking.metrics import auc, log_loss_nats


def test_the_base_rate_is_the_click_rate_of_training(small_log):
    model = BaseRate().fit(small_log.train, small_log.validation, None, seed=0)
    expected = small_log.train.label_N.astype(float).mean()
    assert set(model.predict_proba(small_log.test, None)) == {expected}


def test_logistic_regression_agrees_with_scikit_learn_on_dense_one_hots(small_log):
    log = small_log
    config = LogisticRegressionConfig(c_values=(0.5,), max_iterations=1000)
    model = LogisticRegression(config).fit(log.train, log.validation, log.vectors, seed=0)

    def one_hot(examples):
        dense_NC = dense_columns(examples, log.vectors).astype(float)
        scaled_NC = (dense_NC - model.mean_C) / model.deviation_C
        hot = [
            np.eye(size)[examples.sparse_NF[:, column]]
            for column, size in enumerate(examples.vocabulary_sizes)
        ]
        return np.concatenate([*hot, scaled_NC], axis=1)

    oracle = SklearnLogisticRegression(C=0.5, max_iter=5000, tol=1e-9)
    oracle.fit(one_hot(log.train), log.train.label_N)
    np.testing.assert_allclose(
        model.predict_proba(log.test, log.vectors),
        oracle.predict_proba(one_hot(log.test))[:, 1],
        atol=1e-3,
    )


def test_validation_picks_the_penalty(small_log):
    log = small_log

    def loss(*c_values):
        config = LogisticRegressionConfig(c_values=c_values)
        model = LogisticRegression(config).fit(log.train, log.validation, None, seed=0)
        return log_loss_nats(log.validation.label_N, model.predict_proba(log.validation, None))

    alone = [loss(1e-4), loss(0.05), loss(100.0)]
    assert loss(1e-4, 0.05, 100.0) == min(alone)
    assert max(alone) > min(alone) + 0.01


def test_vector_columns_are_cosines_and_masks_in_that_order(small_log):
    rows = gather_vectors(small_log.vectors, small_log.test)
    columns_NC = dense_columns(small_log.test, small_log.vectors)
    assert VECTOR_COLUMNS[:2] == ("cosine_product_query", "cosine_product_history")
    np.testing.assert_array_equal(columns_NC[:, 2:4], derived_features(rows))
    np.testing.assert_array_equal(columns_NC[:, 4:], rows.present_N3)


def test_columns_gathered_in_parts_equal_those_gathered_at_once(small_log, monkeypatch):
    whole_NC = dense_columns(small_log.test, small_log.vectors)
    monkeypatch.setattr("ranking.columns._GATHER_ROWS", 7)
    np.testing.assert_array_equal(dense_columns(small_log.test, small_log.vectors), whole_NC)


def test_large_ids_stay_distinct_in_the_columns_of_trees(small_log):
    sparse_NF = small_log.test.sparse_NF[:2].copy()
    sparse_NF[:, 0] = (2**24, 2**24 + 1)
    two = replace(small_log.test.take(slice(0, 2)), sparse_NF=sparse_NF)
    assert len(set(tree_columns(two, None)[:, 0])) == 2


def test_trees_treat_ids_as_categories_not_as_numbers(small_log):
    # Clicks follow the parity of an id: no threshold on the number separates them.
    rng = np.random.default_rng(0)
    id_N = rng.integers(8, size=2000).astype(np.int32)
    label_N = (rng.random(2000) < np.where(id_N % 2, 0.8, 0.2)).astype(np.float32)
    examples = replace(
        small_log.train.take(np.arange(2000) % len(small_log.train)),
        sparse_names=("code:[x]", "code,{x}"),
        vocabulary_sizes=(8, 1),
        sparse_NF=np.stack([id_N, np.zeros_like(id_N)], axis=1),
        label_N=label_N,
    )
    train, validation = examples.take(slice(0, 1500)), examples.take(slice(1500, 2000))
    config = LightGBMConfig(rounds=5, leaves=2, min_leaf_rows=5)
    model = LightGBMRanker(config).fit(train, validation, None, seed=0)
    assert auc(validation.label_N, model.predict_proba(validation, None)) > 0.75
    assert model.booster_.feature_name()[:2] == ["0_code__x_", "1_code__x_"]


def test_trees_stop_at_the_best_validation_loss(small_log):
    config = LightGBMConfig(rounds=300, patience=5, min_leaf_rows=5, learning_rate=0.3)
    model = LightGBMRanker(config).fit(small_log.train, small_log.validation, None, seed=0)
    trees = model.booster_.num_trees()
    columns_NC = tree_columns(small_log.validation, None)
    losses = [
        log_loss_nats(
            small_log.validation.label_N, model.booster_.predict(columns_NC, num_iteration=number)
        )
        for number in range(1, trees + 1)
    ]
    assert 1 < trees < 100
    assert losses[-1] == min(losses)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="leaves"):
        LightGBMConfig(leaves=1)
    with pytest.raises(ValueError, match="c_values"):
        LogisticRegressionConfig(c_values=())


def test_a_regression_that_did_not_converge_says_nothing_and_scores(small_log):
    model = LogisticRegression(LogisticRegressionConfig(c_values=(10.0,), max_iterations=1))
    model.fit(small_log.train, small_log.validation, small_log.vectors, seed=0)
    p_click_N = model.predict_proba(small_log.test, small_log.vectors)
    assert ((p_click_N > 0) & (p_click_N < 1)).all()


def test_ids_of_large_vocabularies_can_be_left_alone(small_log):
    config = LightGBMConfig(rounds=20, min_leaf_rows=20, largest_vocabulary=6)
    model = LightGBMRanker(config).fit(small_log.train, small_log.validation, None, seed=0)
    used = dict(
        zip(model.booster_.feature_name(), model.booster_.feature_importance(), strict=True)
    )
    assert used["0_user_id"] == used["1_query_id"] == 0
    assert used["2_products.category"] > 0
