"""Fitting a click network on the ranks of a torchrun job.

Every rank takes its share of each global batch; id tables are sharded by torchrec, everything else
is held by all ranks and its gradients are averaged. The weights after a step are those of one
rank with the same global batch, but for the order of sums.

Shape letters: N rows, B rows of this rank, V validation rows of this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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
from ranking.inputs import ExampleTensors, slices
from ranking.metrics import auc, log_loss_nats
from ranking.model import ClickNetwork, Hidden
from ranking.sharded_checkpoint import checkpoint_exists, read_checkpoint_, write_checkpoint_
from ranking.sharded_tables import Shard, ShardedTables
from ranking.train import Check
from ranking.train_config import TrainConfig, refuse_alone_only, use_bf16

SCORING_BATCH = 8192


@dataclass(kw_only=True)
class _Progress:
    """How far early stopping has come; equal on every rank."""

    checks: list[Check] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last check, on this rank."""
    scale: float = 1.0
    """Of the learning rates."""
    drops: int = 0
    stale: int = 0
    best_loss: float = float("inf")
    best: dict[str, Any] | None = None

    def to_record(self) -> dict[str, Any]:
        kept = ("losses", "scale", "drops", "stale", "best_loss")
        checks = [asdict(check) for check in self.checks]
        return {**{name: getattr(self, name) for name in kept}, "checks": checks}

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> _Progress:
        checks = [Check(**check) for check in record["checks"]]
        return cls(**{**record, "checks": checks})


class _Recorder:
    """Answers lookups with nothing and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[ShardedTables, Tensor]] = []

    def __call__(self, table: ShardedTables, sparse_BF: Tensor) -> Tensor:
        self.asked.append((table, sparse_BF))
        return torch.zeros(len(sparse_BF), sparse_BF.shape[1] * table.width)


@contextmanager
def _lookups(
    tables: Iterable[ShardedTables], answer: Callable[[ShardedTables, Tensor], Tensor]
) -> Iterator[None]:
    """Let ``answer`` stand for the lookups of some tables."""
    tables = list(tables)
    for table in tables:
        table.__dict__["forward"] = partial(answer, table)
    try:
        yield
    finally:
        for table in tables:
            del table.__dict__["forward"]


class ShardedTraining:
    """One training on all ranks; every rank constructs it with the same arguments and runs it.

    Args:
        network: With ``ShardedTables`` for its id tables; its other weights are equal on every
            rank.
        config: How to fit.
        seed: Fixes the order of the rows.
        ranks: The open group.
        checkpoint: Folder for the state, on storage that all ranks share; None keeps none. If it
            holds one, ``run`` goes on from there, whatever the number of ranks that wrote it.
        every: Steps from one checkpoint to the next.
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
        every: int = 1000,
        parts: int = 1,
    ) -> None:
        self.network, self.config, self.ranks = network, config, ranks
        self.seed, self.checkpoint, self.every = seed, checkpoint, every
        self.parts = parts
        self.tables = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, ShardedTables)
        }
        held = {id(each) for group in self.tables.values() for each in group.parameters()}
        self.dense = {
            name: parameter
            for name, parameter in network.named_parameters()
            if id(parameter) not in held
        }
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
        self.step, self.progress = 0, _Progress()
        if config.batch_size % ranks.world:
            raise ValueError(
                f"batch_size={config.batch_size} cannot be shared by {ranks.world} ranks; make it "
                f"a multiple of {ranks.world}"
            )
        if parts > 1 and ranks.world > 1:
            raise ValueError(f"parts={parts} is for one rank, and there are {ranks.world}")
        refuse_alone_only(config, weighted=False)

    def run(
        self,
        train: ExampleTensors,
        label_N: NDArray[np.float32],
        validation: ExampleTensors,
        validation_label_N: NDArray[np.float32],
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
        labels_N = torch.tensor(label_N)
        steps_an_epoch = max(1, (len(train) + config.batch_size - 1) // config.batch_size)
        check_every = max(1, steps_an_epoch // config.checks_per_epoch)
        last = steps_an_epoch * config.max_epochs
        last = last if max_steps is None else min(last, max_steps)
        self._go_on()
        state, order_N = self.progress, None
        while self.step < last:
            epoch, place = divmod(self.step, steps_an_epoch)
            if epoch:
                self._guard_large_tables_(epoch, begins=place == 0)
            if self.step <= config.warm_up_steps:
                self._set_rates_()
            if place == 0 or order_N is None:
                order = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order_N = torch.randperm(len(train), generator=order)
            rows = order_N[place * config.batch_size : (place + 1) * config.batch_size]
            rows = rows[: len(rows) - len(rows) % (ranks.world * self.parts)]
            if len(rows):
                own_B = rows[ranks.own(len(rows))]
                state.losses.append(self._update(train.batch(own_B), labels_N[own_B], bf16))
            self.step += 1
            if self.step % check_every:
                self._save_if_due_()
                continue
            p_click_N = self.predict(validation)
            state.checks.append(
                Check(
                    epoch=self.step / steps_an_epoch,
                    train_log_loss_nats=self._mean_over_ranks(state.losses),
                    validation_log_loss_nats=log_loss_nats(validation_label_N, p_click_N),
                    validation_auc=auc(validation_label_N, p_click_N),
                    learning_rate=config.lr * state.scale,
                )
            )
            state.losses.clear()
            if progress is not None:
                progress(self.step, last, str(asdict(state.checks[-1])))
            if self._settled(state):
                break
            self._save_if_due_()
        if self.checkpoint is not None:
            self.save_()
        if state.best is not None:
            self._put_back_(state.best)
        return state.checks

    def predict(self, inputs: ExampleTensors) -> NDArray[np.float64]:
        """Return P(click) of every row on every rank, shape (N,); a collective call."""
        ranks, world = self.ranks, self.ranks.world
        share = -(-len(inputs) // world)
        own_V = torch.arange(ranks.rank * share, (ranks.rank + 1) * share)
        # All ranks score equally many rows, or one would wait for the others for ever.
        own_V = own_V.clamp(max=len(inputs) - 1)
        self.network.eval()
        scores = []
        with torch.no_grad():
            for rows in slices(share, SCORING_BATCH):
                scores.append(torch.sigmoid(self.network(*self._there(inputs.batch(own_V[rows])))))
        self.network.train()
        gathered = ranks.gather(torch.cat(scores)[:, None])[:, 0]
        return gathered[: len(inputs)].double().cpu().numpy()

    def save_(self, part: str = "state") -> None:
        """Write the state, or the best weights so far; a collective call."""
        assert self.checkpoint is not None
        dense = {f"dense.{name}": value for name, value in self._dense_state().items()}
        record: dict[str, Any] = {"step": self.step}
        if part == "state":
            dense |= optimizer_tensors(self.optimizer)
            record["progress"] = self.progress.to_record()
        groups = list(self.tables.values())
        write_checkpoint_(self.checkpoint / part, groups, dense, record, self.ranks)

    def load_(self) -> None:
        """Take up the state that some ranks wrote, however many they were."""
        assert self.checkpoint is not None
        best = None
        if checkpoint_exists(self.checkpoint / "best"):
            self._read_("best")
            best = self._copied_state()
        tensors, record = self._read_("state")
        restore_optimizer_(self.optimizer, tensors)
        self.step = int(record["step"])
        self.progress = _Progress.of_record(record["progress"])
        if self.progress.checks:
            self.progress.best = best
        self._set_rates_()

    def _read_(self, part: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        assert self.checkpoint is not None
        tensors, record = read_checkpoint_(self.checkpoint / part, list(self.tables.values()))
        with torch.no_grad():
            for name, value in self._dense_state().items():
                value.copy_(tensors[f"dense.{name}"])
        return tensors, record

    def _go_on(self) -> None:
        if self.checkpoint is not None and checkpoint_exists(self.checkpoint / "state"):
            self.load_()

    def _save_if_due_(self) -> None:
        if self.checkpoint is not None and self.step % self.every == 0:
            self.save_()

    def _mean_over_ranks(self, losses: list[float]) -> float:
        mean = torch.tensor(float(np.mean(losses)) if losses else 0.0, device=self.ranks.device)
        return float(self.ranks.sum(mean)) / self.ranks.world

    def _update(self, inputs: list[Tensor], label_B: Tensor, bf16: bool) -> float:
        """One step; returns this rank's mean loss."""
        network, ranks = self.network, self.ranks
        network.train()
        self.optimizer.zero_grad(set_to_none=True)
        device_inputs, labels = self._there(inputs), label_B.to(ranks.device)
        if self.parts > 1:
            loss = self._backward_in_parts_(device_inputs, labels, bf16)
        else:
            loss = network.loss(self._hidden(device_inputs, bf16), labels)
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
        return float(loss.detach())

    def _hidden(self, inputs: list[Tensor], bf16: bool) -> Hidden:
        """What the last layer takes; that layer and the loss compute outside, in float32."""
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=bf16):
            return self.network.hidden(*inputs)

    def _backward_in_parts_(self, inputs: list[Tensor], label_B: Tensor, bf16: bool) -> Tensor:
        """Leave gradients as ``parts`` ranks sum them; return the mean loss.

        Rows are looked up once for the whole batch, so that tables are updated once, as they are
        where many ranks exchange what they look up.
        """
        recorder = _Recorder()
        with torch.no_grad(), _lookups(self.tables.values(), recorder):
            self._hidden(inputs, bf16)
        looked_up = [table(sparse_BF) for table, sparse_BF in recorder.asked]
        leaves = [out_BW.detach().requires_grad_() for out_BW in looked_up]
        losses = []
        for part in range(self.parts):
            own = [value.chunk(self.parts)[part] for value in inputs]
            served = iter([leaf.chunk(self.parts)[part] for leaf in leaves])
            with _lookups(self.tables.values(), lambda _table, _ids, rows=served: next(rows)):
                hidden = self._hidden(own, bf16)
            loss = self.network.loss(hidden, label_B.chunk(self.parts)[part])
            loss.backward()
            losses.append(loss.detach())
        for out_BW, leaf in zip(looked_up, leaves, strict=True):
            assert leaf.grad is not None
            out_BW.backward(leaf.grad / self.parts)
        return torch.stack(losses).mean()

    def _settled(self, state: _Progress) -> bool:
        """Note whether the last check is the best; drop the rate or say that training is over."""
        config, check = self.config, state.checks[-1]
        if check.validation_log_loss_nats < state.best_loss:
            state.best_loss, state.stale = check.validation_log_loss_nats, 0
            state.best = self._copied_state()
            if self.checkpoint is not None:
                self.save_("best")
            return False
        state.stale += 1
        if state.stale < config.patience:
            return False
        assert state.best is not None
        self._put_back_(state.best)
        if state.drops == config.lr_drops:
            return True
        state.scale, state.drops, state.stale = state.scale * config.lr_drop, state.drops + 1, 0
        self._set_rates_()
        return False

    def _guard_large_tables_(self, epoch: int, *, begins: bool) -> None:
        """Do with large tables, which overfit in a second epoch, what the settings say."""
        config = self.config
        for number, group in enumerate(self.tables.values()):
            if config.large_tables == "freeze":
                group.freeze(config.large_table_rows)
            elif config.large_tables == "draw_again" and begins:
                group.draw_again_(config.large_table_rows, self.seed + 7919 * epoch + number)

    def _set_rates_(self) -> None:
        config = self.config
        warm_up = config.warm_up_steps
        risen = min(1.0, (self.step + 1) / warm_up) if warm_up else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * self.progress.scale * risen
        for group in self.tables.values():
            group.set_learning_rate(config.sparse_lr * self.progress.scale * risen)

    def _dense_state(self) -> dict[str, Tensor]:
        """Parameters and buffers that all ranks share.

        Not by ``state_dict``, whose keys torchrec's sharded tables rewrite on the way.
        """
        sharded = tuple(f"{name}." for name in self.tables)
        named = [*self.network.named_parameters(), *self.network.named_buffers()]
        return {name: value.detach() for name, value in named if not name.startswith(sharded)}

    def _shards(self) -> list[Shard]:
        return [shard for group in self.tables.values() for shard in group.shards()]

    def _copied_state(self) -> dict[str, Any]:
        return {
            "dense": {name: value.detach().clone() for name, value in self._dense_state().items()},
            "shards": [shard.weight_SD.detach().clone() for shard in self._shards()],
        }

    def _put_back_(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, value in self._dense_state().items():
                value.copy_(state["dense"][name])
            for shard, kept in zip(self._shards(), state["shards"], strict=True):
                shard.weight_SD.copy_(kept)

    def _there(self, inputs: list[Tensor]) -> list[Tensor]:
        return [part.to(self.ranks.device, non_blocking=True) for part in inputs]
