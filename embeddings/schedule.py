"""What both training stages do at every step: set the learning rate, step, refuse NaN."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def learning_rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """Linear warm-up to 1, then half a cosine down to 0 after the last step.

    Args:
        step: From 0.
        steps: Steps of the whole stage.
        warmup_steps: Steps until the peak.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def adamw(
    groups: Iterable[tuple[list[nn.Parameter], float]], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over (parameters, peak learning rate); norms, biases and scalars do not decay."""
    split = [
        {"params": part, "lr": peak, "peak": peak, "weight_decay": decay}
        for parameters, peak in groups
        for part, decay in (
            ([p for p in parameters if p.ndim >= 2], weight_decay),
            ([p for p in parameters if p.ndim < 2], 0.0),
        )
        if part
    ]
    return torch.optim.AdamW(split, betas=(0.9, 0.98), fused=True)


def take_step_(
    optimizer: torch.optim.Optimizer, loss: Tensor, *, factor: float, max_norm: float, where: str
) -> float:
    """Backpropagate, clip and update.

    Args:
        optimizer: From ``adamw``.
        loss: A scalar.
        factor: Multiplies every peak learning rate.
        max_norm: The gradient's norm is clipped to this.
        where: Names the step in the error, such as "stage 1, step 12".

    Returns:
        The loss as a number.

    Raises:
        ValueError: If the loss or its gradient is NaN or infinite; no weight is changed then.
    """
    value = float(loss.detach())
    refuse_nan(value, where)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    update_(optimizer, factor=factor, max_norm=max_norm, where=where)
    return value


def refuse_nan(loss: float, where: str) -> None:
    """Raise if a loss is NaN or infinite."""
    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss} at {where}; lower the learning rate")


def update_(
    optimizer: torch.optim.Optimizer, *, factor: float, max_norm: float, where: str
) -> None:
    """Clip the gradients at hand and update; the arguments as in ``take_step_``.

    Raises:
        ValueError: If the gradient is NaN or infinite; no weight is changed then.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(parameters, max_norm))
    if not math.isfinite(norm):
        raise ValueError(f"the gradient's norm is {norm} at {where}; lower the learning rate")
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    optimizer.step()


def shuffled_batches(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of rows for ever, each row once a pass, ragged ends dropped."""
    batch = min(batch, count)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % batch].split(batch)


def generator_at(seed: int, purpose: str, index: int) -> torch.Generator:
    """The random numbers of one step (or pass) of a run, whatever was drawn before it.

    So a resumed run needs no random state, and a batch may be prepared ahead of its turn.
    """
    digest = hashlib.sha256(f"{seed} {purpose} {index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass
class Batches:
    """Shuffled batches whose place in the data is two numbers."""

    count: int
    batch: int
    seed: int
    epoch: int = 0
    position: int = 0
    """Batches of this epoch that were given out."""

    def __post_init__(self) -> None:
        self.batch = min(self.batch, self.count)
        self._order: tuple[int, Tensor] | None = None

    def next(self) -> Tensor:
        """The next batch of rows; each row once an epoch, ragged ends dropped."""
        if self.position == self.count // self.batch:
            self.epoch, self.position = self.epoch + 1, 0
        if self._order is None or self._order[0] != self.epoch:
            generator = generator_at(self.seed, "order", self.epoch)
            self._order = (self.epoch, torch.randperm(self.count, generator=generator))
        start = self.position * self.batch
        self.position += 1
        return self._order[1][start : start + self.batch]
