"""The neural click model: settings, fitting, scoring and storing of the two-tower network.

Shape letters: N rows, D size of the given vectors.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from features.embedding_join import Vectors, derived_features, gather_vectors
from features.examples import Examples
from ranking.checkpoint import published_folder, read_verified, write_manifest
from ranking.contract import InputSignature, Progress, check_examples, check_fit_inputs
from ranking.inputs import ExampleTensors, FrozenVectors
from ranking.model import (
    ClickNetwork,
    FusedTables,
    ProductionTower,
    VectorFeatures,
    vector_widths,
)
from ranking.train import Check, TrainConfig, predict_network, train_network, use_bf16

# Enough rows for a mean and a deviation to three digits, few enough to cost nothing.
_STATISTICS_ROWS = 65_536


class TowerConfig(TrainConfig):
    """The shape of the click network, and how it is fitted.

    ``use_vectors=False`` is the baseline: the production tower with the same head, alone.
    """

    embedding_dim: int = Field(default=16, ge=4, multiple_of=4)
    """Width of every id embedding; fbgemm wants multiples of four."""
    cross_layers: int = Field(default=2, ge=0)
    """DCN-v2 crosses of the production tower."""
    cross_rank: int | None = Field(default=32, ge=1)
    """Rank of each cross; None for full matrices."""
    production_mlp: tuple[int, ...] = (128, 64)
    """Widths of the production tower's MLP, beside the crosses."""
    head: tuple[int, ...] = (64,)
    """Widths of the layers over both towers."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of all hidden layers."""
    use_vectors: bool = True
    """Whether there is an embedding tower at all."""
    single_tower: bool = False
    """Whether vectors are concatenated into the production tower instead."""
    derived: bool = True
    """Whether cos(product, query), the history and cos(product, history) are features."""
    presence: bool = True
    """Whether the masks of missing vectors are features."""
    projected_dim: int = Field(default=32, ge=1)
    """Width that vectors are projected to."""
    tower_mlp: tuple[int, ...] = Field(default=(64, 32), min_length=1)
    """Widths of the embedding tower's MLP."""
    vector_dropout: float = Field(default=0.2, ge=0, lt=1)
    """Of the projected vectors, which could otherwise serve as one more product id."""


class TowerRanker:
    """DCN-v2 with an embedding tower beside it (``ClickModel``; the paper's Figure 3)."""

    name = "tower"
    network_: ClickNetwork
    signature_: InputSignature
    checks_: list[Check]
    """One record a validation check of the training, in order."""
    precision_: Literal["bfloat16", "float32"]
    """What the hidden layers computed in while training; scores are always float32."""

    def __init__(self, config: TowerConfig | None = None) -> None:
        self.config = config or TowerConfig()

    @property
    def uses_vectors(self) -> bool:
        """Whether ``fit`` needs vectors."""
        return self.config.use_vectors

    def fit(
        self,
        train: Examples,
        validation: Examples,
        vectors: Vectors | None,
        *,
        seed: int,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from ``train`` until the log loss on ``validation`` stops falling.

        Raises:
            ValueError: As ``ClickModel.fit``.
        """
        vectors = self._needed(vectors)
        signature = check_fit_inputs(train, validation, vectors)
        assert train.label_N is not None and validation.label_N is not None
        frozen = None if vectors is None else FrozenVectors(vectors)
        # Initial weights and dropout draw from torch's global generator; the caller's is kept.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, tables = build_network(self.config, signature)
            network.set_base_rate(float(train.label_N.mean()))
            if vectors is not None and network.vectors is not None:
                network.vectors.set_cosine_statistics(*_cosine_statistics(train, vectors))
            checks = train_network(
                network,
                tables,
                ExampleTensors(train, frozen),
                np.asarray(train.label_N, np.float32),
                ExampleTensors(validation, frozen),
                np.asarray(validation.label_N, np.float32),
                self.config,
                seed=seed,
                progress=progress,
            )
        self.network_, self.signature_, self.checks_ = network.eval(), signature, checks
        self.precision_ = "bfloat16" if use_bf16(self.config.bf16) else "float32"
        return self

    def predict_proba(self, examples: Examples, vectors: Vectors | None) -> NDArray[np.float64]:
        """Return P(click) of every row, shape (N,).

        Raises:
            ValueError: As ``ClickModel.predict_proba``.
        """
        vectors = self._needed(vectors)
        self.signature_.check(examples, vectors)
        check_examples(examples, vectors)
        frozen = None if vectors is None else FrozenVectors(vectors)
        return predict_network(self.network_, ExampleTensors(examples, frozen))

    def save_(self, folder: Path) -> None:
        """Write config, weights and their sums to a new folder."""
        config = {
            "kind": "tower",
            "config": self.config.model_dump(mode="json"),
            "signature": self.signature_.to_json(),
            "checks": [asdict(check) for check in self.checks_],
            "precision": self.precision_,
        }
        state = {k: v.detach().contiguous() for k, v in self.network_.state_dict().items()}
        with published_folder(Path(folder)) as temporary:
            (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            (temporary / "weights.safetensors").write_bytes(save_tensors(state))
            write_manifest(temporary)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save_`` wrote.

        Raises:
            ValueError: If a file is missing or changed.
        """
        fields: dict[str, Any] = json.loads(read_verified(Path(folder), "config.json"))
        model = cls(TowerConfig(**fields["config"]))
        model.signature_ = InputSignature.from_json(fields["signature"])
        model.checks_ = [Check(**check) for check in fields["checks"]]
        model.precision_ = fields["precision"]
        # The weights drawn here are overwritten at once; the caller's generator is left alone.
        with torch.random.fork_rng(devices=[]):
            network, _ = build_network(model.config, model.signature_)
        network.load_state_dict(load_tensors(read_verified(Path(folder), "weights.safetensors")))
        model.network_ = network.eval()
        return model

    def _needed(self, vectors: Vectors | None) -> Vectors | None:
        if not self.config.use_vectors:
            return None
        if vectors is None:
            raise ValueError(
                "vectors=None, but use_vectors=True; pass Vectors or set use_vectors=False "
                "for the baseline without an embedding tower"
            )
        return vectors


def build_network(
    config: TowerConfig, signature: InputSignature
) -> tuple[ClickNetwork, FusedTables | None]:
    """Return an unfitted network for these features and vectors, and its id tables.

    Weights are drawn from torch's global generator.
    """
    tables = None
    if signature.sparse_names:
        tables = FusedTables(
            signature.sparse_names,
            signature.vocabulary_sizes,
            config.embedding_dim,
            learning_rate=config.sparse_lr,
        )
    # The production tower is drawn before the embedding tower, so that with one seed it starts
    # from the same weights whether or not there are vectors.
    beside = config.use_vectors and config.single_tower
    widths = vector_widths(config.projected_dim, derived=config.derived, presence=config.presence)
    production = ProductionTower(
        tables,
        sparse_width=len(signature.sparse_names) * config.embedding_dim,
        dense_width=len(signature.dense_names) + (sum(widths) if beside else 0),
        cross_layers=config.cross_layers,
        cross_rank=config.cross_rank,
        mlp=config.production_mlp,
        dropout=config.dropout,
    )
    vectors = None
    if config.use_vectors:
        assert signature.vectors_dim is not None
        vectors = VectorFeatures(
            signature.vectors_dim,
            projected=config.projected_dim,
            derived=config.derived,
            presence=config.presence,
            dropout=config.vector_dropout,
        )
    network = ClickNetwork(
        production,
        vectors,
        single_tower=config.single_tower,
        tower_mlp=config.tower_mlp,
        head=config.head,
        dropout=config.dropout,
    )
    return network, tables


def _cosine_statistics(train: Examples, vectors: Vectors) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the two cosines where both their vectors exist, each (2,)."""
    stride = max(1, len(train) // _STATISTICS_ROWS)
    rows = gather_vectors(vectors, train.take(slice(None, None, stride)))
    cosine_N2 = derived_features(rows)
    present_N2 = (rows.present_N3[:, :1] * rows.present_N3[:, 1:]) > 0
    mean_2, deviation_2 = np.zeros(2, np.float32), np.ones(2, np.float32)
    for column in range(2):
        cosine_M = cosine_N2[present_N2[:, column], column]
        if len(cosine_M) and cosine_M.std() > 1e-6:
            mean_2[column], deviation_2[column] = cosine_M.mean(), cosine_M.std()
    return torch.from_numpy(mean_2), torch.from_numpy(deviation_2)
