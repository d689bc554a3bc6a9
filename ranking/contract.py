"""What every click model must do, whatever it is made of.

One protocol, ``ClickModel``, and the checks that all models share, so that each of them refuses
the same wrong inputs with the same words.

Shape letters: N rows (impressions), F sparse features, C dense columns, D embedding size.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from features.embedding_join import Vectors
from features.examples import Examples
from ranking.checkpoint import read_verified

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps at most, a line on how it goes) while a model is fitted."""


class ClickModel(Protocol):
    """A model of P(click): fitted on impressions, asked for probabilities.

    ``uses_vectors`` tells whether a fitted model needs the vectors it was fitted with. One that
    does not ignores those it is handed.
    """

    name: str
    """What reports call it."""

    @property
    def uses_vectors(self) -> bool: ...

    def fit(
        self,
        train: Examples,
        validation: Examples,
        vectors: Vectors | None,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from ``train``; ``validation`` only decides when to stop.

        Raises:
            ValueError: If labels are missing, outside {0, 1} or of one class, if arrays disagree
                or hold what they may not, or if the model needs vectors and gets none.
        """
        ...

    def predict_proba(self, examples: Examples, vectors: Vectors | None) -> NDArray[np.float64]:
        """Return P(click) of every row, within [0, 1], shape (N,).

        Raises:
            ValueError: If features or vectors are not those the model was fitted with.
        """
        ...

    def save_(self, folder: Path) -> None:
        """Write the fitted model to a new folder, all of it or nothing."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save_`` wrote. ``load_click_model`` finds the right class."""
        ...


@dataclass(frozen=True, kw_only=True)
class InputSignature:
    """The features and vectors a model was fitted with; it scores no others."""

    sparse_names: tuple[str, ...]
    vocabulary_sizes: tuple[int, ...]
    dense_names: tuple[str, ...]
    vectors_fingerprint: str | None
    """None where the model uses no vectors."""
    vectors_dim: int | None
    history_length: int = 0
    """Products that a history holds at most, L; 0 where that was not written down."""

    @classmethod
    def of(cls, examples: Examples, vectors: Vectors | None) -> InputSignature:
        """Return the signature of these inputs."""
        return cls(
            sparse_names=tuple(examples.sparse_names),
            vocabulary_sizes=tuple(int(size) for size in examples.vocabulary_sizes),
            dense_names=tuple(examples.dense_names),
            vectors_fingerprint=None if vectors is None else vectors.fingerprint,
            vectors_dim=None if vectors is None else vectors.dim,
            history_length=examples.history_NL.shape[1],
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and strings, for ``config.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> InputSignature:
        """Return the signature that ``to_json`` described."""
        lists = {name: tuple(v) for name, v in fields.items() if isinstance(v, list)}
        return cls(**{**fields, **lists})

    def check(self, examples: Examples, vectors: Vectors | None) -> None:
        """Refuse inputs that are not of this signature.

        Raises:
            ValueError: If feature names, their order, vocabulary sizes, the length of histories or
                the vectors differ.
        """
        _same_names("sparse features", self.sparse_names, tuple(examples.sparse_names))
        _same_names("dense columns", self.dense_names, tuple(examples.dense_names))
        for name, own, given in zip(
            self.sparse_names, self.vocabulary_sizes, examples.vocabulary_sizes, strict=True
        ):
            if own != given:
                raise ValueError(
                    f"vocabulary of {name!r} has {given} rows, but the model was fitted with "
                    f"{own}; were these examples made by another FeaturePipeline?"
                )
        length = examples.history_NL.shape[1]
        if self.history_length and length != self.history_length:
            raise ValueError(
                f"history_NL holds {length} products a row, but the model was fitted with at most "
                f"{self.history_length}; pad shorter histories with -1 and cut longer ones. Was "
                "history.max_length changed since?"
            )
        self.check_vectors(vectors)

    def check_vectors(self, vectors: Vectors | None) -> None:
        """Refuse vectors that are not of this signature; any will do where none are used.

        Raises:
            ValueError: If there are none, or they come from another encoder or catalogue.
        """
        if self.vectors_fingerprint is None:
            return
        if vectors is None:
            raise ValueError(
                "the model was fitted with vectors and got vectors=None; "
                f"pass those of fingerprint {self.vectors_fingerprint!r}"
            )
        if vectors.fingerprint != self.vectors_fingerprint:
            raise ValueError(
                f"vectors have fingerprint {vectors.fingerprint!r}, but the model was fitted with "
                f"{self.vectors_fingerprint!r}; scores would be noise. Were the embeddings "
                "trained again since?"
            )


def check_examples(examples: Examples, vectors: Vectors | None) -> None:
    """Refuse examples that hold what they may not; ``Examples`` itself holds the shapes together.

    Raises:
        ValueError: If an id lies beyond its table or a dense value is not finite; the message
            names the column, the row and the value.
    """
    if len(examples) == 0:
        return
    # Whole rows at a time: to walk down one column of many rows reads all the others with it.
    least_F, most_F = examples.sparse_NF.min(axis=0), examples.sparse_NF.max(axis=0)
    for column, (name, size) in enumerate(
        zip(examples.sparse_names, examples.vocabulary_sizes, strict=True)
    ):
        if least_F[column] < 0 or most_F[column] >= size:
            _within(f"sparse feature {name!r}", examples.sparse_NF[:, column], 0, size)
    finite_NC = np.isfinite(examples.dense_NC)
    if not finite_NC.all():
        bad_row, bad_column = np.nonzero(~finite_NC)
        raise ValueError(
            f"dense column {examples.dense_names[bad_column[0]]!r} is "
            f"{examples.dense_NC[bad_row[0], bad_column[0]]} in row {bad_row[0]} "
            f"({len(bad_row)} such values); must be finite. Was FeaturePipeline.transform skipped?"
        )
    if vectors is not None:
        _within("product_N", examples.product_N, -1, len(vectors.product_PD))
        _within("query_N", examples.query_N, -1, len(vectors.query_QD))
        if examples.history_NL.shape[1]:
            _within("history_NL", examples.history_NL.max(axis=1), -1, len(vectors.product_PD))


def check_labels(examples: Examples, role: str) -> NDArray[np.float32]:
    """Return the labels, shape (N,), or refuse them.

    Args:
        role: "training" or "validation", for the message.

    Raises:
        ValueError: If labels are absent, not 0 or 1, or all the same.
    """
    label_N = examples.label_N
    if label_N is None:
        raise ValueError(f"{role} examples carry no labels; is the column 'clicked' missing?")
    if len(label_N) == 0:
        raise ValueError(f"{role} examples have no rows")
    bad_N = ~np.isin(label_N, (0, 1))
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise ValueError(
            f"{role} label in row {row} is {label_N[row]}; must be 0 or 1 "
            f"({int(bad_N.sum())} rows are neither)"
        )
    if label_N.min() == label_N.max():
        raise ValueError(
            f"all {len(label_N)} {role} labels are {label_N[0]:g}; a click model needs both "
            "clicks and non-clicks. Is the table cut too short?"
        )
    return np.asarray(label_N, np.float32)


def check_fit_inputs(
    train: Examples, validation: Examples, vectors: Vectors | None
) -> InputSignature:
    """Check all that ``fit`` is given and return the signature to remember.

    Raises:
        ValueError: As ``check_examples``, ``check_labels`` and ``InputSignature.check``.
    """
    signature = InputSignature.of(train, vectors)
    signature.check(validation, vectors)
    for examples, role in ((train, "training"), (validation, "validation")):
        check_examples(examples, vectors)
        check_labels(examples, role)
    return signature


def load_click_model(folder: str | Path) -> ClickModel:
    """Read any model that some ``save_`` wrote, after checking its SHA-256 sums.

    Raises:
        ValueError: If the folder is not a saved click model or a file was changed.
    """
    config = json.loads(read_verified(Path(folder), "config.json"))
    kind = config.get("kind")
    # Imported late: reading a LightGBM model needs no torch, and torch takes seconds to import.
    if kind == "tower":
        from ranking.tower import TowerRanker

        return TowerRanker.load(Path(folder))
    from ranking import baselines

    by_kind = {
        "base_rate": baselines.BaseRate,
        "logistic_regression": baselines.LogisticRegression,
        "lightgbm": baselines.LightGBMRanker,
    }
    if kind not in by_kind:
        raise ValueError(
            f"{Path(folder) / 'config.json'}: kind is {kind!r}, must be 'tower' or one of "
            f"{sorted(by_kind)}"
        )
    return by_kind[kind].load(Path(folder))


def _same_names(what: str, own: tuple[str, ...], given: tuple[str, ...]) -> None:
    if own == given:
        return
    if sorted(own) == sorted(given):
        raise ValueError(
            f"{what} come in the order {list(given)}, but the model was fitted with {list(own)}"
        )
    raise ValueError(
        f"{what} differ from those the model was fitted with: missing "
        f"{sorted(set(own) - set(given))}, unexpected {sorted(set(given) - set(own))}"
    )


def _within(what: str, row_N: NDArray[np.integer], low: int, size: int) -> None:
    bad_N = (row_N < low) | (row_N >= size)
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise ValueError(
            f"{what} is {row_N[row]} in row {row}, must be {low} to {size - 1}; "
            "were the examples made with another catalogue or vocabulary?"
        )
