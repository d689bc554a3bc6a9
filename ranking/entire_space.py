"""Clicks and purchases learned together over all impressions (ESMM).

Purchases happen after clicks alone, so a model of P(buy | click) fitted on clicked rows never sees
most of what it must score. Here its output is multiplied with P(click), and it is the product that
is compared with the purchases of every impression.

Shape letters: B batch, W any layer width.

Source: Ma et al. 2018 (ESMM), arXiv:1804.07931, equations 1 and 3: the loss is that of clicks plus
that of P(click and buy) = P(click) P(buy | click), the id tables shared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from features.examples import Examples
from ranking.layers import mlp_of

# Keeps log(1 - p) finite where both factors are certain.
_LARGEST_LOG_P = -1e-6


class PurchaseTower(nn.Module):
    """The logit of P(buy | click), over what the click's towers read too."""

    def __init__(self, width: int, mlp: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.mlp = mlp_of(width, mlp, dropout)
        self.logit = nn.Linear(mlp[-1] if mlp else width, 1)

    def set_rate(self, rate: float) -> None:
        """Start from predicting the share of clicks that were followed by a purchase."""
        with torch.no_grad():
            self.logit.weight.mul_(0.1)
            self.logit.bias.fill_(float(np.log(rate) - np.log1p(-rate)))

    def forward(self, x_BW: Tensor) -> Tensor:
        """Return the logits in float32 whatever the layers before compute in, shape (B, 1)."""
        hidden_BW = self.mlp(x_BW)
        with torch.autocast("cpu", enabled=False):
            return self.logit(hidden_BW.float())


def log_p_click_and_buy(click_logit_B: Tensor, buy_logit_B: Tensor) -> Tensor:
    """Return log(P(click) P(buy | click)), shape (B,)."""
    return functional.logsigmoid(click_logit_B) + functional.logsigmoid(buy_logit_B)


def entire_space_loss(click_logit_B: Tensor, buy_logit_B: Tensor, outcome_B: Tensor) -> Tensor:
    """Return each row's log loss of clicks plus that of purchases, in nats, shape (B,).

    Both are over all rows.

    Args:
        click_logit_B: Of P(click), shape (B,).
        buy_logit_B: Of P(buy | click), shape (B,).
        outcome_B: 0 neither, 1 clicked, 2 clicked and bought, shape (B,).
    """
    clicked_B, bought_B = (outcome_B > 0).float(), outcome_B > 1
    click_loss_B = functional.binary_cross_entropy_with_logits(
        click_logit_B, clicked_B, reduction="none"
    )
    log_p_B = log_p_click_and_buy(click_logit_B, buy_logit_B).clamp(max=_LARGEST_LOG_P)
    log_not_B = torch.log(-torch.expm1(log_p_B))
    return click_loss_B - torch.where(bought_B, log_p_B, log_not_B)


def outcomes(examples: Examples) -> NDArray[np.float32]:
    """Return 0 for neither, 1 for clicked, 2 for clicked and bought, shape (N,).

    Raises:
        ValueError: If purchases are not known, none or all of the clicks were followed by one, or
            one happened without a click.
    """
    clicked_N, bought_N = examples.label_N, examples.purchased_N
    assert clicked_N is not None, "check_fit_inputs refuses rows without labels"
    if bought_N is None:
        raise ValueError(
            "training examples carry no purchases, but entire_space=True learns from them; is the "
            "column 'purchased' missing?"
        )
    bad_N = ~np.isin(bought_N, (0, 1)) | (bought_N > clicked_N)
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise ValueError(
            f"purchased is {bought_N[row]:g} in row {row} where clicked is {clicked_N[row]:g}; "
            "must be 0 or 1, and 1 only where clicked is 1. Are purchases counted that another "
            "click led to?"
        )
    if bought_N.sum() in (0, clicked_N.sum()):
        raise ValueError(
            f"{bought_N.sum():g} of {clicked_N.sum():g} clicks were followed by a purchase; both "
            "kinds are needed. Is the table cut too short?"
        )
    return (clicked_N + bought_N).astype(np.float32)
