"""Whether a shopper looks at a slot: by its place alone, or by what was seen above it.

Position-based: each slot has its own probability to be looked at. Cascade: the first slot is always
looked at; whoever looked at one goes on to the next with one probability after a click and another
after none. Both give the exact probability of a click in every slot.

Shape letters: R requests, S slots.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from experiments.marketplace.parameters import WorldParameters


def examination(parameters: WorldParameters, slots: int) -> NDArray[np.float64]:
    """Return the probability that each of the first ``slots`` slots is looked at, shape (S,).

    In a cascade it depends on what is shown; the value is then that of a page whose products all
    have the mean click rate of the pools.
    """
    if parameters.examination_model == "position":
        return np.array(parameters.examination[:slots])
    mean = float(np.dot(parameters.pool_shares, parameters.click_rate_by_class))
    return cascade_examination(parameters, np.full((1, slots), mean))[0]


def cascade_examination(
    parameters: WorldParameters, attraction_RS: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the probability that each slot is looked at, given what the slots show, shape (R, S).

    Source:
        The dependent click model (Guo, Liu and Wang 2009), of which the cascade model of Craswell
        et al. 2008 is the case that every skip goes on and every click ends.
    """
    goes_on_RS = (
        attraction_RS * parameters.continue_after_click
        + (1 - attraction_RS) * parameters.continue_after_skip
    )
    look_RS = np.ones(attraction_RS.shape)
    np.cumprod(goes_on_RS[:, :-1], axis=1, out=look_RS[:, 1:])
    return look_RS


def click_probability(
    parameters: WorldParameters, attraction_RS: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the exact probability of a click in each slot, shape (R, S).

    Args:
        parameters: Which examination model, and its numbers.
        attraction_RS: Probability of a click, given a look; 0 where a slot is empty, (R, S).
    """
    if parameters.examination_model == "cascade":
        return attraction_RS * cascade_examination(parameters, attraction_RS)
    return attraction_RS * examination(parameters, attraction_RS.shape[1])


def draw_clicks(
    parameters: WorldParameters,
    attraction_RS: NDArray[np.float64],
    click_draw_RS: NDArray[np.float64],
    look_draw_RS: NDArray[np.float64] | None = None,
) -> NDArray[np.bool_]:
    """Return which slots are clicked with these uniform draws, shape (R, S).

    Args:
        parameters: Which examination model, and its numbers.
        attraction_RS: Probability of a click, given a look, shape (R, S).
        click_draw_RS: One number in [0, 1) a slot.
        look_draw_RS: Another one a slot, which decides whether the next is looked at; a cascade
            needs it, and positions do not read it.

    Raises:
        ValueError: If a cascade gets no ``look_draw_RS``.
    """
    if parameters.examination_model == "position":
        return click_draw_RS < click_probability(parameters, attraction_RS)
    if look_draw_RS is None:
        raise ValueError(
            "look_draw_RS is missing: in a cascade a second draw a slot decides whether the "
            "shopper goes on"
        )
    clicked_RS = np.zeros(attraction_RS.shape, dtype=bool)
    looks_R = np.ones(len(attraction_RS), dtype=bool)
    for slot in range(attraction_RS.shape[1]):
        clicked_R = looks_R & (click_draw_RS[:, slot] < attraction_RS[:, slot])
        clicked_RS[:, slot] = clicked_R
        goes_on_R = np.where(
            clicked_R, parameters.continue_after_click, parameters.continue_after_skip
        )
        looks_R = looks_R & (look_draw_RS[:, slot] < goes_on_R)
    return clicked_RS
