"""Fitting a click network on the ranks of a torchrun job.

Every rank takes its share of each global batch; id tables are sharded by torchrec, everything else
is held by all ranks and its gradients are averaged. The weights after a step are those of one
rank with the same global batch, but for the order of sums and for dropout, whose masks are a
function of seed, step and rank.

Shape letters: N rows, B rows of this rank, V validation rows of this rank.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embeddings.ranks import Ranks
from embeddings.training_state import optimizer_tensors, restore_optimizer_
from features.kept_memory import keep_freed_memory_
from ranking.contract import Progress
from ranking.epoch_order import order_of_epoch, rows_of_epoch, sampled_shift
from ranking.inputs import ExampleTensors, slices
from ranking.metrics import auc, log_loss_nats
from ranking.model import ClickNetwork
from ranking.plateau import Plateau
from ranking.sharded_checkpoint import read_checkpoint_, write_checkpoint_
from ranking.sharded_weights import ShardedWeights
from ranking.summed_parts import backward_in_parts_
from ranking.train import Check, LabelledRows
from ranking.train_config import TrainConfig, use_bf16
from ranking.training_checkpoints import (
    RANKS_STATE,
    Cadence,
    left_by_ranks,
    not_written,
    refuse_other_training,
)

SCORING_BATCH = 8192
TIMED_STEPS = 256
ASKED_EVERY = 16
"""Steps after which ranks ask the first one whether it is time for a state."""


class ShardedTraining:
    """One training on all ranks; every rank constructs it with the same arguments and runs it.

    Args:
        network: With ``ShardedTables`` for its id tables; its other weights are equal on every
            rank.
        config: How to fit.
        seed: Fixes the order of the rows.
        ranks: The open group.
        checkpoint: Folder for the state, on storage that all ranks share; None keeps none. If it
            holds one, ``run`` goes on from there, whatever the number of ranks that wrote it: as
            many go on to the same bits.
        identity: What the training is, JSON values; another one's state is refused.
        cadence: When states are written; once a minute by default, and at the end.
        parts: Let one rank sum its gradients as so many ranks do, each over its part of the
            batch. Then what many ranks make of the same start must be the same, after any number
            of steps; a sum over the whole batch rounds otherwise, and training blows that up.
    """

    def __init__(
        self,
        network: ClickNetwork,
        config: TrainConfig,
        *,
        seed: int,
        ranks: Ranks,
        checkpoint: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        cadence: Cadence | None = None,
        parts: int = 1,
    ) -> None:
        self.network, self.config, self.ranks = network, config, ranks
        self.seed, self.checkpoint, self.parts = seed, checkpoint, parts
        self.identity, self.cadence = dict(identity or {}), cadence or Cadence()
        self.weights = ShardedWeights(network, config.ema_decay)
        self.tables, self.dense = self.weights.tables, self.weights.dense
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for p in self.dense.values() if p.ndim > 1],
                    "weight_decay": config.weight_decay,
                },
                {"params": [p for p in self.dense.values() if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=config.lr,
            fused=True,
        )
        self.plateau = Plateau(
            patience=config.patience, lr_drop=config.lr_drop, lr_drops=config.lr_drops
        )
        self.shift = sampled_shift(config.negative_rate)
        self.step, self.stopped = 0, False
        self.checks: list[Check] = []
        self.losses: list[float] = []
        """Of the steps since the last check, on this rank."""
        self.step_seconds: deque[float] = deque(maxlen=TIMED_STEPS)
        """Of the last steps of this process, checks and states apart."""
        if config.batch_size % ranks.world:
            raise ValueError(
                f"batch_size={config.batch_size} cannot be shared by {ranks.world} ranks; make it "
                f"a multiple of {ranks.world}"
            )
        if parts > 1 and ranks.world > 1:
            raise ValueError(f"parts={parts} is for one rank, and there are {ranks.world}")

    def run(
        self,
        train: LabelledRows,
        validation: LabelledRows,
        *,
        max_steps: int | None = None,
        progress: Progress | None = None,
    ) -> list[Check]:
        """Fit until the validation log loss stops falling, or for ``max_steps``.

        Each rank has all rows at hand and reads its own. Where the last batch of an epoch cannot
        be shared evenly, up to one row a rank is left out of that epoch.

        Returns:
            One record a check, in order; equal on every rank. The network is at its best check, or
            at the last step if there was none.
        """
        keep_freed_memory_()
        config, ranks = self.config, self.ranks
        bf16 = use_bf16(config.bf16)
        label_N = torch.tensor(train.label_N)
        weight_N = None if train.weight_N is None else torch.tensor(train.weight_N)
        steps_an_epoch = max(
            1, -(-rows_of_epoch(label_N, negative_rate=config.negative_rate) // config.batch_size)
        )
        check_every = max(1, steps_an_epoch // config.checks_per_epoch)
        last = steps_an_epoch * config.max_epochs
        last = last if max_steps is None else min(last, max_steps)
        self._go_on()
        order_N = None
        while self.step < last and not self.stopped:
            epoch, place = divmod(self.step, steps_an_epoch)
            anew = epoch > 0 and self._guard_large_tables_(epoch, begins=place == 0)
            if self.step <= config.warm_up_steps:
                self._set_rates_()
            if place == 0 or order_N is None:
                order_N = self._order(label_N, epoch, train.inputs.run_rows)
            rows = order_N[place * config.batch_size : (place + 1) * config.batch_size]
            rows = rows[: len(rows) - len(rows) % (ranks.world * self.parts)]
            began = time.monotonic()
            if len(rows):
                own_B = rows[ranks.own(len(rows))]
                weight_B = None if weight_N is None else weight_N[own_B]
                inputs = train.inputs.batch(own_B)
                self.losses.append(self._update(inputs, label_N[own_B], weight_B, bf16))
                self.step_seconds.append(time.monotonic() - began)
            self.step += 1
            if self.step % check_every:
                self._save_if_due_()
                continue
            p_click_N = self.predict(validation.inputs)
            self.checks.append(
                Check(
                    epoch=self.step / steps_an_epoch,
                    train_log_loss_nats=self._mean_over_ranks(self.losses),
                    validation_log_loss_nats=log_loss_nats(validation.label_N, p_click_N),
                    validation_auc=auc(validation.label_N, p_click_N),
                    learning_rate=config.lr * self.plateau.scale,
                )
            )
            self.losses.clear()
            if progress is not None:
                progress(self.step, last, self.checks[-1].in_words())
            # Tables that began anew are behind until the epoch ends.
            counts = not anew or place + 1 + check_every > steps_an_epoch
            if counts:
                self._settle_()
            if not self.stopped:
                self._save_if_due_()
        if self.checkpoint is not None:
            self.save_()
        self.weights.leave_()
        return self.checks

    def predict(self, inputs: ExampleTensors) -> NDArray[np.float64]:
        """Return P(click) of every row on every rank, shape (N,); a collective call."""
        ranks, world = self.ranks, self.ranks.world
        share = -(-len(inputs) // world)
        own_V = torch.arange(ranks.rank * share, (ranks.rank + 1) * share)
        # All ranks score equally many rows, or one would wait for the others for ever.
        own_V = own_V.clamp(max=len(inputs) - 1)
        self.network.eval()
        scores = []
        with torch.no_grad(), self.weights.averaged():
            for rows in slices(share, SCORING_BATCH):
                scores.append(torch.sigmoid(self.network(*self._there(inputs.batch(own_V[rows])))))
        self.network.train()
        gathered = ranks.gather(torch.cat(scores)[:, None])[:, 0]
        return gathered[: len(inputs)].double().cpu().numpy()

    def save_(self) -> None:
        """Write the state; a collective call.

        Raises:
            ValueError: If the disk is full; the state before remains.
        """
        assert self.checkpoint is not None
        began = time.monotonic()
        best = self.weights.best
        dense = self.weights.tensors() | optimizer_tensors(self.optimizer)
        record = {
            "identity": self.identity,
            "step": self.step,
            "stopped": self.stopped,
            "losses": self._losses_by_rank(),
            "checks": [asdict(check) for check in self.checks],
            "plateau": self.plateau.to_record(),
            "step_seconds": float(np.median(self.step_seconds)) if self.step_seconds else None,
        }
        at, groups = self.checkpoint / RANKS_STATE, list(self.tables.values())
        try:
            shards = None if best is None else best.shards
            write_checkpoint_(at, groups, dense, record, self.ranks, shards)
        except OSError as error:
            raise not_written(self.checkpoint, self.step, error) from error
        self.cadence.written_(time.monotonic() - began)

    def load_(self) -> None:
        """Take up the state that some ranks wrote, however many they were.

        Raises:
            ValueError: If it is another training's, or as ``read_checkpoint_``.
        """
        assert self.checkpoint is not None
        found = read_checkpoint_(self.checkpoint / RANKS_STATE, list(self.tables.values()))
        tensors, record = found.dense, found.record
        refuse_other_training(self.checkpoint, record["identity"], self.identity)
        self.weights.take_up_(tensors, found.best)
        restore_optimizer_(self.optimizer, tensors)
        self.step, self.stopped = int(record["step"]), record["stopped"]
        self.losses = self._own_losses(record["losses"])
        self.checks = [Check(**check) for check in record["checks"]]
        self.plateau = Plateau.of_record(record["plateau"])
        self._set_rates_()

    def _go_on(self) -> None:
        if self.checkpoint is not None and left_by_ranks(self.checkpoint):
            self.load_()

    def _save_if_due_(self) -> None:
        if self.checkpoint is None:
            return
        due = False
        if self.cadence.every_steps is not None:
            due = self.cadence.due(self.step)
        elif self.step % ASKED_EVERY == 0:
            # Clocks differ, so the first rank's decides.
            due = bool(self.ranks.agree(int(self.cadence.due(self.step))))
        if due:
            self.save_()

    def _losses_by_rank(self) -> list[list[float]]:
        if not self.losses:
            return []
        own_S1 = torch.tensor(self.losses, dtype=torch.float64, device=self.ranks.device)[:, None]
        return self.ranks.gather(own_S1).reshape(self.ranks.world, -1).tolist()

    def _own_losses(self, by_rank: list[list[float]]) -> list[float]:
        """This rank's losses; of another number of ranks, what they were on average."""
        if len(by_rank) == self.ranks.world:
            return by_rank[self.ranks.rank]
        return np.mean(by_rank, axis=0).tolist() if by_rank else []

    def _mean_over_ranks(self, losses: list[float]) -> float:
        mean = torch.tensor(float(np.mean(losses)) if losses else 0.0, device=self.ranks.device)
        return float(self.ranks.sum(mean)) / self.ranks.world

    def _order(self, label_N: Tensor, epoch: int, run_rows: int) -> Tensor:
        return order_of_epoch(
            label_N,
            negative_rate=self.config.negative_rate,
            seed=self.seed,
            epoch=epoch,
            run_rows=run_rows,
        )

    def _update(
        self, inputs: list[Tensor], label_B: Tensor, weight_B: Tensor | None, bf16: bool
    ) -> float:
        """One step; returns this rank's mean loss."""
        network, ranks = self.network, self.ranks
        network.train()
        self._seed_dropout_()
        self.optimizer.zero_grad(set_to_none=True)
        rows = self._there([*inputs, label_B, *([] if weight_B is None else [weight_B])])
        loss_of = partial(self._loss, weighted=weight_B is not None, bf16=bf16)
        if self.parts > 1:
            loss = backward_in_parts_(list(self.tables.values()), rows, self.parts, loss_of)
        else:
            loss = loss_of(rows)
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"the loss is {float(loss)} at step {self.step + 1} on rank {ranks.rank}; lower "
                "the learning rate"
            )
        if self.parts == 1:
            # torchrec divides the gradients of the tables by the number of ranks itself.
            loss.backward()
        ranks.sum_gradients_(self.dense.values(), ())
        if (sharers := max(ranks.world, self.parts)) > 1:
            for parameter in self.dense.values():
                assert parameter.grad is not None
                parameter.grad /= sharers
        self.optimizer.step()
        self.weights.average_(self.step + 1)
        return float(loss.detach())

    def _seed_dropout_(self) -> None:
        """Let masks depend on nothing that a state would have to keep."""
        drawn = np.random.SeedSequence((self.seed, self.step, self.ranks.rank))
        torch.manual_seed(int(drawn.generate_state(1, np.uint64)[0]))

    def _loss(self, rows: Sequence[Tensor], *, weighted: bool, bf16: bool) -> Tensor:
        """Mean loss of inputs, labels and, if there are any, weights of some rows."""
        *inputs, label_B, weight_B = rows if weighted else [*rows, None]
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=bf16):
            hidden = self.network.hidden(*inputs)
        # The last layer and the loss compute outside, in float32.
        assert label_B is not None
        return self.network.loss(hidden, label_B, weight_B=weight_B, shift=self.shift)

    def _settle_(self) -> None:
        """Note whether the last check is the best; drop the rate, or let training be over."""
        decision = self.plateau.observe(self.checks[-1].validation_log_loss_nats)
        if decision == "better":
            self.weights.keep_best_()
        elif decision == "drop":
            self.weights.take_back_best_()
            self._set_rates_()
        elif decision == "stop":
            self.stopped = True

    def _guard_large_tables_(self, epoch: int, *, begins: bool) -> bool:
        """Keep large tables from overfitting in this epoch; return whether they begin it anew."""
        config = self.config
        for number, group in enumerate(self.tables.values()):
            if config.large_tables == "freeze":
                group.freeze(config.large_table_rows)
            elif config.large_tables == "draw_again" and begins:
                group.draw_again_(config.large_table_rows, self.seed + 7919 * epoch + number)
        sizes = [size for group in self.tables.values() for size in group.sizes]
        large = any(size >= config.large_table_rows for size in sizes)
        return config.large_tables == "draw_again" and large

    def _set_rates_(self) -> None:
        config = self.config
        warm_up = config.warm_up_steps
        risen = min(1.0, (self.step + 1) / warm_up) if warm_up else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * self.plateau.scale * risen
        for group in self.tables.values():
            group.set_learning_rate(config.sparse_lr * self.plateau.scale * risen)

    def _there(self, inputs: list[Tensor]) -> list[Tensor]:
        return [part.to(self.ranks.device, non_blocking=True) for part in inputs]
