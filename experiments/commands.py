"""adtower's verbs as plain Python functions; the command line prints what they return."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from embeddings.ranks import Ranks
from embeddings.stage1 import train_stage1
from experiments.ab_result import AbResult
from experiments.comparison import Comparison
from experiments.config import AbConfig, EmbedConfig, RunConfig
from experiments.marketplace.world import make_world
from experiments.offline_metrics import mean_over_seeds, offline_metrics
from experiments.on_ranks import led_by_the_first_rank
from experiments.pipeline import (
    Run,
    RunResult,
)
from experiments.pipeline import run as run
from experiments.progress import Progress, Silent
from experiments.records import DATA, code_version, read_json, write_json, write_metrics
from experiments.run_folder import RunFolder
from experiments.simulate_config import SimulateConfig
from experiments.tracking import Tracker, default_uri
from experiments.variants import BASELINE, CONTROLS, REGISTRY, VectorSource, feasible_variants
from experiments.vectors import VectorMaker, model_folder
from features.check import check_dataset
from features.dataset import Dataset
from features.violation import refuse_errors
from ranking.scorecard import click_metrics

if TYPE_CHECKING:
    from experiments.training import Trained
    from ranking.batch_score import BatchScores


_PROOF_ROWS = 20_000
"""Validation rows at most that prove an export and fill its model card."""


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """Click models just trained, judged on validation rows; clicks of test rows were not read."""

    folder: Path
    metrics: dict[str, float]
    """``NAME.validation_auc`` and the other measures on validation rows."""


def demo(
    out: Path,
    *,
    products: int = 3000,
    requests: int = 60_000,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Make the grocery world and run the whole line on it.

    Args:
        out: The run's folder. The world is written beside it, as ``OUT-world``.
        products: Size of the catalogue.
        requests: Logged requests, eight impressions each.
        seed: Of the world and of the run.
        overwrite: Replace an earlier demo.
        progress: Told of the stages.
    """
    out, progress = Path(out), progress or Silent()
    world = out.with_name(f"{out.name}-world")
    made_with = {"products": products, "requests": requests, "seed": seed}
    recipe = world / "made_with.json"
    if world.exists() and (not recipe.is_file() or read_json(recipe) != made_with):
        if not (overwrite and recipe.is_file()):
            raise ValueError(
                f"{world} exists and is not the world of these settings; nothing was written. "
                "Choose another --out, or pass --overwrite to make it anew"
            )
        shutil.rmtree(world)
    if not world.exists():
        partial = world.with_name(f".{world.name}.partial")
        if partial.exists():
            shutil.rmtree(partial)
        with progress.stage("making the grocery world"):
            make_world(partial, products=products, requests=requests, seed=seed)
            write_json(partial / recipe.name, made_with)
            partial.rename(world)
    return run(RunConfig(data=world, out=out, seed=seed, overwrite=overwrite), progress)


def embed(config: EmbedConfig, progress: Progress | None = None) -> dict[str, dict[str, float]]:
    """Train the encoders on a catalogue, embed it, and judge the vectors without clicks.

    The vectors are left in ``OUT/embeddings/SOURCE/products`` and, where the dataset has queries,
    ``queries``. Products alone suffice for ``off_the_shelf`` and, with images, for ``stage1``.
    Under torchrun all ranks train stage 1 together; the first does the rest.

    Returns:
        Each kind of vectors to its measures, TF-IDF beside them where there is a relevance table;
        empty on all ranks but the first.

    Raises:
        ValueError: If the dataset lacks a table, or ``out`` holds something else.
    """
    progress = progress or Silent()
    dataset = Dataset.open(config.data)
    dataset.require("products", needed_for="embedding a catalogue")
    _refuse_unfed_sources(config.sources, dataset)
    together = Ranks.current() if set(config.sources) - {"off_the_shelf", "random"} else Ranks()
    if together.rank:
        # The first rank makes the folder, or refuses to; only then is there anything to train.
        together.agree(0)
        train_stage1(
            dataset.table("products"),
            config.stage1,
            seed=config.seed,
            out=model_folder(config.out, 1),
            image_root=dataset.folder,
        )
        together.leave_()
        return {}
    refuse_errors(check_dataset(dataset.without_log()))
    folder = RunFolder.begin_(
        config.out, config.identity(dataset.fingerprint()), overwrite=config.overwrite
    )
    write_json(folder.path / "config.json", config)
    maker = VectorMaker(dataset, config, folder, progress.steps)
    if together.world > 1:
        together.agree(0)
        maker.model(1)
        together.leave_()
    for source in config.sources:
        with progress.stage(f"vectors: {source}"):
            maker.make(source)
    with progress.stage("judging the vectors"):
        evaluation = maker.evaluate(config.sources)
        for source, figures in maker.judge_modalities(config.sources).items():
            evaluation.setdefault(source, {}).update(figures)
    figures = flat_evaluation(evaluation)
    write_metrics(folder.path / "metrics.json", figures)
    if config.track:
        uri = config.tracking_uri or default_uri(folder.path.parent)
        settings = config.model_dump(mode="json", exclude={"data", "out"})
        tags = {"data": dataset.fingerprint(), "code": code_version()}
        with Tracker(
            uri, run_name=folder.path.name, params=settings, tags=tags, run_folder=folder.path
        ) as tracker:
            tracker.log_histories(maker.histories())
            tracker.log_metrics(figures)
    folder.finish_()
    return evaluation


def train(config: RunConfig, progress: Progress | None = None) -> Trainings:
    """Train click models and judge them on validation rows; ``evaluate`` reads test clicks.

    Under torchrun the first rank does all of this but the fits of click networks, which all ranks
    carry out together with sharded id tables; vectors are best made before (``embed``).

    Returns:
        What was trained; without figures on all ranks but the first.

    Raises:
        ValueError: If the dataset, a variant or the folder will not do.
    """
    with led_by_the_first_rank(config.out) as leads:
        if leads:
            return _train(config, progress)
    return Trainings(folder=config.out, metrics={})


def _train(config: RunConfig, progress: Progress | None) -> Trainings:
    line = Run(config, progress)
    validation = line.parts.validation
    metrics: dict[str, float] = {}
    trained_by_name = line.train_all()
    for variant in line.variants:
        trained = trained_by_name[variant.name]
        p_click_N = np.mean([one.p_validation_N for one in trained], axis=0)
        assert validation.label_N is not None
        measures = click_metrics(validation.label_N, p_click_N, validation.user_N)
        metrics |= {f"{variant.name}.validation_{key}": v for key, v in measures.items()}
        metrics[f"{variant.name}.fit_seconds"] = float(np.mean([t.seconds for t in trained]))
    write_metrics(line.folder.path / "metrics.json", metrics)
    line.folder.finish_()
    return Trainings(folder=line.folder.path, metrics=metrics)


def evaluate(run_folder: Path, progress: Progress | None = None) -> dict[str, dict[str, float]]:
    """Measure the click models of a run on its test rows.

    Returns:
        Each variant to its AUC with interval, log loss, normalized entropy, calibration, and the
        same by slice.

    Raises:
        ValueError: If the folder is no run, or its dataset was changed since.
    """
    line = Run.reopen(run_folder, progress)
    return {
        variant.name: offline_metrics(
            line.parts, mean_over_seeds(line.train(variant)), line.config.confidence
        )
        for variant in line.variants
    }


def compare(
    config: RunConfig, progress: Progress | None = None, *, placebos: bool = True
) -> Comparison:
    """Train a set of variants on one pass of features and compare them with ``production``.

    Args:
        config: Settings of the run; by default the standard set is compared.
        progress: Told of the stages.
        placebos: Put both placebos into the set if they are not there. Without any, no verdict is
            possible, for a gain may be capacity alone.

    Raises:
        ValueError: If ``production`` is not among the variants, the dataset cannot feed the
            placebos, or as ``run``.
    """
    names = config.variants
    if names is not None and BASELINE not in names:
        raise ValueError(
            f"variants {' '.join(names)} lack the baseline {BASELINE}, to which the others are "
            f"compared: --variants {BASELINE} {' '.join(names)}"
        )
    if placebos:
        names = _with_placebos(names, Dataset.open(config.data))
    elif names is None:
        names = tuple(n for n in feasible_variants(Dataset.open(config.data)) if n not in CONTROLS)
    result = run(config.model_copy(update={"simulate": False, "variants": names}), progress)
    if result.comparison is None:
        raise ValueError(result.left_out["comparison"])
    return result.comparison


def simulate(
    run_folder: Path, ab: AbConfig | None = None, progress: Progress | None = None
) -> AbResult:
    """Run a simulated A/B test between two variants of a run, and write it to ``RUN/ab``.

    ``simulation.simulate_arms`` takes arms from elsewhere too.

    Raises:
        ValueError: If a variant was not trained, or the data does not know its truth.
    """
    from experiments.simulation import simulate_arms

    config = SimulateConfig.model_validate((ab or AbConfig()).model_dump())
    return simulate_arms(config, run_folder=run_folder, progress=progress)[0]


def export(
    run_folder: Path,
    out: Path,
    *,
    variants: Sequence[str] = (),
    average: Literal["logit", "probability"] = "logit",
    calibrate: Literal["none", "platt", "isotonic", "temperature"] = "none",
    int8_tables: bool = False,
    vectors: Literal["inside", "pointer"] = "inside",
    query_encoder: Literal["none", "fp32", "int8"] = "fp32",
    progress: Progress | None = None,
) -> Path:
    """Write variants of a run as a bundle that scores without torch.

    Args:
        run_folder: A run with trained click models.
        out: The bundle's folder; it must not exist.
        variants: One, or several to be averaged; by default the tower with the best validation
            log loss.
        average: What of several models is averaged.
        calibrate: Fitted on all validation rows, of which some also prove the export.
        int8_tables: Store id tables in one byte a value, if that costs little.
        vectors: Whether the bundle holds its vectors or points to them.
        query_encoder: Precision of the encoder that gives new query texts a vector. Only vectors
            that DashCLIP's encoders made have one.
        progress: Told of the stages.

    Raises:
        ValueError: If the bundle's scores are not the model's, int8 costs too much, or the variants
            use different vectors; nothing is left at ``out`` then.
    """
    from ranking.calibration import Isotonic, Platt, Temperature
    from ranking.ensemble import Ensemble
    from ranking.export import export_bundle
    from ranking.model_card import CardFacts
    from ranking.predictor import average as mean_of

    line = Run.reopen(run_folder, progress)
    chosen = [_trained(line, name) for name in variants or [_best_on_validation(line)]]
    sources: list[VectorSource] = []
    for one in chosen:
        if one.variant.vectors is not None and one.variant.vectors not in sources:
            sources.append(one.variant.vectors)
    if len(sources) > 1:
        raise ValueError(
            f"variants {' '.join(variants)} use the vectors {' and '.join(sources)}; "
            "a bundle holds one kind"
        )
    stores = line.vectors.stores(sources[0]) if sources else (None, None)
    fed = next((one.variant for one in chosen if one.variant.vectors), chosen[0].variant)
    models = [one.model() for one in chosen]
    calibrator = None
    if calibrate != "none":
        p_N = np.stack([one.p_validation_N for one in chosen])
        kinds = {"platt": Platt, "isotonic": Isotonic, "temperature": Temperature}
        calibrator = kinds[calibrate].fit(line.validation_label_N, mean_of(p_N, average))
    more_files = None
    if sources and query_encoder != "none":
        more_files = _query_encoder_writer(line, sources[0], query_encoder)
    with line.progress.stage(f"exporting {' + '.join(one.variant.name for one in chosen)}"):
        return export_bundle(
            models[0] if len(models) == 1 else Ensemble(models, of=average),
            line.pipeline_of(fed),
            *stores,
            # A column of texts would be encoded, which the trained model cannot do.
            line.validation_sample(_PROOF_ROWS).drop("query", strict=False),
            Path(out),
            calibrator=calibrator,
            int8_tables=int8_tables,
            vectors_place=vectors,
            more_files=more_files,
            facts=CardFacts(data=read_json(line.folder.path / DATA)),
        )


def score(bundle: Path, table: Path, out: Path, *, progress: Progress | None = None) -> BatchScores:
    """Score a parquet table of impressions with a bundle, in parts of bounded memory.

    Args:
        bundle: What ``export`` wrote.
        table: Impressions, raw.
        out: Parquet to write: request_id and product_id, where the table has them, and p_click.
        progress: Told of the rows done.

    Raises:
        ValueError: If the bundle was changed, or the table is missing or lacks a column.
    """
    from ranking.batch_score import score_parquet
    from ranking.score import Scorer

    scorer = Scorer.load(bundle)
    with (progress or Silent()).stage(f"scoring {table.name}") as report:
        return score_parquet(
            scorer,
            table,
            out,
            progress=lambda done, rows: report(done, rows, f"{done} of {rows} rows"),
        )


def flat_evaluation(evaluation: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the measures of vectors as flat figures, those that could be computed."""
    return {
        f"embedding.{name}.{key}": value
        for name, measures in evaluation.items()
        for key, value in measures.items()
        if np.isfinite(value)
    }


def _with_placebos(names: Sequence[str] | None, dataset: Dataset) -> tuple[str, ...]:
    """The set with both placebos right behind the baseline, where they are missing."""
    chosen = tuple(feasible_variants(dataset) if names is None else names)
    lacking = [name for name in CONTROLS if name not in chosen]
    for name in lacking:
        needs = REGISTRY[name]().lacks(dataset)
        if needs:
            raise ValueError(
                f"the placebos {' and '.join(lacking)} belong to every comparison, and dataset "
                f"{dataset.spec.name!r} has no {' and no '.join(needs)} to make them of. Add what "
                "is missing, or compare with --no-placebos; no verdict is possible then"
            )
    after = chosen.index(BASELINE) + 1
    return (*chosen[:after], *lacking, *chosen[after:])


def _refuse_unfed_sources(sources: Sequence[VectorSource], dataset: Dataset) -> None:
    variant_of = {v.vectors: v for v in (make() for make in REGISTRY.values())}
    for source in dict.fromkeys(sources):
        lacking = variant_of[source].lacks(dataset)
        if source in ("off_the_shelf", "stage1"):
            # Click models need query vectors beside the products'; a catalogue alone does not.
            lacking = [need for need in lacking if need != "queries"]
        if lacking:
            raise ValueError(
                f"dataset {dataset.spec.name!r} has no {' and no '.join(lacking)}, which the "
                f"vectors {source!r} need; leave them out with --sources, or add the table and "
                "name it under [tables] in dataset.toml"
            )


def _query_encoder_writer(
    line: Run, source: VectorSource, precision: Literal["fp32", "int8"]
) -> Callable[[Path], object] | None:
    """What writes the query encoder of these vectors into a bundle; None where there is none."""
    from ranking.query_encoder import QUERY_ENCODER
    from ranking.query_export import write_query_encoder

    model = line.vectors.query_model(source)
    if model is None:
        if precision == "int8":
            raise ValueError(f"the vectors {source!r} have no query encoder that could be int8")
        return None
    product_PD = line.vectors.stores(source)[0].vectors_VD
    return lambda folder: write_query_encoder(
        model,
        folder / QUERY_ENCODER,
        line.dataset.table("queries"),
        precision=precision,
        product_PD=product_PD,
    )


def _trained(line: Run, name: str) -> Trained:
    known: Sequence[str] = [variant.name for variant in line.variants]
    if name not in known:
        raise ValueError(f"{line.folder.path} has no variant {name!r}; it has {', '.join(known)}")
    return line.train(line.variants[known.index(name)])[0]


def _best_on_validation(line: Run) -> str:
    """Name the neural variant with the lowest validation log loss; placebos do not run."""
    from ranking.metrics import log_loss_nats

    label_N = line.parts.validation.label_N
    assert label_N is not None
    loss = {
        v.name: log_loss_nats(label_N, line.train(v)[0].p_validation_N)
        for v in line.variants
        if v.model == "tower" and v.name not in CONTROLS
    }
    if not loss:
        raise ValueError(f"{line.folder.path} has no neural variant; name one with --variant")
    return min(loss, key=lambda name: loss[name])
