"""What shoppers would do with a product, were it looked at; ``examination`` says if it is.

Attraction is the logistic of relevance, hidden quality, hidden fit to the query, hidden taste,
price and whim. Spreads and rates are ``WorldParameters``.

Shape letters: R requests, S slots or candidates, and a bare trailing letter for flat arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, ndtri

from experiments.marketplace.parameters import WorldParameters
from experiments.marketplace.state import WorldState

# Salts keep the hidden numbers of one pair of rows independent of each other.
FIT_SALT, WHIM_SALT, INCUMBENT_SALT, EAGERNESS_SALT = 11, 12, 13, 14


@dataclass(frozen=True, kw_only=True)
class Responses:
    """What a shopper would do with a product, were it examined."""

    attraction_RS: NDArray[np.float64]
    """Probability of a click, given examination."""
    purchase_RS: NDArray[np.float64]
    """Probability of a purchase, given a click."""


def respond(
    state: WorldState,
    user_R: NDArray[np.integer],
    query_R: NDArray[np.integer],
    product_RS: NDArray[np.integer],
    class_RS: NDArray[np.integer],
) -> Responses:
    """Return what each user would do with each product shown for the query.

    Args:
        state: The hidden side of the world.
        user_R: User rows.
        query_R: Query rows.
        product_RS: Product rows; -1 gives probability 0.
        class_RS: True relevance of the product to the query.
    """
    parameters = state.parameters
    product = np.maximum(product_RS, 0)
    known_RS = product_RS >= 0
    taste_RS = np.einsum("rd,rsd->rs", state.taste_UD[user_R], state.appeal_PD[product])
    price_RS = state.price_sensitivity_U[user_R][:, None] * state.price_z_P[product]
    common_RS = product_logit(state, query_R, product, class_RS)
    common_RS = common_RS + parameters.taste_sd * taste_RS - parameters.price_sd * price_RS
    whim_RS = hash_normal(user_R[:, None], product, state.seed, WHIM_SALT)
    click_RS = common_RS + parameters.whim_sd * whim_RS
    if parameters.eagerness_sd > 0:
        eager_R = hash_normal(user_R, np.zeros_like(user_R), state.seed, EAGERNESS_SALT)
        click_RS = click_RS + parameters.eagerness_sd * eager_R[:, None]
    attraction_RS = expit(click_RS)
    centre, intercept = purchase_line(parameters)
    purchase_RS = expit(intercept + parameters.purchase_effect * (common_RS - centre))
    return Responses(
        attraction_RS=np.where(known_RS, attraction_RS, 0.0),
        purchase_RS=np.where(known_RS, purchase_RS, 0.0),
    )


def product_logit(
    state: WorldState,
    query_R: NDArray[np.integer],
    product_RS: NDArray[np.integer],
    class_RS: NDArray[np.integer],
) -> NDArray[np.float64]:
    """Return the click log-odds that all shoppers share: relevance, quality and fit."""
    fit_RS = hash_normal(query_R[:, None], product_RS, state.seed, FIT_SALT)
    return (
        class_intercepts(state.parameters)[class_RS]
        + state.parameters.quality_sd * state.quality_P[product_RS]
        + state.parameters.fit_sd * fit_RS
    )


def class_intercepts(parameters: WorldParameters) -> NDArray[np.float64]:
    """Return the log-odds of class 0, 1, 2 at average everything else, shape (3,).

    They are such that the mean over the hidden spreads is ``click_rate_by_class``, then drawn
    together (or apart) by ``relevance_effect`` around the mean over ``pool_shares``.
    """
    spread = _logit_sd(parameters, whim=True)
    intercept_3 = np.array([_solve(rate, spread) for rate in parameters.click_rate_by_class])
    centre = float(np.dot(parameters.pool_shares, intercept_3))
    return centre + parameters.relevance_effect * (intercept_3 - centre)


def purchase_line(parameters: WorldParameters) -> tuple[float, float]:
    """Return where the purchase curve is centred (in click log-odds) and its intercept.

    Rare clicks favour high log-odds: a normal spread of variance v moves up by v among clicks.
    The curve is centred there, so that clicks convert at ``purchase_rate`` on average.
    """
    spread = _logit_sd(parameters, whim=False)
    shares = np.array(parameters.pool_shares) * np.array(parameters.click_rate_by_class)
    centre = float(np.dot(shares / shares.sum(), class_intercepts(parameters))) + spread**2
    return centre, _solve(parameters.purchase_rate, parameters.purchase_effect * spread)


def hash_normal(
    first: NDArray[np.integer], second: NDArray[np.integer], seed: int, salt: int
) -> NDArray[np.float64]:
    """Return a standard normal number that a pair of rows always gets again.

    Nothing is stored: the pair, the seed and the salt are mixed into 64 bits (splitmix64) and
    taken through the normal quantile function. Arguments broadcast.
    """
    mixed = _mix(np.asarray(first).astype(np.uint64) + np.uint64(seed % 2**32 * 64 + salt))
    mixed = _mix(mixed ^ (np.asarray(second).astype(np.uint64) + np.uint64(0x51ED27)))
    return ndtri(((mixed >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # Steele, Lea and Flood 2014: splitmix64; wrapping is intended.
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _logit_sd(parameters: WorldParameters, *, whim: bool) -> float:
    """Standard deviation of the click log-odds within one class."""
    p = parameters
    spreads = [p.quality_sd, p.fit_sd, p.taste_sd, p.price_sd, p.whim_sd if whim else 0.0]
    if whim and p.eagerness_sd > 0:
        spreads.append(p.eagerness_sd)
    return float(np.linalg.norm(spreads))


@lru_cache(maxsize=64)
def _solve(rate: float, spread: float) -> float:
    """Return b such that the logistic of b plus a normal of this spread has mean ``rate``."""
    node_J, weight_J = np.polynomial.hermite_e.hermegauss(40)
    weight_J = weight_J / weight_J.sum()
    return float(brentq(lambda b: weight_J @ expit(b + spread * node_J) - rate, -40, 40))  # pyright: ignore[reportArgumentType]
