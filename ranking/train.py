"""The loop that fits a click network.

Shuffled batches; every so often the validation log loss. When it has stopped falling, the best
weights are taken back and the learning rate drops tenfold (in published CTR benchmark logs this is
worth more than the whole spread of deep models); when it stops again, training ends with the best
weights.

Shape letters: N rows, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ranking.contract import Progress
from ranking.fused_tables import FusedTables, TableGroup
from ranking.inputs import ExampleTensors, slices
from ranking.metrics import auc, log_loss_nats
from ranking.model import ClickNetwork

SCORING_BATCH = 8192
"""Rows that are scored at a time."""


class TrainConfig(BaseModel):
    """How a click network is fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=1024, ge=1)
    """Impressions a step."""
    max_epochs: int = Field(default=3, ge=1)
    """Passes over the training rows at most; training mostly stops earlier."""
    checks_per_epoch: int = Field(default=4, ge=1)
    """How often an epoch the validation rows are scored."""
    lr: float = Field(default=2e-3, gt=0)
    """First learning rate of the dense layers (AdamW)."""
    sparse_lr: float = Field(default=0.05, gt=0)
    """First learning rate of the id tables (row-wise Adagrad)."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """AdamW's decay of the weight matrices, towers and head alike."""
    patience: int = Field(default=1, ge=1)
    """Checks without a better validation log loss until the rate drops."""
    lr_drop: float = Field(default=0.1, gt=0, lt=1)
    """What the learning rates are multiplied with at a drop."""
    lr_drops: int = Field(default=1, ge=0)
    """Drops after which training stops."""
    bf16: Literal["auto", "on", "off"] = "auto"
    """Whether dense layers compute in bfloat16; "auto" asks the processor."""


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
    progress: Progress | None = None,
) -> list[Check]:
    """Fit ``network`` in place and leave it at its best validation log loss.

    Args:
        network: The network to fit.
        tables: Its id tables, which are updated inside the backward pass; None if it has none.
        train, validation: Inputs of each row.
        train_label_N, validation_label_N: 1 where clicked, else 0.
        config: How to fit.
        seed: Fixes the order of the rows. Dropout draws from torch's global generator.
        progress: Called at every check with (steps, steps at most, figures).

    Returns:
        One record a check, in order.
    """
    bf16 = use_bf16(config.bf16)
    optimizer = _dense_optimizer(network, tables, config)
    label_N = torch.tensor(train_label_N)
    order = torch.Generator().manual_seed(seed)
    steps_an_epoch = -(-len(train) // config.batch_size)
    check_every = max(1, steps_an_epoch // config.checks_per_epoch)
    scale, drops, stale, step = 1.0, 0, 0, 0
    best_loss, best_state = float("inf"), _copied_state(network)
    losses: list[Tensor] = []
    checks: list[Check] = []
    for _ in range(config.max_epochs):
        order_N = torch.randperm(len(train), generator=order)
        for rows in slices(len(train), config.batch_size):
            row_B = order_N[rows]
            losses.append(_step(network, optimizer, train.batch(row_B), label_N[row_B], bf16))
            step += 1
            if step % check_every:
                continue
            p_click_N = predict_network(network, validation)
            checks.append(
                Check(
                    epoch=step / steps_an_epoch,
                    train_log_loss_nats=float(torch.stack(losses).mean()),
                    validation_log_loss_nats=log_loss_nats(validation_label_N, p_click_N),
                    validation_auc=auc(validation_label_N, p_click_N),
                    learning_rate=config.lr * scale,
                )
            )
            losses.clear()
            if progress is not None:
                progress(step, steps_an_epoch * config.max_epochs, _in_words(checks[-1]))
            if checks[-1].validation_log_loss_nats < best_loss:
                best_loss, stale = checks[-1].validation_log_loss_nats, 0
                best_state = _copied_state(network)
                continue
            stale += 1
            if stale < config.patience:
                continue
            network.load_state_dict(best_state)
            if drops == config.lr_drops:
                return checks
            scale, drops, stale = scale * config.lr_drop, drops + 1, 0
            _set_rates(optimizer, tables, config, scale)
    network.load_state_dict(best_state)
    return checks


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


def use_bf16(choice: Literal["auto", "on", "off"]) -> bool:
    """Whether to compute dense layers in bfloat16.

    "auto" asks for the processor's own instructions: with them the layers run several times
    faster, without them bfloat16 is emulated and collapses. No timing, so that the answer on one
    machine is always the same.
    """
    if choice != "auto":
        return choice == "on"
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _step(
    network: ClickNetwork,
    optimizer: torch.optim.Optimizer,
    inputs: list[Tensor],
    label_B: Tensor,
    bf16: bool,
) -> Tensor:
    """One update; returns the mean loss of the batch, detached."""
    network.train()
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden_BW = network.hidden(*inputs)
    loss = network.loss(hidden_BW, label_B)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _dense_optimizer(
    network: nn.Module, tables: FusedTables | TableGroup | None, config: TrainConfig
) -> torch.optim.Optimizer:
    fused = set() if tables is None else {id(weight) for weight in tables.parameters()}
    dense = [p for p in network.parameters() if id(p) not in fused]
    groups = [
        {"params": [p for p in dense if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in dense if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if tables is not None:
        tables.set_learning_rate(config.sparse_lr)
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def _set_rates(
    optimizer: torch.optim.Optimizer,
    tables: FusedTables | TableGroup | None,
    config: TrainConfig,
    scale: float,
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = config.lr * scale
    if tables is not None:
        tables.set_learning_rate(config.sparse_lr * scale)


def _copied_state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _in_words(check: Check) -> str:
    return (
        f"epoch {check.epoch:.1f}: validation log loss {check.validation_log_loss_nats:.5f}, "
        f"AUC {check.validation_auc:.4f}, learning rate {check.learning_rate:g}"
    )
