"""The dense weights of a network while it trains: float32 masters, and what steps compute in.

All weights lie end to end in a few long vectors, so that one fused AdamW moves them at once. In
bfloat16 training the linear layers compute with rounded copies, made once a step, while every
update goes into the float32 masters: bfloat16 keeps eight bits, and an update smaller than a
256th of its weight would be lost.

Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.1 (master weights); Loshchilov and
Hutter 2019, arXiv:1711.05101 (AdamW).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

# Of AdamW, as in its paper and in torch.
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


class DenseWeights:
    """Masters, optimizer and average of all of a network's weights that require a gradient.

    From the construction to ``release_`` the network's parameters are views of vectors held here:
    ``compute_`` makes them those that a step computes in, ``score_`` those that count.

    Layers of one output keep float32: they give logits, which no precision is to be lost of.

    Args:
        network: The network.
        lr: First rate of AdamW.
        weight_decay: Of matrices; vectors do not decay.
        bf16: Whether linear layers compute in bfloat16.
        ema_decay: Of the average that ``score_`` gives; None for no average.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float,
        weight_decay: float,
        bf16: bool,
        ema_decay: float | None = None,
    ) -> None:
        self.lr, self.ema_decay, self.steps = lr, ema_decay, 0
        rounded = set() if not bf16 else _weights_to_round(network)
        trained = [p for p in network.parameters() if p.requires_grad]
        kinds = {
            "matrices": ([p for p in trained if p.ndim > 1], weight_decay),
            "vectors": ([p for p in trained if p.ndim <= 1], 0.0),
        }
        self._groups = {
            name: _Group(own, rounded, weight_decay=decay, with_average=ema_decay is not None)
            for name, (own, decay) in kinds.items()
            if own
        }
        self._rate = lr

    def compute_(self) -> None:
        """Let the network's parameters be those that a step computes in."""
        for group in self._groups.values():
            group.show_(group.computing)

    def score_(self) -> None:
        """Let them be the float32 masters, or their average where one is kept."""
        for group in self._groups.values():
            group.show_(group.views_of(group.scoring))

    def set_rate(self, lr: float) -> None:
        """Change the rate of the steps to come."""
        self._rate = lr

    def step_(self) -> None:
        """Move the masters by the gradients of the parameters, and drop the gradients."""
        for group in self._groups.values():
            group.take_gradients_()
        self.steps += 1
        for group in self._groups.values():
            group.step_(self._rate)
            group.round_()
            if group.average is not None:
                assert self.ema_decay is not None
                share = newest_share(self.ema_decay, self.steps)
                group.average.lerp_(group.master.detach(), share)

    def best_now(self) -> dict[str, Tensor]:
        """Return a copy of the weights that ``score_`` shows."""
        return {name: group.scoring.clone() for name, group in self._groups.items()}

    @torch.no_grad()
    def take_back_(self, best: dict[str, Tensor]) -> None:
        """Go on from what ``best_now`` returned. The optimizer's moments stay."""
        for name, group in self._groups.items():
            group.master.copy_(best[name])
            if group.average is not None:
                group.average.copy_(best[name])
            group.round_()

    def release_(self) -> None:
        """Leave the network with what ``score_`` shows, in tensors of its own."""
        for group in self._groups.values():
            group.show_([view.clone() for view in group.views_of(group.scoring)])

    def tensors(self) -> dict[str, Tensor]:
        """Return all that a resumed training needs, by name."""
        found = {}
        for name, group in self._groups.items():
            found[f"{name}.master"] = group.master.detach()
            if group.average is not None:
                found[f"{name}.average"] = group.average
            for key, value in group.moments.items():
                found[f"{name}.{key}"] = value
        return found

    @torch.no_grad()
    def restore_(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Put back what ``tensors`` returned after so many steps."""
        self.steps = steps
        for name, group in self._groups.items():
            group.master.copy_(tensors[f"{name}.master"])
            if group.average is not None:
                group.average.copy_(tensors[f"{name}.average"])
            for key, value in group.moments.items():
                value.copy_(tensors[f"{name}.{key}"])
            group.round_()


def newest_share(ema_decay: float, steps: int) -> float:
    """How much the newest weights count in their average after so many steps.

    More in the beginning: an average over few steps would else remember the random start.
    """
    return 1 - min(ema_decay, (1 + steps) / (10 + steps))


class _Group:
    """Parameters that decay alike, end to end: those that are rounded first."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        rounded: set[int],
        *,
        weight_decay: float,
        with_average: bool,
    ) -> None:
        self.weight_decay = weight_decay
        self.parameters = sorted(parameters, key=lambda p: id(p) not in rounded)
        flat = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self.master = nn.Parameter(flat)
        self.master.grad = torch.zeros_like(flat)
        self.average = flat.clone() if with_average else None
        self.moments = {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(flat),
            "exp_avg_sq": torch.zeros_like(flat),
        }
        low = [p for p in self.parameters if id(p) in rounded]
        self.rounded = torch.empty(sum(p.numel() for p in low), dtype=torch.bfloat16)
        self.gradients = self.views_of(self.master.grad)
        self.computing = [
            *_views(self.rounded, low),
            *self.views_of(self.master.detach())[len(low) :],
        ]
        self.round_()

    @property
    def scoring(self) -> Tensor:
        return self.master.detach() if self.average is None else self.average

    def views_of(self, flat: Tensor) -> list[Tensor]:
        return _views(flat, self.parameters)

    def show_(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.data = value

    def take_gradients_(self) -> None:
        for parameter, own in zip(self.parameters, self.gradients, strict=True):
            if parameter.grad is None:
                own.zero_()
            else:
                own.copy_(parameter.grad)
            parameter.grad = None

    def step_(self, lr: float) -> None:
        # The function: the first optimizer object of a process imports a compiler for a second.
        assert self.master.grad is not None
        adamw(
            [self.master.detach()],
            [self.master.grad],
            [self.moments["exp_avg"]],
            [self.moments["exp_avg_sq"]],
            [],
            [self.moments["step"]],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=_BETA_1,
            beta2=_BETA_2,
            eps=_EPSILON,
            lr=lr,
            weight_decay=self.weight_decay,
        )

    def round_(self) -> None:
        self.rounded.copy_(self.master.detach()[: len(self.rounded)])


def _views(flat: Tensor, parameters: Iterable[Tensor]) -> list[Tensor]:
    views, first = [], 0
    for parameter in parameters:
        views.append(flat[first : first + parameter.numel()].view(parameter.shape))
        first += parameter.numel()
    return views


def _weights_to_round(network: nn.Module) -> set[int]:
    return {
        id(parameter)
        for module in network.modules()
        if isinstance(module, nn.Linear) and module.out_features > 1
        for parameter in module.parameters(recurse=False)
    }
