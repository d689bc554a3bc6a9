"""Fine-tuning the judge: batches of like length, one loss, a state to go on from.

Shape letters: N labelled pairs, B pairs of a batch, C dense columns, K = 3 classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embeddings import training_state
from embeddings.arithmetic import settled_arithmetic_
from embeddings.precision import Precision
from embeddings.relevance.judge_config import JudgeConfig
from embeddings.relevance.judge_data import LabelledPairs
from embeddings.relevance.judge_network import JudgeNetwork, PairTokens
from embeddings.schedule import adamw, generator_at, learning_rate_factor, take_step_

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called after each step with "judge", steps done, steps in all, and metrics."""

SAVE_SECONDS = 60.0
"""Time from one training state on disk to the next: what a kill costs at most."""
POOL_BATCHES = 32
"""Batches whose pairs are sorted by length together: long enough to save padding, short enough
that an epoch stays shuffled."""
LABEL_BATCH = 256


def judge_loss(
    logit_BK: Tensor, rating_logit_B: Tensor, target_BK: Tensor, rating_B: Tensor, weight: float
) -> Tensor:
    """Cross-entropy of the classes, plus that of the rating taken as a share.

    Args:
        logit_BK: Of the classes.
        rating_logit_B: Of the rating.
        target_BK: Chances of the classes.
        rating_B: From 0 to 1; NaN leaves the pair out of the second part.
        weight: Of the second part.

    Returns:
        In nats.
    """
    loss = F.cross_entropy(logit_BK, target_BK)
    rated_B = ~rating_B.isnan()
    if not weight or not bool(rated_B.any()):
        return loss
    rating = F.binary_cross_entropy_with_logits(rating_logit_B[rated_B], rating_B[rated_B])
    return loss + weight * rating


def length_batches(length_N: Tensor, batch: int, generator: torch.Generator) -> list[Tensor]:
    """One epoch of rows: shuffled, then put together by length, in shuffled order.

    Every row once but for a ragged end, which is dropped.
    """
    batch = min(batch, len(length_N))
    order_N = torch.randperm(len(length_N), generator=generator)
    order_N = order_N[: len(order_N) - len(order_N) % batch]
    batches: list[Tensor] = []
    for pool in order_N.split(batch * POOL_BATCHES):
        batches += pool[torch.argsort(length_N[pool], stable=True)].split(batch)
    turn = torch.randperm(len(batches), generator=generator)
    return [batches[place] for place in turn.tolist()]


def fit_(
    network: JudgeNetwork,
    data: LabelledPairs,
    config: JudgeConfig,
    *,
    seed: int,
    identity: dict[str, Any],
    state: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Train a network in place, from the state on disk if there is one.

    Args:
        network: With its first weights.
        data: The labelled pairs.
        config: Settings.
        seed: Decides the batches.
        identity: What a state must have been written for.
        state: Folder of the training state; None keeps none.
        progress: Called after every step.

    Returns:
        The loss of each step.

    Raises:
        ValueError: If the loss becomes NaN, or ``state`` is another run's.
    """
    trained = trained_groups(network, config)
    optimizer = adamw(trained, config.weight_decay)
    kept = {id(parameter) for group, _ in trained for parameter in group}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in kept)
    names = training_state.trained_names(network)
    found = None if state is None else training_state.read_state_of(state, identity)
    step, losses, arithmetic = 0, [], None
    if found is not None:
        tensors, record = found
        training_state.put_back_("network", network, names, tensors)
        training_state.restore_optimizer_(optimizer, tensors)
        step, losses, arithmetic = record["step"], record["losses"], record["arithmetic"]
    precision, arithmetic = settled_arithmetic_(network.text, network.mean_C.device, arithmetic)
    per_epoch = len(data.tokens) // min(config.batch, len(data.tokens))
    steps = max(1, round(config.epochs * per_epoch))
    batches: list[Tensor] = []
    device, saved = network.mean_C.device, time.monotonic()
    while step < steps:
        epoch, place = divmod(step, per_epoch)
        if not batches or place == 0:
            generator = generator_at(seed, "judge", epoch)
            batches = length_batches(data.tokens.length_N, config.batch, generator)
        row_B = batches[place]
        parts = (*data.tokens.padded(row_B), data.dense_NC[row_B])
        with precision.autocast(device):
            logit_BK, rating_logit_B = network(*(part.to(device) for part in parts))
        loss = judge_loss(
            logit_BK.float(),
            rating_logit_B.float(),
            data.target_NK[row_B].to(device),
            data.rating_N[row_B].to(device),
            config.rating_weight,
        )
        losses.append(
            take_step_(
                optimizer,
                loss,
                factor=learning_rate_factor(step, steps, int(config.warmup_share * steps)),
                max_norm=config.max_gradient_norm,
                where=f"the judge's step {step + 1}",
            )
        )
        step += 1
        if progress is not None:
            recent = losses[-100:]
            progress("judge", step, steps, {"loss": sum(recent) / len(recent)})
        if state is not None and step < steps and time.monotonic() - saved > SAVE_SECONDS:
            tensors = training_state.take("network", network, names)
            tensors |= training_state.optimizer_tensors(optimizer)
            record = {"identity": identity, "step": step, "losses": losses}
            training_state.write_state_(state, tensors, {**record, "arithmetic": arithmetic})
            saved = time.monotonic()
    return {"loss": losses}


def trained_groups(
    network: JudgeNetwork, config: JudgeConfig
) -> list[tuple[list[nn.Parameter], float]]:
    """Parameters with their peak learning rates: the head, then the layers from above down.

    The word table stays: sixty thousand pairs see few of its rows, and its update would cost more
    than a layer.
    """
    text, rate = network.text, config.learning_rate
    groups = [
        ([*network.hidden.parameters(), *network.out.parameters()], config.head_learning_rate)
    ]
    for layer in reversed(text.layers):
        groups.append((list(layer.parameters()), rate))
        rate *= config.layer_decay
    below = [network.segment_D, text.positions.weight, *text.norm.parameters()]
    return [*groups, (below, rate)]


@torch.no_grad()
def judge_pairs(
    network: JudgeNetwork, tokens: PairTokens, dense_NC: Tensor, precision: Precision
) -> tuple[Tensor, Tensor]:
    """Logits of the classes, (N, K), and of the rating, (N,), of many pairs."""
    device = network.mean_C.device
    logit_NK, rating_logit_N = torch.zeros(len(tokens), 3), torch.zeros(len(tokens))
    for row_B in tokens.by_length(LABEL_BATCH):
        parts = (*tokens.padded(row_B), dense_NC[row_B])
        with precision.autocast(device):
            logit_BK, rating_logit_B = network(*(part.to(device) for part in parts))
        logit_NK[row_B] = logit_BK.float().cpu()
        rating_logit_N[row_B] = rating_logit_B.float().cpu()
    return logit_NK, rating_logit_N
