"""A simulated A/B test from the shelf: arms from runs or bundles, registered, run, written down."""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.ab_result import AbResult
from experiments.ab_test import simulate_ab
from experiments.interference import compare_splits
from experiments.marketplace.budgets import read_budgets
from experiments.marketplace.market_file import read_market
from experiments.marketplace.world import RULES, World
from experiments.power import PowerPlan
from experiments.preregistration import Preregistration
from experiments.progress import Progress, Silent
from experiments.records import write_bytes
from experiments.scored_requests import Scorer
from experiments.simulate_config import SimulateConfig
from experiments.truth import truth_folder
from features.dataset import Dataset

if TYPE_CHECKING:
    from experiments.pipeline import Run

RESULT = "ab.json"
_CARD_FINGERPRINT = re.compile(r"^- fingerprint: ([0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A model that serves one arm."""

    name: str
    score: Scorer
    data: str
    """Fingerprint of the dataset it was trained on; empty where a bundle does not say."""
    world: World | None
    """The truth of that dataset; None where the arm comes without it."""
    seed: int = 0
    """Of the run it comes from."""


def simulate_arms(
    config: SimulateConfig,
    *,
    run_folder: Path | None = None,
    treatment_run: Path | None = None,
    control_bundle: Path | None = None,
    treatment_bundle: Path | None = None,
    data: Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[AbResult, Path]:
    """Run an A/B test between two variants of a run, two runs, or bundles.

    Args:
        config: Arms by variant name, decision rule, gate, budgets.
        run_folder: Of the control, and of the treatment unless it comes from elsewhere.
        treatment_run: Run of the treatment.
        control_bundle: Exported bundle instead of a variant.
        treatment_bundle: The same for the treatment.
        data: Simulated dataset whose world is tested in; needed where both arms are bundles.
        out: Folder of the registration and the result; by default RUN/ab/ARMS-SALT.
        overwrite: Discard an earlier experiment in ``out``, its registration included.
        progress: Told of the stages.

    Returns:
        The result, and the folder that has it.

    Raises:
        ValueError: If an arm is missing, the arms come from different data or currencies, the data
            does not know its truth, or ``out`` registers another decision.
    """
    progress = progress or Silent()
    runs: dict[Path, Run] = {}
    dataset = Dataset.open(data) if data is not None else None

    def arm(name: str, variant: str, run: Path | None, bundle: Path | None) -> Arm:
        if bundle is not None:
            return _arm_of_bundle(bundle, dataset)
        if run is None:
            raise ValueError(f"the {name} arm has no model: name a run folder, or --{name}-bundle")
        return _arm_of_run(runs, run, variant, progress)

    control = arm("control", config.control, run_folder, control_bundle)
    treatment = arm("treatment", config.treatment, treatment_run or run_folder, treatment_bundle)
    world = _shared_world(control, treatment, dataset)
    if out is None:
        if run_folder is None:
            raise ValueError("two bundles have no run folder to write to; give --out")
        out = run_folder / "ab" / f"{control.name}-vs-{treatment.name}-{config.salt}"
    if overwrite and (out / RESULT).is_file():
        shutil.rmtree(out)
    seed = config.seed if config.seed is not None else control.seed + 7
    result = run_ab(
        world,
        control.score,
        treatment.score,
        config.model_copy(update={"control": control.name, "treatment": treatment.name}),
        seed=seed,
        folder=out,
        data=control.data,
        progress=progress,
    )
    write_bytes(out / RESULT, result.to_json().encode())
    return result, out


def run_ab(
    world: World,
    control: Scorer,
    treatment: Scorer,
    config: SimulateConfig,
    *,
    seed: int,
    folder: Path,
    data: str,
    progress: Progress | None = None,
) -> AbResult:
    """Run one experiment, its decision registered in ``folder`` before the first impression.

    Raises:
        ValueError: If the world cannot take the market file or the budgets, the folder registers
            another decision, or as ``simulate_ab``.
    """
    if config.market is not None:
        fitted = read_market(config.market)
        world = world.with_parameters(**{k: v for k, v in fitted.items() if k in RULES})
    budget_test = None
    if config.budget_share is not None or config.budgets is not None:
        budget_test = functools.partial(
            compare_splits,
            world,
            pacing=config.pacing,
            budget_share=config.budget_share,
            budget_micros_P=None if config.budgets is None else read_budgets(config.budgets, world),
            seed=seed,
        )
    with (progress or Silent()).stage("simulated A/B test"):
        result = simulate_ab(
            world,
            control,
            treatment,
            requests=config.requests,
            seed=seed,
            salt=config.salt,
            confidence=config.confidence,
            calibration_requests=config.calibration_requests,
            pre_period=config.pre_period,
            looks=config.looks,
            distort=config.distortions,
            swap=config.swap,
            register=_registrar(config, seed=seed, folder=folder, data=data),
            budget_test=budget_test,
        )
    if result.registration is not None:
        result.registration.check(folder)
    return result


def _registrar(
    config: SimulateConfig, *, seed: int, folder: Path, data: str
) -> Callable[[Mapping[str, PowerPlan]], Preregistration]:
    def register(power: Mapping[str, PowerPlan]) -> Preregistration:
        plan = power.get(config.metric)
        registration = Preregistration(
            control=config.control,
            treatment=config.treatment,
            metric=config.metric,
            test=config.test,
            alpha=round(1 - config.confidence, 12),
            requests=config.requests,
            looks=config.looks if config.test == "always_valid" else 0,
            salt=config.salt,
            seed=seed,
            calibration_requests=config.calibration_requests,
            minimum_detectable=None if plan is None else plan.minimum_detectable,
            data=data,
        )
        registration.write_(folder)
        return registration

    return register


def _arm_of_run(runs: dict[Path, Run], folder: Path, variant: str, progress: Progress) -> Arm:
    from experiments.pipeline import Run

    if folder not in runs:
        runs[folder] = Run.reopen(folder, progress)
    line = runs[folder]
    known = {one.name: one for one in line.variants}
    if variant not in known:
        raise ValueError(f"{folder} has no variant {variant!r}; it has {', '.join(known)}")
    truth = truth_folder(line.dataset)
    return Arm(
        name=variant,
        score=line.scorer(line.train(known[variant])[0]),
        data=line.dataset.fingerprint(),
        world=None if truth is None else World.load(truth),
        seed=line.config.seed,
    )


def _arm_of_bundle(bundle: Path, dataset: Dataset | None) -> Arm:
    from ranking.score import Scorer as Bundled

    scorer = Bundled.load(bundle)
    card = bundle / "model_card.md"
    said = _CARD_FINGERPRINT.search(card.read_text(encoding="utf-8")) if card.is_file() else None
    truth = None if dataset is None else truth_folder(dataset)
    return Arm(
        name=scorer.manifest.name,
        score=scorer.score,
        data=said.group(1) if said else "",
        world=None if truth is None else World.load(truth),
    )


def _shared_world(control: Arm, treatment: Arm, dataset: Dataset | None) -> World:
    """The one world both arms may be tested in.

    Raises:
        ValueError: If they come from different data or currencies, or nobody knows the truth.
    """
    currencies = [arm.world.currency for arm in (control, treatment) if arm.world is not None]
    if len(set(currencies)) > 1:
        raise ValueError(
            f"control {control.name!r} bids in {currencies[0]} and treatment {treatment.name!r} in "
            f"{currencies[1]}; revenue in different currencies cannot be compared"
        )
    where = "" if dataset is None else dataset.fingerprint()
    trained_on = {arm.data for arm in (control, treatment)} | {where}
    if len(trained_on - {""}) > 1:
        raise ValueError(
            f"the arms come from different data: control {control.name!r} from "
            f"{control.data[:12] or 'an unknown dataset'}, treatment {treatment.name!r} from "
            f"{treatment.data[:12] or 'an unknown dataset'}"
            + (f", tested on {where[:12]}" if where else "")
            + ". A lift between them would compare data, not models"
        )
    for arm in (control, treatment):
        if arm.world is not None:
            return arm.world
    raise ValueError(
        "nobody knows what other rankings would have earned: a simulated A/B test needs data from "
        "`adtower data make` or `adtower data simulate`, whose truth/ folder says it. Name it with "
        "--data where both arms are bundles"
    )
