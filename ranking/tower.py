"""The neural click model: settings, fitting, scoring and storing of the two-tower network.

Shape letters: N rows, D size of the given vectors.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load_file

from embeddings.tensor_file import write_tensors_
from features.embedding_join import Vectors, derived_features, gather_vectors
from features.examples import Examples
from ranking.attention import history_columns, history_rows
from ranking.checkpoint import (
    published_folder,
    read_verified,
    verified_file,
    write_manifest,
)
from ranking.contract import InputSignature, Progress, check_examples, check_fit_inputs
from ranking.entire_space import log_p_click_and_buy, outcomes
from ranking.fit_job import FitJob
from ranking.fit_leader import current_leader
from ranking.fused_tables import FusedTables, TableGroup
from ranking.inputs import ExampleTensors, FrozenVectors, slices
from ranking.model import ClickNetwork
from ranking.network import build_network, network_to_fill
from ranking.position import POSITION_COLUMN, position_column
from ranking.sample_weights import sample_weights
from ranking.semantic_ids import ResidualCodebook, with_semantic_ids
from ranking.tower_config import TowerConfig
from ranking.train import SCORING_BATCH, Check, predict_network, train_network
from ranking.train_config import use_bf16
from ranking.training_checkpoints import kept_in
from ranking.warm_start import adagrad_tensors, carry_over_, restore_adagrad_

# Enough rows for a mean and a deviation to three digits, few enough to cost nothing.
_STATISTICS_ROWS = 65_536

WEIGHTS, SUMS = "weights.safetensors", "adagrad.safetensors"


class TowerRanker:
    """DCN-v2 with an embedding tower beside it (``ClickModel``; the paper's Figure 3).

    ``TowerConfig`` adds attention over the history, semantic ids, a gate by frequency, a tower
    for the position, and purchases.
    """

    name = "tower"
    network_: ClickNetwork
    signature_: InputSignature
    checks_: list[Check]
    """One record a validation check of the training, in order."""
    precision_: Literal["bfloat16", "float32"]
    """What the hidden layers computed in while training; scores are always float32."""
    codebook_: ResidualCodebook | None
    """What turns vectors into semantic ids, where there are any."""
    history_rows_: int | None
    """Catalogue rows that attention by ids has embeddings of; None where there is none."""

    def __init__(self, config: TowerConfig | None = None) -> None:
        self.config = config or TowerConfig()

    @property
    def uses_vectors(self) -> bool:
        """Whether ``fit`` needs vectors."""
        return self.config.needs_vectors

    def fit(
        self,
        train: Examples,
        validation: Examples,
        vectors: Vectors | None,
        *,
        seed: int,
        progress: Progress | None = None,
        checkpoints: Path | None = None,
        start_from: TowerRanker | None = None,
    ) -> Self:
        """Learn from ``train`` until the log loss on ``validation`` stops falling.

        Args:
            checkpoints: Folder that the state of the training is kept in, for a repeat of the same
                fit to go on from after a kill; the caller removes it when the model is safe.
            start_from: A fitted model whose weights to begin with; ``train`` comes from features
                that continue those of that model.

        Raises:
            ValueError: As ``ClickModel.fit``; or if a part of the network is asked for and what
                it learns from (purchases, positions, the gated feature) is not there.
        """
        job, network, tables = self.begin_fit_(train, validation, vectors, seed=seed)
        if start_from is not None:
            carry_over_(network, job.signature, start_from)
        leader = current_leader()
        # Dropout draws from torch's global generator; the caller's is kept.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if leader is None:
                rows = job.tensors()
                checks = train_network(
                    network,
                    tables,
                    rows[0],
                    job.outcome_N,
                    rows[1],
                    job.label_N,
                    self.config,
                    seed=seed,
                    train_weight_N=sample_weights(train),
                    progress=progress,
                    checkpoints=None if checkpoints is None else kept_in(checkpoints, job, network),
                )
            else:
                checks = leader.train(job, network, progress, checkpoints)
        self.network_, self.checks_ = network.eval(), checks
        self.precision_ = "bfloat16" if use_bf16(self.config.bf16) else "float32"
        return self

    def begin_fit_(
        self, train: Examples, validation: Examples, vectors: Vectors | None, *, seed: int
    ) -> tuple[FitJob, ClickNetwork, FusedTables | TableGroup | None]:
        """Check the inputs, learn what is counted and not trained, and draw the first weights.

        Returns:
            What decides the fit, the network as it begins, and its id tables.

        Raises:
            ValueError: As ``fit``.
        """
        config, vectors = self.config, self._needed(vectors)
        signature = check_fit_inputs(train, validation, vectors)
        assert train.label_N is not None and validation.label_N is not None
        outcome_N = outcomes(train) if config.entire_space else train.label_N
        self._fit_integers(train, vectors, signature, seed)
        # First weights draw from torch's global generator; the caller's is kept.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, tables = build_network(config, signature, self.history_rows_)
            self._initialise_(network, signature, train, vectors)
        self.signature_ = signature
        job = FitJob(
            config=config,
            signature=signature,
            history_rows=self.history_rows_,
            seed=seed,
            train=self._with_integers(train, vectors),
            outcome_N=np.asarray(outcome_N, np.float32),
            validation=self._with_integers(validation, vectors),
            label_N=np.asarray(validation.label_N, np.float32),
            vectors=vectors,
        )
        return job, network, tables

    def predict_proba(self, examples: Examples, vectors: Vectors | None) -> NDArray[np.float64]:
        """Return P(click) of every row, shape (N,).

        Raises:
            ValueError: As ``ClickModel.predict_proba``.
        """
        return predict_network(self.network_, self._inputs(examples, vectors))

    def predict_purchase(self, examples: Examples, vectors: Vectors | None) -> NDArray[np.float64]:
        """Return P(click) and P(click and buy) of every row, shape (N, 2).

        Raises:
            ValueError: As ``ClickModel.predict_proba``, or if purchases were not learned.
        """
        if not self.config.entire_space:
            raise ValueError(
                "predict_purchase of a model that learned clicks alone; fit it with "
                "entire_space=True"
            )
        inputs = self._inputs(examples, vectors)
        p_N2 = np.empty((len(inputs), 2), np.float64)
        with torch.no_grad():
            for rows in slices(len(inputs), SCORING_BATCH):
                hidden = self.network_.hidden(*inputs.batch(rows))
                assert hidden.buy_logit_B is not None
                click_B = self.network_.logit_of(hidden)
                both_B = log_p_click_and_buy(click_B, hidden.buy_logit_B)
                p_N2[rows] = torch.stack([torch.sigmoid(click_B), both_B.exp()], dim=1).numpy()
        return p_N2

    def save_(self, folder: Path) -> None:
        """Write config, weights and their sums to a new folder."""
        config = {
            "kind": "tower",
            "config": self.config.model_dump(mode="json"),
            "signature": self.signature_.to_json(),
            "checks": [asdict(check) for check in self.checks_],
            "precision": self.precision_,
            "history_rows": self.history_rows_,
        }
        with published_folder(Path(folder)) as temporary:
            (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            write_tensors_(temporary / WEIGHTS, self.network_.state_dict())
            write_tensors_(temporary / SUMS, adagrad_tensors(self.network_))
            if self.codebook_ is not None:
                arrays = {"centroid": self.codebook_.centroid_LKD}
                (temporary / "semantic_ids.safetensors").write_bytes(save_arrays(arrays))
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
        model.history_rows_ = fields.get("history_rows")
        model.codebook_ = None
        if model.config.semantic_levels:
            arrays = load_arrays(read_verified(Path(folder), "semantic_ids.safetensors"))
            model.codebook_ = ResidualCodebook(centroid_LKD=arrays["centroid"])
        network = network_to_fill(model.config, model.signature_, model.history_rows_)
        network.load_state_dict(load_file(verified_file(Path(folder), WEIGHTS)))
        restore_adagrad_(network, load_file(verified_file(Path(folder), SUMS)))
        model.network_ = network.eval()
        return model

    def _needed(self, vectors: Vectors | None) -> Vectors | None:
        if not self.config.needs_vectors:
            return None
        if vectors is None:
            raise ValueError(
                f"vectors=None, but {self._why_vectors()}; pass Vectors or set use_vectors=False "
                "(and no semantic ids, gate or attention by vectors) for the baseline"
            )
        return vectors

    def _why_vectors(self) -> str:
        reasons = {
            "use_vectors=True": self.config.use_vectors,
            "attention='vectors'": self.config.attention == "vectors",
            f"semantic_levels={self.config.semantic_levels}": self.config.semantic_levels > 0,
            f"frequency_gate={self.config.frequency_gate!r}": bool(self.config.frequency_gate),
        }
        return " and ".join(reason for reason, given in reasons.items() if given)

    def _inputs(self, examples: Examples, vectors: Vectors | None) -> ExampleTensors:
        """What the network reads of rows to score, checked against what it was fitted with."""
        vectors = self._needed(vectors)
        self.signature_.check(examples, vectors)
        check_examples(examples, vectors)
        if vectors is not None and self.network_.attention is not None:
            self.network_.attention.set_vectors(vectors)
        frozen = None if vectors is None else FrozenVectors(vectors)
        return ExampleTensors(self._with_integers(examples, vectors), frozen)

    def _fit_integers(
        self, train: Examples, vectors: Vectors | None, signature: InputSignature, seed: int
    ) -> None:
        """Learn what ``_with_integers`` needs, and refuse parts that have nothing to learn from."""
        config = self.config
        if config.position_slots and (train.position_N is None or not train.position_N.any()):
            raise ValueError(
                f"position_slots={config.position_slots}, but the training examples carry no "
                "positions; is the column 'position' missing?"
            )
        if config.frequency_gate not in (None, *signature.sparse_names):
            raise ValueError(
                f"frequency_gate={config.frequency_gate!r} is no sparse feature; there are "
                f"{', '.join(signature.sparse_names) or 'none'}"
            )
        self.history_rows_ = history_rows(train) if config.attention == "ids" else None
        self.codebook_ = None
        if config.semantic_levels:
            assert vectors is not None
            self.codebook_ = ResidualCodebook.fit(
                vectors, levels=config.semantic_levels, codes=config.semantic_codes, seed=seed
            )

    def _with_integers(self, examples: Examples, vectors: Vectors | None) -> Examples:
        """The examples with all integers that the network reads among their sparse features."""
        if self.codebook_ is not None:
            assert vectors is not None
            examples = with_semantic_ids(examples, vectors, self.codebook_)
        names, columns = [], []
        if self.config.attention != "none":
            history_names, row_NL = history_columns(examples, self.history_rows_)
            names += history_names
            columns.append(row_NL)
        if slots := self.config.position_slots:
            names.append(POSITION_COLUMN)
            columns.append(position_column(examples.position_N, len(examples), slots))
        if not columns:
            return examples
        integer_NK = np.concatenate(columns, axis=1)
        return replace(
            examples,
            sparse_names=(*examples.sparse_names, *names),
            sparse_NF=np.concatenate([examples.sparse_NF, integer_NK], axis=1),
            vocabulary_sizes=(*examples.vocabulary_sizes, *([0] * len(names))),
        )

    def _initialise_(
        self,
        network: ClickNetwork,
        signature: InputSignature,
        train: Examples,
        vectors: Vectors | None,
    ) -> None:
        """Start each part from what a count of the training rows says alone."""
        assert train.label_N is not None
        network.set_base_rate(float(train.label_N.mean()))
        if vectors is not None and network.vectors is not None:
            network.vectors.set_cosine_statistics(*_cosine_statistics(train, vectors))
        if vectors is not None and network.attention is not None:
            network.attention.set_vectors(vectors)
        if network.position is not None:
            slots = self.config.position_slots
            position_N1 = position_column(train.position_N, len(train), slots)
            network.position.set_rates(position_N1[:, 0], train.label_N)
        if network.production.gate is not None:
            network.production.gate.set_counts(train.sparse_NF[:, network.production.gated])
        if network.purchase is not None:
            assert train.purchased_N is not None
            network.purchase.set_rate(float(train.purchased_N.sum() / train.label_N.sum()))


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
