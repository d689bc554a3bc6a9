"""Click models that a neural one has to beat: the base rate, logistic regression, LightGBM.

Shape letters: N rows, F sparse features, C dense columns (derived features included), W weights.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Self

import lightgbm
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from scipy.sparse import csr_matrix
from scipy.special import expit

from features.embedding_join import Vectors
from features.examples import Examples
from ranking.checkpoint import published_folder, read_verified, write_manifest
from ranking.columns import dense_columns, tree_columns, tree_names
from ranking.contract import InputSignature, Progress, check_examples, check_fit_inputs
from ranking.metrics import log_loss_nats


class BaseRate:
    """Predicts the training click rate for every impression (``ClickModel``)."""

    name = "base_rate"
    uses_vectors = False
    rate_: float
    signature_: InputSignature

    def fit(
        self,
        train: Examples,
        validation: Examples,
        vectors: Vectors | None,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Self:
        """Remember the click rate of ``train``."""
        self.signature_ = check_fit_inputs(train, validation, None)
        assert train.label_N is not None
        self.rate_ = float(np.mean(train.label_N, dtype=np.float64))
        return self

    def predict_proba(self, examples: Examples, vectors: Vectors | None) -> NDArray[np.float64]:
        """Return the training click rate, N times, shape (N,)."""
        self.signature_.check(examples, None)
        check_examples(examples, None)
        return np.full(len(examples), self.rate_)

    def save_(self, folder: Path) -> None:
        """Write the rate to a new folder."""
        fields = {"rate": self.rate_, "signature": self.signature_.to_json()}
        _save_(folder, {"kind": "base_rate", **fields}, {})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save_`` wrote."""
        fields = json.loads(read_verified(Path(folder), "config.json"))
        model = cls()
        model.rate_ = float(fields["rate"])
        model.signature_ = InputSignature.from_json(fields["signature"])
        return model


class LogisticRegressionConfig(BaseModel):
    """How the logistic regression is fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    c_values: tuple[float, ...] = Field(default=(0.1, 0.3), min_length=1)
    """Inverse strengths of the L2 penalty; the validation log loss picks one."""
    max_iterations: int = Field(default=200, ge=1)
    """Of L-BFGS, each."""


class LogisticRegression:
    """Logistic regression on one-hot ids and dense columns (``ClickModel``).

    One weight a vocabulary row and one a dense column, each column standardised on training rows.
    """

    name = "logistic_regression"
    weight_W: NDArray[np.float64]
    """Weights of the one-hot ids, feature after feature, then of the dense columns."""
    intercept_: float
    mean_C: NDArray[np.float64]
    deviation_C: NDArray[np.float64]
    signature_: InputSignature

    def __init__(self, config: LogisticRegressionConfig | None = None) -> None:
        self.config = config or LogisticRegressionConfig()

    @property
    def uses_vectors(self) -> bool:
        """Whether it was fitted with vectors; those given to ``fit`` become ``VECTOR_COLUMNS``."""
        return self.signature_.vectors_fingerprint is not None

    def fit(
        self,
        train: Examples,
        validation: Examples,
        vectors: Vectors | None,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Self:
        """Fit one regression a penalty and keep the one with the best validation log loss.

        Raises:
            ValueError: As ``ClickModel.fit``.
        """
        # Only fitting needs scikit-learn; a saved model scores without it.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression

        self.signature_ = check_fit_inputs(train, validation, vectors)
        assert train.label_N is not None and validation.label_N is not None
        dense_NC = dense_columns(train, vectors)
        self.mean_C = dense_NC.mean(axis=0, dtype=np.float64)
        deviation_C = dense_NC.std(axis=0, dtype=np.float64)
        self.deviation_C = np.where(deviation_C > 1e-6, deviation_C, 1.0)
        train_NW = self._one_hot(train, vectors)
        best_loss, best = float("inf"), None
        for number, c in enumerate(self.config.c_values):
            solver = SklearnLogisticRegression(C=c, max_iter=self.config.max_iterations, tol=1e-5)
            with warnings.catch_warnings():
                # lbfgs is deterministic; what it leaves unconverged at the limit still is a model.
                warnings.simplefilter("ignore", ConvergenceWarning)
                solver.fit(train_NW, train.label_N)
            self.weight_W, self.intercept_ = solver.coef_[0], float(np.ravel(solver.intercept_)[0])
            loss = log_loss_nats(validation.label_N, self.predict_proba(validation, vectors))
            if progress is not None:
                line = f"C = {c:g}: validation log loss {loss:.5f}"
                progress(number + 1, len(self.config.c_values), line)
            if loss < best_loss:
                best_loss, best = loss, (self.weight_W, self.intercept_)
        assert best is not None, "every penalty gave a log loss that is not finite"
        self.weight_W, self.intercept_ = best
        return self

    def predict_proba(self, examples: Examples, vectors: Vectors | None) -> NDArray[np.float64]:
        """Return P(click) of every row, shape (N,).

        Raises:
            ValueError: As ``ClickModel.predict_proba``.
        """
        vectors = vectors if self.uses_vectors else None
        self.signature_.check(examples, vectors)
        check_examples(examples, vectors)
        return expit(self.logits(examples.sparse_NF, dense_columns(examples, vectors)))

    def logits(
        self, sparse_NF: NDArray[np.integer], dense_NC: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """Return the logits, shape (N,), of ids and unscaled dense columns."""
        ids = self.first_weight_F[-1]
        logit_N = np.full(len(sparse_NF), self.intercept_)
        for column, first in enumerate(self.first_weight_F[:-1]):
            logit_N += self.weight_W[first + sparse_NF[:, column]]
        scaled_NC = (dense_NC - self.mean_C) / self.deviation_C
        return logit_N + (scaled_NC * self.weight_W[ids:]).sum(axis=1)

    @property
    def first_weight_F(self) -> NDArray[np.int64]:
        """Where each sparse feature's weights begin, and where the last ends, shape (F + 1,)."""
        return np.cumsum([0, *self.signature_.vocabulary_sizes])

    def save_(self, folder: Path) -> None:
        """Write config, weights and their sums to a new folder."""
        config = {
            "kind": "logistic_regression",
            "config": self.config.model_dump(mode="json"),
            "signature": self.signature_.to_json(),
        }
        arrays = {
            "weight": np.ascontiguousarray(self.weight_W),
            "intercept": np.array([self.intercept_]),
            "mean": self.mean_C,
            "deviation": self.deviation_C,
        }
        _save_(folder, config, {"weights.safetensors": save_arrays(arrays)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save_`` wrote.

        Raises:
            ValueError: If a file is missing or changed.
        """
        fields = json.loads(read_verified(Path(folder), "config.json"))
        arrays = load_arrays(read_verified(Path(folder), "weights.safetensors"))
        model = cls(LogisticRegressionConfig(**fields["config"]))
        model.signature_ = InputSignature.from_json(fields["signature"])
        model.weight_W, model.intercept_ = arrays["weight"], float(arrays["intercept"][0])
        model.mean_C, model.deviation_C = arrays["mean"], arrays["deviation"]
        return model

    def _one_hot(self, examples: Examples, vectors: Vectors | None) -> csr_matrix:
        """Ones at the ids and scaled dense columns after them, shape (N, W)."""
        rows, features = examples.sparse_NF.shape
        dense_NC = (dense_columns(examples, vectors) - self.mean_C) / self.deviation_C
        first_F = self.first_weight_F
        width = int(first_F[-1]) + dense_NC.shape[1]
        index_NK = np.empty((rows, features + dense_NC.shape[1]), np.int32)
        index_NK[:, :features] = examples.sparse_NF + first_F[:-1]
        index_NK[:, features:] = np.arange(first_F[-1], width)
        value_NK = np.ones(index_NK.shape)
        value_NK[:, features:] = dense_NC
        start_N = np.arange(rows + 1, dtype=np.int32) * index_NK.shape[1]
        return csr_matrix((value_NK.ravel(), index_NK.ravel(), start_N), shape=(rows, width))


class LightGBMConfig(BaseModel):
    """How the boosted trees are fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int = Field(default=400, ge=1)
    """Trees at most."""
    patience: int = Field(default=20, ge=1)
    """Trees without a better validation log loss until training stops."""
    learning_rate: float = Field(default=0.1, gt=0)
    leaves: int = Field(default=31, ge=2)
    """Leaves of a tree at most."""
    min_leaf_rows: int = Field(default=100, ge=1)
    """Impressions in a leaf at least."""
    category_smoothing: float = Field(default=50.0, ge=0)
    """Pulls the click rate of rare categories to the mean when they are ordered (cat_smooth)."""
    category_l2: float = Field(default=20.0, ge=0)
    """Extra L2 penalty of splits on categories (cat_l2)."""
    largest_vocabulary: int | None = Field(default=None, ge=2)
    """Sparse features with more values are never split on, because trees memorise rare ids; None
    lets all be."""
    l2: float = Field(default=0.0, ge=0)
    """L2 penalty of the leaves' values (lambda_l2)."""
    column_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the columns that each tree may use (feature_fraction)."""
    row_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the impressions that each tree is grown on (bagging_fraction)."""


class LightGBMRanker:
    """Gradient boosted trees with the ids as native categories (``ClickModel``)."""

    name = "lightgbm"
    booster_: lightgbm.Booster
    signature_: InputSignature

    def __init__(self, config: LightGBMConfig | None = None) -> None:
        self.config = config or LightGBMConfig()

    @property
    def uses_vectors(self) -> bool:
        """Whether it was fitted with vectors; those given to ``fit`` become ``VECTOR_COLUMNS``."""
        return self.signature_.vectors_fingerprint is not None

    def fit(
        self,
        train: Examples,
        validation: Examples,
        vectors: Vectors | None,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Self:
        """Grow trees until the log loss on ``validation`` stops falling.

        Raises:
            ValueError: As ``ClickModel.fit``.
        """
        self.signature_ = check_fit_inputs(train, validation, vectors)
        names = tree_names(self.signature_)
        parameters = {
            "objective": "binary",
            "metric": "binary_logloss",
            "learning_rate": self.config.learning_rate,
            "num_leaves": self.config.leaves,
            "min_data_in_leaf": self.config.min_leaf_rows,
            "cat_smooth": self.config.category_smoothing,
            "cat_l2": self.config.category_l2,
            "lambda_l2": self.config.l2,
            "feature_fraction": self.config.column_share,
            "bagging_fraction": self.config.row_share,
            "bagging_freq": 1,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }
        largest = self.config.largest_vocabulary
        if largest is not None:
            # A gain of nothing is never split on, and the columns keep their places.
            kept = [float(size <= largest) for size in self.signature_.vocabulary_sizes]
            parameters["feature_contri"] = kept + [1.0] * (len(names) - len(kept))
        data = lightgbm.Dataset(
            tree_columns(train, vectors),
            train.label_N,
            feature_name=names,
            categorical_feature=names[: len(train.sparse_names)],
            params=parameters,
        )
        held_out = data.create_valid(tree_columns(validation, vectors), validation.label_N)
        callbacks: list[Any] = [lightgbm.early_stopping(self.config.patience, verbose=False)]
        if progress is not None:
            callbacks.append(_progress_callback(progress))
        # What train returns holds the trees up to the best validation loss alone.
        self.booster_ = lightgbm.train(
            parameters, data, self.config.rounds, valid_sets=[held_out], callbacks=callbacks
        )
        return self

    def predict_proba(self, examples: Examples, vectors: Vectors | None) -> NDArray[np.float64]:
        """Return P(click) of every row, shape (N,).

        Raises:
            ValueError: As ``ClickModel.predict_proba``.
        """
        vectors = vectors if self.uses_vectors else None
        self.signature_.check(examples, vectors)
        check_examples(examples, vectors)
        if len(examples) == 0:
            return np.zeros(0)
        return np.asarray(self.booster_.predict(tree_columns(examples, vectors)), np.float64)

    def save_(self, folder: Path) -> None:
        """Write config, trees (LightGBM's own text) and their sums to a new folder."""
        config = {
            "kind": "lightgbm",
            "config": self.config.model_dump(mode="json"),
            "signature": self.signature_.to_json(),
        }
        _save_(folder, config, {"trees.txt": self.booster_.model_to_string().encode()})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save_`` wrote.

        Raises:
            ValueError: If a file is missing or changed.
        """
        fields = json.loads(read_verified(Path(folder), "config.json"))
        model = cls(LightGBMConfig(**fields["config"]))
        model.signature_ = InputSignature.from_json(fields["signature"])
        text = read_verified(Path(folder), "trees.txt").decode()
        model.booster_ = lightgbm.Booster(model_str=text)
        return model


def _progress_callback(progress: Progress) -> Any:
    def report(environment: Any) -> None:
        _, _, loss, _ = environment.evaluation_result_list[0][:4]
        done, at_most = environment.iteration + 1, environment.end_iteration
        if done % 20 == 0:
            progress(done, at_most, f"{done} trees: validation log loss {loss:.5f}")

    return report


def _save_(folder: Path, config: dict[str, Any], files: dict[str, bytes]) -> None:
    with published_folder(Path(folder)) as temporary:
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        write_manifest(temporary)
