"""The simulated marketplace as a whole.

``make_world`` writes the grocery world as a dataset; ``simulate_log`` gives a labelled catalogue a
click log; ``World`` draws later requests from the same hidden truth and tells what any ranking of
them would earn, exactly.

Shape letters: R requests, K candidates, S slots, P products, Q queries, N table rows.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.marketplace import grocery
from experiments.marketplace.auction import run_auction
from experiments.marketplace.catalogue import make_catalogue, product_table
from experiments.marketplace.clicks import respond
from experiments.marketplace.drawing import draw_catalogue
from experiments.marketplace.examination import click_probability, draw_clicks
from experiments.marketplace.judgements import judge, relevance_table
from experiments.marketplace.labelled import labelled_state
from experiments.marketplace.log import Log, write_log
from experiments.marketplace.market import (
    LATE_FROM,
    hidden_market,
    launches,
    standardised_price,
)
from experiments.marketplace.parameters import WorldParameters
from experiments.marketplace.queries import make_queries, true_relevance
from experiments.marketplace.requests import DAY_US, Requests, draw_requests, draw_times
from experiments.marketplace.retrieval import make_pools
from experiments.marketplace.shoppers import grocery_appeal, make_shoppers
from experiments.marketplace.state import WorldState
from features.dataset import Dataset, write_dataset, write_into_dataset
from features.schema import DatasetSpec, FeatureNames, SplitRule

TRUTH = "truth"
"""Folder beside the tables that keeps what no model may see."""

VALIDATION_FROM = 0.70
"""Share of the requests before validation; the test starts where late products appear."""

RULES = (
    *("slots", "reserve_micros", "pricing", "squashing", "candidates", "bid_jitter_sd"),
    *("examination", "examination_model", "continue_after_skip", "continue_after_click"),
    *("purchase_rate", "purchase_effect", "habit_share"),
)
"""Parameters that act when requests are drawn and served, and so may differ after the log."""

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a ranking would show, charge and earn, in expectation."""

    shown_RS: NDArray[np.int64]
    """Candidate columns shown, -1 where a slot stays empty."""
    price_micros_RS: NDArray[np.int64]
    """Price per click, 0 where a slot stays empty."""
    p_click_RS: NDArray[np.float64]
    """True click probability, 0 where a slot stays empty."""
    p_purchase_RS: NDArray[np.float64]
    """True probability of a purchase after a click."""
    value_micros_RS: NDArray[np.int64]
    """What a click is worth to its advertiser: the bid, which is truthful in this world."""
    relevance_RS: NDArray[np.int8]
    """True class of what is shown, -1 where a slot stays empty."""
    attraction_RS: NDArray[np.float64]
    """True probability of a click, given a look; 0 where a slot stays empty."""
    parameters: WorldParameters
    """Of the world that it happened in."""

    def draw_clicks(
        self, click_draw_RS: NDArray[np.float64], look_draw_RS: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Return which slots are clicked with these uniform draws, shape (R, S)."""
        return draw_clicks(self.parameters, self.attraction_RS, click_draw_RS, look_draw_RS)


class World:
    """A simulated marketplace after its log: draws requests and tells the truth about rankings."""

    def __init__(self, state: WorldState) -> None:
        self.state = state

    @classmethod
    def load(cls, folder: str | Path) -> World:
        """Read the ``truth`` folder of a simulated dataset.

        Raises:
            ValueError: If the folder holds no world.
        """
        return cls(WorldState.load(Path(folder)))

    @property
    def parameters(self) -> WorldParameters:
        """The parameters the world was made with."""
        return self.state.parameters

    @property
    def currency(self) -> str:
        """Of bids and prices, ISO 4217."""
        return self.state.parameters.currency

    def with_parameters(self, **changed: Any) -> World:
        """Return this world under other rules: its auction, its shoppers' looks and clicks.

        Products, shoppers and pools stay as they are, so what shaped those has no effect here.

        Raises:
            ValueError: If a parameter is unknown, out of range, or shaped the catalogue or the log.
        """
        fixed = sorted(set(changed) - set(RULES))
        if fixed:
            raise ValueError(
                f"{', '.join(fixed)} cannot change after a world is made; these can: "
                f"{', '.join(RULES)}"
            )
        parameters = WorldParameters.model_validate({**self.parameters.model_dump(), **changed})
        return World(replace(self.state, parameters=parameters))

    def draw_requests(self, n: int, seed: int, *, days: int = 14) -> Requests:
        """Draw requests of the days after the log.

        Args:
            n: How many, at least 1.
            seed: The same seed gives the same requests; any seed differs from the log's own.
            days: Over how many days they spread.

        Raises:
            ValueError: If ``n`` or ``days`` is below 1.
        """
        if n < 1 or days < 1:
            raise ValueError(f"n={n} requests and days={days} must both be at least 1")
        rng = np.random.default_rng([self.state.seed, 20, seed])
        end_us = self.state.end_us
        time_us_R = draw_times(n, end_us, end_us + days * DAY_US, rng)
        return draw_requests(self.state, time_us_R, rng, id_prefix=f"x{seed}-")

    def candidate_table(self, requests: Requests) -> pl.DataFrame:
        """Return one raw row per request and candidate, as a click model's pipeline reads them.

        Absent candidates are left out; ``to_candidates`` brings scores back to (R, K).

        Returns:
            Columns request_id, time, user_id, query_id, product_id, bid_micros; rows by request,
            then candidate column.
        """
        row_N, column_N = np.nonzero(requests.candidate_RK >= 0)
        state = self.state
        return pl.DataFrame(
            {
                "request_id": requests.request_id_R[row_N],
                "time": pl.Series(requests.time_us_R[row_N]).cast(pl.Datetime("us", "UTC")),
                "user_id": state.user_id_U[requests.user_R[row_N]],
                "query_id": state.query_id_Q[requests.query_R[row_N]],
                "product_id": state.product_id_P[requests.candidate_RK[row_N, column_N]],
                "bid_micros": requests.bid_micros_RK[row_N, column_N],
            }
        )

    def to_candidates(
        self, requests: Requests, score_N: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Arrange scores of ``candidate_table``'s rows as (R, K), 0 for absent candidates.

        Raises:
            ValueError: If there is not one score a row.
        """
        present_RK = requests.candidate_RK >= 0
        score_N = np.asarray(score_N, dtype=np.float64)
        if score_N.shape != (int(present_RK.sum()),):
            raise ValueError(
                f"score_N has shape {score_N.shape}; candidate_table has {present_RK.sum()} rows "
                "and each needs one score"
            )
        score_RK = np.zeros(present_RK.shape)
        score_RK[present_RK] = score_N
        return score_RK

    def click_probability(
        self, requests: Requests, *, position: int | None = None
    ) -> NDArray[np.float64]:
        """Return the true click probability of every candidate, shape (R, K).

        Args:
            requests: The requests.
            position: Slot from 1; None means that the candidate is examined for certain.
        """
        response = self._respond(requests, requests.candidate_RK, requests.class_RK)
        seen = 1.0 if position is None else self.parameters.examination[position - 1]
        return response.attraction_RS * seen

    def purchase_probability(self, requests: Requests) -> NDArray[np.float64]:
        """Return the true purchase probability of every candidate, given a click, (R, K)."""
        return self._respond(requests, requests.candidate_RK, requests.class_RK).purchase_RS

    def run(self, requests: Requests, pctr_RK: NDArray[np.float64]) -> Outcome:
        """Hold the auctions with ``pctr_RK`` and tell what shoppers would truly do.

        Args:
            requests: The requests.
            pctr_RK: Predicted click probabilities; anything finite for absent candidates.

        Raises:
            ValueError: If the scores' shape or values cannot be ranked.
        """
        parameters = self.parameters
        shown_RS, price_RS = run_auction(
            pctr_RK,
            requests.bid_micros_RK,
            slots=parameters.slots,
            reserve_micros=parameters.reserve_micros,
            pricing=parameters.pricing,
            squashing=parameters.squashing,
            examination=parameters.examination,
        )
        column_RS = np.maximum(shown_RS, 0)
        filled_RS = shown_RS >= 0
        product_RS = np.take_along_axis(requests.candidate_RK, column_RS, axis=1)
        class_RS = np.take_along_axis(requests.class_RK, column_RS, axis=1)
        value_RS = np.take_along_axis(requests.bid_micros_RK, column_RS, axis=1)
        response = self._respond(requests, np.where(filled_RS, product_RS, -1), class_RS)
        return Outcome(
            shown_RS=shown_RS,
            price_micros_RS=price_RS,
            p_click_RS=click_probability(parameters, response.attraction_RS),
            p_purchase_RS=response.purchase_RS,
            value_micros_RS=np.where(filled_RS, value_RS, 0),
            relevance_RS=np.where(filled_RS, class_RS, -1).astype(np.int8),
            attraction_RS=response.attraction_RS,
            parameters=parameters,
        )

    def _respond(self, requests: Requests, product_RS: NDArray, class_RS: NDArray):
        return respond(self.state, requests.user_R, requests.query_R, product_RS, class_RS)


def make_world(
    out: str | Path,
    *,
    products: int = 3000,
    requests: int = 60_000,
    seed: int = 0,
    parameters: WorldParameters | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the grocery world as a dataset folder, with its truth apart in ``out/truth``.

    Args:
        out: Where; must not exist. It appears whole or not at all.
        products: Size of the catalogue, at least ``catalogue.MIN_PRODUCTS``.
        requests: Length of the log; each shows up to ``slots`` products.
        seed: The same seed and parameters give the same bytes.
        parameters: How the world behaves; the default's numbers have their sources.
        progress: Told what happens next.

    Returns:
        ``out``.

    Raises:
        ValueError: If ``out`` exists, or a number is too small.
    """
    out = Path(out)
    parameters = parameters or WorldParameters()
    tell = progress or (lambda _: None)
    _refuse_requests(requests)
    if out.exists():
        raise ValueError(f"{out} exists already; nothing was written. Choose another folder")
    tell(f"inventing {products} products and drawing their images")
    catalogue = make_catalogue(products, parameters, seed)
    images = draw_catalogue(catalogue.type_P, catalogue.in_image_PA, parameters.image_pixels, seed)
    queries = make_queries(catalogue, parameters, seed)
    tell(f"judging {len(queries)} queries")
    relevance_QP = true_relevance(queries, catalogue)
    department_P = np.array(grocery.TYPE_DEPARTMENT)[catalogue.type_P]
    query_N, product_N, label_N, source_N = judge(
        relevance_QP, department_P, ~catalogue.late_P, parameters, seed
    )
    pool_QM, class_QM = make_pools(relevance_QP, department_P, parameters, seed)
    tell(f"serving {requests} requests")
    rng = np.random.default_rng([seed, 9])
    start_us, end_us = _span(parameters)
    time_us_R = draw_times(requests, start_us, end_us, rng)
    state = WorldState(
        parameters=parameters,
        seed=seed,
        start_us=start_us,
        end_us=end_us,
        product_id_P=catalogue.product_id_P,
        appeal_PD=grocery_appeal(catalogue.brand_P, catalogue.has_PA, parameters, seed),
        price_z_P=standardised_price(catalogue.price_P, catalogue.type_P),
        launched_us_P=launches(catalogue.late_P, time_us_R, start_us, rng),
        query_id_Q=queries.query_id_Q,
        popularity_Q=queries.popularity_Q,
        theme_Q=queries.theme_Q,
        pool_QM=pool_QM,
        class_QM=class_QM,
        **hidden_market(products, parameters, seed),
        **vars(make_shoppers(requests, queries.theme_Q, parameters, seed)),
    )
    log = write_log(state, draw_requests(state, time_us_R, rng, id_prefix="r"), rng)
    spec = DatasetSpec(
        name="grocery world",
        simulated=True,
        features=_feature_names(("category", "brand", "price"), FeatureNames()),
        split=SplitRule(
            validation_start=_moment(time_us_R[int(VALIDATION_FROM * requests)]),
            test_start=_moment(time_us_R[int(LATE_FROM * requests)]),
        ),
    )
    tell("writing")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        whole = write_dataset(
            draft / "dataset",
            spec,
            products=product_table(catalogue, images, state.launched_us_P, seed),
            queries=pl.DataFrame({"query_id": queries.query_id_Q, "query": queries.text_Q}),
            relevance=relevance_table(
                queries.query_id_Q[query_N], catalogue.product_id_P[product_N], label_N, source_N
            ),
            impressions=log.impressions,
            events=log.events,
        )
        _write_truth(whole / TRUTH, state, log)
        whole.rename(out)
    finally:
        shutil.rmtree(draft)
    return out


def simulate_log(
    folder: str | Path,
    *,
    requests: int = 60_000,
    seed: int = 0,
    parameters: WorldParameters | None = None,
    progress: Progress | None = None,
) -> Path:
    """Give a dataset with products, queries and relevance labels a simulated click log.

    The same shoppers and auction as in the grocery world: the labels are taken for the truth,
    products nobody judged for a query are assumed irrelevant to it, and tastes respond to the
    words of titles and to brands. Adds impressions, events and ``truth``, and says so in
    ``dataset.toml`` (``simulated = true``).

    Args:
        folder: A local dataset folder without impressions and events.
        requests: Length of the log.
        seed: The same seed and parameters give the same log.
        parameters: How the world behaves.
        progress: Told what happens next.

    Returns:
        ``folder``.

    Raises:
        ValueError: If a table is missing, a log is there already, labels name unknown products or
            queries, or ``requests`` is below 1.
    """
    folder = Path(folder)
    parameters = parameters or WorldParameters()
    tell = progress or (lambda _: None)
    _refuse_requests(requests)
    dataset = Dataset.open(folder)
    dataset.require("products", "queries", "relevance", needed_for="a simulated click log")
    for table in ("impressions", "events"):
        if dataset.has(table):
            raise ValueError(
                f"{folder} has a log already (its {table} table); nothing was written. Simulate "
                "into a copy that has products, queries and relevance alone"
            )
    tell(f"serving {requests} requests")
    rng = np.random.default_rng([seed, 9])
    start_us, end_us = _span(parameters)
    time_us_R = draw_times(requests, start_us, end_us, rng)
    state = labelled_state(dataset, requests, parameters, seed, (start_us, end_us))
    log = write_log(state, draw_requests(state, time_us_R, rng, id_prefix="r"), rng)
    tell("writing")
    draft = Path(tempfile.mkdtemp(prefix=f".{TRUTH}-", dir=folder))
    try:
        _write_truth(draft / TRUTH, state, log)
        # A truth without impressions is left over from a run that was cut off.
        if (folder / TRUTH).exists():
            shutil.rmtree(folder / TRUTH)
        (draft / TRUTH).rename(folder / TRUTH)
    finally:
        shutil.rmtree(draft)
    columns = tuple(dataset.column_names("products"))
    spec = dataset.spec.model_copy(
        update={"simulated": True, "features": _feature_names(columns, dataset.spec.features)}
    )
    write_into_dataset(folder, spec, impressions=log.impressions, events=log.events)
    return folder


def _feature_names(product_columns: tuple[str, ...], known: FeatureNames) -> FeatureNames:
    """The features a simulated log offers, after those already named."""
    sparse = ["user_id", "query_id", "product_id"]
    sparse += [f"products.{c}" for c in ("category", "brand") if c in product_columns]
    sparse += ["time.hour", "time.weekday"]
    dense = ["products.price"] if "price" in product_columns else []
    taken = known.sparse + known.dense
    return FeatureNames(
        sparse=(*known.sparse, *(name for name in sparse if name not in taken)),
        dense=(*known.dense, *(name for name in dense if name not in taken)),
    )


def _write_truth(folder: Path, state: WorldState, log: Log) -> None:
    folder.mkdir()
    state.save_(folder)
    log.truth.write_parquet(folder / "impressions.parquet", compression="zstd")


def _span(parameters: WorldParameters) -> tuple[int, int]:
    """First moment of the log and first moment after it, microseconds UTC."""
    day = datetime.fromisoformat(parameters.start).replace(tzinfo=UTC)
    start_us = int(day.timestamp()) * 1_000_000 // DAY_US * DAY_US
    return start_us, start_us + parameters.days * DAY_US


def _moment(time_us: np.int64) -> datetime:
    return datetime.fromtimestamp(int(time_us) / 1e6, tz=UTC)


def _refuse_requests(requests: int) -> None:
    if requests < 1:
        raise ValueError(f"requests={requests} must be at least 1: a log of nothing has no clicks")
