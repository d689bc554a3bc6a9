"""Is the better variant offline also the better one in the market? Ten worlds are asked.

Each seed makes a world of its own: another catalogue, other shoppers, another log, encoders and
click models trained anew. Every variant is then measured three ways: by its test AUC, by the
click-through rate of simulated clicks on later requests, and by the exact click probability of what
it shows on them. The requests, and the chance that decides a slot's click, are the same for all
variants of a world.

A seed's figures are written when it is finished, so an interrupted job goes on with the next.

Shape letters: R requests, S slots, W worlds, V variants.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from experiments.agreement_config import AgreementConfig
from experiments.config import RunConfig
from experiments.marketplace.requests import Requests
from experiments.marketplace.world import World, make_world
from experiments.offline_metrics import mean_over_seeds
from experiments.pipeline import Run
from experiments.progress import Progress, Silent
from experiments.rank_agreement import RankAgreement, mean_ranks, rank_agreement
from experiments.records import read_json, write_json
from experiments.variants import BASELINE
from ranking.metrics import auc

Measure = Literal["auc", "ctr", "true_ctr"]
MEASURES: tuple[Measure, ...] = ("auc", "ctr", "true_ctr")
PAIRS: tuple[tuple[Measure, Measure], ...] = (
    ("auc", "ctr"),
    ("auc", "true_ctr"),
    ("ctr", "true_ctr"),
)
IN_WORDS: dict[Measure, str] = {
    "auc": "test AUC",
    "ctr": "simulated CTR",
    "true_ctr": "true CTR",
}
SETTINGS = "agreement.json"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One variant in all worlds."""

    name: str
    mean: dict[str, float]
    """By measure: its mean over the worlds."""
    mean_rank: dict[str, float]
    """By measure: its rank averaged over the worlds; 1 is the best."""


@dataclass(frozen=True, kw_only=True)
class SeedAgreement:
    """The order of the variants by three measures, and how far the orders agree."""

    worlds: int
    standings: tuple[Standing, ...]
    """Best true click-through rate first."""
    agreement: dict[tuple[Measure, Measure], RankAgreement]
    confidence: float

    def to_metrics(self) -> dict[str, float]:
        """Return every figure flat, such as ``auc_vs_true_ctr.kendall_low``."""
        out = {"worlds": float(self.worlds)}
        for standing in self.standings:
            out |= {f"{standing.name}.{name}": value for name, value in standing.mean.items()}
            for name, value in standing.mean_rank.items():
                out[f"{standing.name}.{name}_mean_rank"] = value
        for (first, second), agreement in self.agreement.items():
            for name, spread in asdict(agreement).items():
                at = f"{first}_vs_{second}.{name}"
                out |= {at: spread["value"]}
                out |= {f"{at}_{end}": spread[end] for end in ("low", "high")}
        return out

    def tables(self) -> tuple[Table, Table]:
        """Return the variants' standings, and the agreement of each pair of measures."""
        standings = Table("variant", title=f"Order of the variants in {self.worlds} worlds")
        for name in MEASURES:
            standings.add_column(IN_WORDS[name], justify="right")
            standings.add_column("mean rank", justify="right")
        for one in self.standings:
            cells = [
                text
                for name in MEASURES
                for text in (f"{one.mean[name]:.4f}", f"{one.mean_rank[name]:.1f}")
            ]
            standings.add_row(one.name, *cells)
        percent = f"{self.confidence:.0%}"
        agreed = Table("orders by", title=f"Rank agreement, {percent} intervals over worlds")
        for header in ("Kendall's tau", "Spearman's rho", "pairs alike", "tau of mean ranks"):
            agreed.add_column(header, justify="right")
        for (first, second), agreement in self.agreement.items():
            cells = [
                f"{s.value:.2f} \\[{s.low:.2f}, {s.high:.2f}]"
                for s in (
                    agreement.kendall,
                    agreement.spearman,
                    agreement.pairs,
                    agreement.kendall_of_means,
                )
            ]
            agreed.add_row(f"{IN_WORDS[first]} and {IN_WORDS[second]}", *cells)
        return standings, agreed


def seed_agreement(config: AgreementConfig, progress: Progress | None = None) -> SeedAgreement:
    """Make the worlds, measure the variants in each, and compare the three orders.

    Args:
        config: Worlds and models.
        progress: Told of the worlds done.

    Returns:
        The standings and the agreement over all worlds.

    Raises:
        ValueError: If the folder holds a job of other settings, or the variants lack
            ``production`` or a second one.
    """
    progress = progress or Silent()
    if BASELINE not in config.variants or len(config.variants) < 2:
        raise ValueError(
            f"variants {' '.join(config.variants)}: an order needs {BASELINE} and another one"
        )
    _begin_(config)
    for seed in range(config.seeds):
        at = config.out / f"seed{seed}.json"
        if not at.is_file():
            with progress.stage(f"world {seed + 1} of {config.seeds}"):
                write_json(at, measure_world(config, seed))
    by_world = [read_json(config.out / f"seed{seed}.json") for seed in range(config.seeds)]
    result = agreement_of(by_world, config.variants, confidence=config.confidence)
    write_json(config.out / "metrics.json", dict(sorted(result.to_metrics().items())))
    return result


def agreement_of(
    by_world: Sequence[dict[str, dict[str, float]]],
    variants: Sequence[str],
    *,
    confidence: float = 0.95,
) -> SeedAgreement:
    """Put the variants of several worlds in order by each measure.

    Args:
        by_world: For each world, each variant to its ``auc``, ``ctr`` and ``true_ctr``.
        variants: Names, in any order.
        confidence: Of the intervals over worlds.
    """
    measured = {
        name: np.array([[world[v][name] for v in variants] for world in by_world])
        for name in MEASURES
    }
    ranks = {name: mean_ranks(values_WV) for name, values_WV in measured.items()}
    standings = [
        Standing(
            name=variant,
            mean={name: float(values_WV[:, place].mean()) for name, values_WV in measured.items()},
            mean_rank={name: float(rank_V[place]) for name, rank_V in ranks.items()},
        )
        for place, variant in enumerate(variants)
    ]
    return SeedAgreement(
        worlds=len(by_world),
        standings=tuple(sorted(standings, key=lambda one: -one.mean["true_ctr"])),
        agreement={
            (first, second): rank_agreement(
                measured[first], measured[second], confidence=confidence
            )
            for first, second in PAIRS
        },
        confidence=confidence,
    )


def measure_world(config: AgreementConfig, seed: int) -> dict[str, dict[str, float]]:
    """Make one world, train every variant in it, and measure each three ways.

    Returns:
        Each variant to ``auc`` on the test rows of the log, ``ctr`` of clicks drawn on later
        requests, and ``true_ctr``, the exact expectation on the same requests.
    """
    world, out = config.out / f"world{seed}", config.out / f"run{seed}"
    if not world.exists():
        partial = world.with_name(f".{world.name}.partial")
        if partial.exists():
            shutil.rmtree(partial)
        make_world(partial, products=config.products, requests=config.requests, seed=seed)
        partial.rename(world)
    line = Run(
        RunConfig(
            data=world,
            out=out,
            seed=seed,
            variants=config.variants,
            stage1=config.stage1,
            stage2=config.stage2,
            tower=config.tower,
            track=False,
        )
    )
    label_N = line.parts.test.label_N
    assert label_N is not None
    market = World.load(world / "truth")
    requests = market.draw_requests(config.judged_requests, seed + 7)
    candidates = line.pipeline.transform(market.candidate_table(requests))
    figures: dict[str, dict[str, float]] = {}
    trained_by_name = line.train_all()
    for variant in line.variants:
        trained = trained_by_name[variant.name]
        given = line.pipeline_of(variant).with_cosines(candidates)
        score_N = trained[0].model().predict_proba(given, line.joined(variant))
        ctr, true_ctr = click_rates(market, requests, score_N, seed=seed)
        figures[variant.name] = {
            "auc": auc(label_N, mean_over_seeds(trained)),
            "ctr": ctr,
            "true_ctr": true_ctr,
        }
    if not config.keep:
        shutil.rmtree(out)
        shutil.rmtree(world)
    return figures


def click_rates(
    market: World, requests: Requests, score_N: NDArray[np.float64], *, seed: int
) -> tuple[float, float]:
    """Click-through rate of one ranking: of clicks drawn, and in exact expectation.

    Args:
        market: Holds the auctions and knows the truth.
        requests: What is asked.
        score_N: pCTR of each row of ``market.candidate_table(requests)``.
        seed: Of the draws, one a slot of a request whatever stands in it.

    Returns:
        Drawn clicks a filled slot, and expected clicks a filled slot.
    """
    outcome = market.run(requests, market.to_candidates(requests, score_N))
    shown_RS = outcome.shown_RS >= 0
    p_click_RS = np.where(shown_RS, outcome.p_click_RS, 0.0)
    draw_RS = np.random.default_rng([seed, 73]).random(p_click_RS.shape)
    filled = int(shown_RS.sum())
    return float((draw_RS < p_click_RS).sum() / filled), float(p_click_RS.sum() / filled)


def _begin_(config: AgreementConfig) -> None:
    at = config.out / SETTINGS
    if at.is_file():
        if read_json(at) != json.loads(json.dumps(config.identity())):
            raise ValueError(
                f"{config.out} holds worlds of other settings; nothing was written. Repeat its "
                "command, or choose another --out"
            )
        return
    if config.out.exists() and any(config.out.iterdir()):
        raise ValueError(
            f"{config.out} exists and holds no job of `adtower agreement` (no {SETTINGS}); "
            "nothing was written. Choose another --out"
        )
    write_json(at, config.identity())
