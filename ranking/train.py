"""The loop that fits a click network.

Shuffled batches; every so often the validation log loss. When it has stopped falling, the best
weights are taken back and the learning rate drops; when it stops again, training ends with the best
weights. A training with checkpoints that was killed goes on to the same bits.

Shape letters: N rows, B batch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.kept_memory import keep_freed_memory_
from ranking.contract import Progress
from ranking.dense_weights import DenseWeights
from ranking.epoch_order import order_of_epoch, rows_of_epoch, sampled_shift
from ranking.fused_tables import FusedTables, TableGroup
from ranking.inputs import ExampleTensors, slices
from ranking.metrics import auc, log_loss_nats
from ranking.model import ClickNetwork
from ranking.plateau import Plateau
from ranking.train_config import TrainConfig, use_bf16
from ranking.training_checkpoints import Checkpoints

SCORING_BATCH = 8192
"""Rows that are scored at a time."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """How far training was when the validation rows were scored."""

    epoch: float
    """Passes over the training rows so far."""
    train_log_loss_nats: float
    """Mean over the steps since the last check, dropout on."""
    validation_log_loss_nats: float
    validation_auc: float
    learning_rate: float

    def in_words(self) -> str:
        """Return it as a progress report says it."""
        return (
            f"epoch {self.epoch:.1f}: validation log loss {self.validation_log_loss_nats:.5f}, "
            f"AUC {self.validation_auc:.4f}, learning rate {self.learning_rate:g}"
        )


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Inputs and labels of some impressions, as ``train_network`` takes them."""

    inputs: ExampleTensors
    label_N: NDArray[np.float32]
    weight_N: NDArray[np.float32] | None = None


def train_network(
    network: ClickNetwork,
    tables: FusedTables | TableGroup | None,
    train: ExampleTensors,
    train_label_N: NDArray[np.float32],
    validation: ExampleTensors,
    validation_label_N: NDArray[np.float32],
    config: TrainConfig,
    *,
    seed: int,
    train_weight_N: NDArray[np.float32] | None = None,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> list[Check]:
    """Fit ``network`` in place and leave it at its best validation log loss.

    Args:
        network: The network to fit.
        tables: Its id tables, which are updated inside the backward pass; None if it has none.
        train, validation: Inputs of each row.
        train_label_N: What ``ClickNetwork.loss`` takes: 1 where clicked, else 0.
        validation_label_N: 1 where clicked, else 0.
        config: How to fit.
        seed: Fixes the order of the rows. Dropout draws from torch's global generator.
        train_weight_N: How much each row counts in the loss, of mean 1; None for all alike.
        progress: Called at every check with (steps, steps at most, figures).
        checkpoints: Where the state is kept; if there is one, training goes on from it.

    Returns:
        One record a check, in order.

    Raises:
        ValueError: If the loss of a step is not finite, or as ``Checkpoints``.
    """
    training = Training(network, tables, config, seed=seed)
    if checkpoints is not None:
        training.resume_(checkpoints)
    return training.run_(
        LabelledRows(inputs=train, label_N=train_label_N, weight_N=train_weight_N),
        LabelledRows(inputs=validation, label_N=validation_label_N),
        progress,
        checkpoints,
    )


class Training:
    """One training, between two steps: all that decides how it goes on.

    Args: As ``train_network``.
    """

    def __init__(
        self,
        network: ClickNetwork,
        tables: FusedTables | TableGroup | None,
        config: TrainConfig,
        *,
        seed: int,
    ) -> None:
        self.network, self.tables, self.config, self.seed = network, tables, config, seed
        self.bf16 = use_bf16(config.bf16)
        self.dense = DenseWeights(
            network,
            lr=config.lr,
            weight_decay=config.weight_decay,
            bf16=self.bf16,
            ema_decay=config.ema_decay,
        )
        self.plateau = Plateau(
            patience=config.patience, lr_drop=config.lr_drop, lr_drops=config.lr_drops
        )
        self.shift = sampled_shift(config.negative_rate)
        self.step, self.stopped = 0, False
        self.losses: list[float] = []
        self.checks: list[Check] = []
        self.best: dict[str, Tensor] = {}
        """Weights at the best check; empty before the first, and where the last was the best."""

    def run_(
        self,
        train: LabelledRows,
        validation: LabelledRows,
        progress: Progress | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> list[Check]:
        """Train to the end, as ``train_network``."""
        keep_freed_memory_()
        label_N, config = torch.tensor(train.label_N), self.config
        weight_N = None if train.weight_N is None else torch.tensor(train.weight_N)
        rows_read = rows_of_epoch(label_N, negative_rate=config.negative_rate)
        batches = slices(rows_read, config.batch_size)
        at_most = len(batches) * config.max_epochs
        check_every = max(1, len(batches) // config.checks_per_epoch)
        self._set_rates()
        self.dense.compute_()
        self.network.train()
        while self.step < at_most and not self.stopped:
            epoch, first = divmod(self.step, len(batches))
            anew = epoch > 0 and self._guard_large_tables_(begins=first == 0)
            order_N = self._order(label_N, epoch, train.inputs.run_rows)
            for rows in batches[first:]:
                row_B = order_N[rows]
                weight_B = None if weight_N is None else weight_N[row_B]
                self._step_(train.inputs.batch(row_B), label_N[row_B], weight_B)
                if self.step % check_every == 0:
                    # Tables that began anew are behind until the epoch ends.
                    counts = not anew or rows.stop + check_every * config.batch_size > rows_read
                    epochs, last = self.step / len(batches), self.step == at_most
                    self._check_(validation, epochs, counts=counts, last=last)
                    if progress is not None:
                        progress(self.step, at_most, self.checks[-1].in_words())
                if checkpoints is not None and checkpoints.due(self.step):
                    checkpoints.write_(self.step, self.tensors(), self.record())
                if self.stopped:
                    break
        self._take_back_best_()
        self.dense.release_()
        return self.checks

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights, the optimizers' state, the best weights and the generator's state."""
        found = {f"dense.{name}": value for name, value in self.dense.tensors().items()}
        if self.tables is not None:
            for number, weight_VE in enumerate(self.tables.weights()):
                found[f"table.{number}"] = weight_VE.detach()
            for number, sum_V in enumerate(self.tables.accumulators()):
                found[f"adagrad.{number}"] = sum_V.detach()
        found |= {f"best.{name}": value for name, value in self.best.items()}
        return {**found, "generator": torch.get_rng_state()}

    def record(self) -> dict[str, Any]:
        """Return the rest of the state: place in the data, rate, metrics."""
        return {
            "dense_steps": self.dense.steps,
            "stopped": self.stopped,
            "losses": self.losses,
            "checks": [asdict(check) for check in self.checks],
            "plateau": self.plateau.to_record(),
        }

    @torch.no_grad()
    def resume_(self, checkpoints: Checkpoints) -> None:
        """Go on from the last checkpoint, if there is one."""
        found = checkpoints.read()
        if found is None:
            return
        tensors, record = found
        self.step = record["step"]
        dense = {k.removeprefix("dense."): v for k, v in tensors.items() if k.startswith("dense.")}
        self.dense.restore_(dense, record["dense_steps"])
        if self.tables is not None:
            for number, weight_VE in enumerate(self.tables.weights()):
                weight_VE.copy_(tensors[f"table.{number}"])
            for number, sum_V in enumerate(self.tables.accumulators()):
                sum_V.copy_(tensors[f"adagrad.{number}"])
        self.best = {
            k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")
        }
        self.plateau = Plateau.of_record(record["plateau"])
        self.checks = [Check(**check) for check in record["checks"]]
        self.losses, self.stopped = record["losses"], record["stopped"]
        torch.set_rng_state(tensors["generator"])

    def _order(self, label_N: Tensor, epoch: int, run_rows: int) -> Tensor:
        return order_of_epoch(
            label_N,
            negative_rate=self.config.negative_rate,
            seed=self.seed,
            epoch=epoch,
            run_rows=run_rows,
        )

    def _step_(self, inputs: list[Tensor], label_B: Tensor, weight_B: Tensor | None) -> None:
        if self.step < self.config.warm_up_steps:
            self._set_rates()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            hidden = self.network.hidden(*inputs)
        loss = self.network.loss(hidden, label_B, weight_B=weight_B, shift=self.shift)
        self.step += 1
        self.losses.append(loss.item())
        if not np.isfinite(self.losses[-1]):
            raise ValueError(
                f"the loss of step {self.step} is {self.losses[-1]}; must be finite. The weights "
                f"have diverged: lower lr={self.config.lr:g} or sparse_lr="
                f"{self.config.sparse_lr:g}, or raise warm_up_steps"
            )
        loss.backward()
        self.dense.step_()

    def _check_(self, validation: LabelledRows, epoch: float, *, counts: bool, last: bool) -> None:
        self.dense.score_()
        p_click_N = predict_network(self.network, validation.inputs)
        self.dense.compute_()
        self.checks.append(
            Check(
                epoch=epoch,
                train_log_loss_nats=float(np.mean(self.losses)),
                validation_log_loss_nats=log_loss_nats(validation.label_N, p_click_N),
                validation_auc=auc(validation.label_N, p_click_N),
                learning_rate=self.config.lr * self.plateau.scale,
            )
        )
        self.losses.clear()
        if not counts:
            return
        decision = self.plateau.observe(self.checks[-1].validation_log_loss_nats)
        if decision == "better":
            if last:
                # What no further step can change needs no copy.
                self.best = {}
            else:
                self._keep_best_()
        elif decision == "drop":
            self._take_back_best_()
            self._set_rates()
        elif decision == "stop":
            self.stopped = True

    @torch.no_grad()
    def _keep_best_(self) -> None:
        """Copy the weights, over the copy before: there may be no room for another beside it."""
        self.best |= {f"dense.{name}": value for name, value in self.dense.best_now().items()}
        for number, weight_VE in enumerate([] if self.tables is None else self.tables.weights()):
            name = f"table.{number}"
            if name not in self.best:
                self.best[name] = torch.empty_like(weight_VE)
            self.best[name].copy_(weight_VE)

    @torch.no_grad()
    def _take_back_best_(self) -> None:
        if not self.best:
            return
        names = [name for name in self.best if name.startswith("dense.")]
        self.dense.take_back_({name.removeprefix("dense."): self.best[name] for name in names})
        if self.tables is not None:
            for number, weight_VE in enumerate(self.tables.weights()):
                weight_VE.copy_(self.best[f"table.{number}"])

    def _guard_large_tables_(self, *, begins: bool) -> bool:
        """Keep large tables from overfitting in this epoch; return whether they begin it anew."""
        tables, config = self.tables, self.config
        if tables is None or config.large_tables == "train":
            return False
        if config.large_tables == "freeze":
            tables.freeze(config.large_table_rows)
            return False
        if begins:
            tables.draw_again(config.large_table_rows)
        return any(len(weight_VE) >= config.large_table_rows for weight_VE in tables.weights())

    def _set_rates(self) -> None:
        warm_up = self.config.warm_up_steps
        warmth = min(1.0, (self.step + 1) / warm_up) if warm_up else 1.0
        self.dense.set_rate(self.config.lr * self.plateau.scale * warmth)
        if self.tables is not None:
            self.tables.set_learning_rate(self.config.sparse_lr * self.plateau.scale * warmth)


def predict_network(network: ClickNetwork, inputs: ExampleTensors) -> NDArray[np.float64]:
    """Return P(click) of every row in float32 arithmetic, shape (N,)."""
    p_click_N = np.empty(len(inputs), np.float64)
    was_training = network.training
    network.eval()
    with torch.no_grad():
        for rows in slices(len(inputs), SCORING_BATCH):
            p_click_N[rows] = torch.sigmoid(network(*inputs.batch(rows))).numpy()
    network.train(was_training)
    return p_click_N
