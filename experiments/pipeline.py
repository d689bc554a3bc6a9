"""The whole line, from a dataset folder to a verdict: the only place where the stages meet.

Shape letters: N impressions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.ab_result import AbResult
from experiments.built_features import BuiltFeatures
from experiments.comparison import Comparison
from experiments.config import AbConfig, RunConfig
from experiments.data_summary import describe_data
from experiments.marketplace.world import World
from experiments.offline_metrics import mean_over_seeds, offline_metrics
from experiments.progress import Progress, Silent
from experiments.records import (
    DATA,
    ENVIRONMENT,
    METRICS,
    collect_environment,
    read_json,
    write_bytes,
    write_json,
    write_metrics,
)
from experiments.run_folder import RunFolder, full_disk_named
from experiments.schedule_trainings import Training, plan_workers, train_in_processes
from experiments.scored_requests import Scorer
from experiments.simulate_config import SimulateConfig
from experiments.simulation import run_ab
from experiments.training import (
    Parts,
    Trained,
    compared_parts,
    drop_checkpoints_,
    features_at,
    read_trained,
    train_once,
    trained_at,
)
from experiments.truth import oracle_auc, truth_folder
from experiments.variants import (
    REGISTRY,
    STANDARD,
    Variant,
    VectorSource,
    feasible_variants,
    find_variants,
)
from experiments.vectors import VectorMaker
from features.check import check_dataset
from features.dataset import Dataset, Split
from features.embedding_join import Vectors, join_vectors
from features.pipeline import FeaturePipeline
from features.violation import refuse_errors
from ranking.fit_leader import current_leader


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run found; all of it is in its folder too."""

    folder: Path
    comparison: Comparison | None
    """None where fewer than two variants, or no baseline, were trained."""
    embedding_evaluation: dict[str, dict[str, float]]
    ab: AbResult | None
    metrics: dict[str, float]
    """Flat, as in ``metrics.json``."""
    left_out: dict[str, str]
    """Parts that the dataset could not feed, with the reason."""


class Run:
    """One run on one dataset, stage by stage; each stage is kept when the run is cut off.

    ``run`` is the whole; the command line's smaller verbs use single stages.
    """

    def __init__(
        self, config: RunConfig, progress: Progress | None = None, *, reopen: bool = False
    ) -> None:
        _refuse_workers_beside_ranks(config)
        self.config = config
        self.progress = progress or Silent()
        self.dataset = Dataset.open(config.data)
        names = config.variants or tuple(feasible_variants(self.dataset))
        self.variants = find_variants(names, self.dataset)
        self.left_out = {
            name: f"the dataset has no {' and no '.join(REGISTRY[name]().lacks(self.dataset))}"
            for name in (STANDARD if config.variants is None else ())
            if name not in names
        }
        self.dataset.require("impressions", needed_for="training a click model")
        self.built = BuiltFeatures.of(config, self.dataset)
        """Arrays on disk that take the place of the log; None where features are made here."""
        identity = config.identity(self.dataset.fingerprint())
        if reopen:
            # Of the same data, so they were checked.
            self.folder = RunFolder.reopen(config.out, identity)
        else:
            # Before the folder is begun, so that what is refused leaves nothing behind.
            self._refuse_wrong_data()
            described = describe_data(self.dataset, self.built.arrays if self.built else self.split)
            self.folder = RunFolder.begin_(config.out, identity, overwrite=config.overwrite)
            write_json(self.folder.path / "config.json", config)
            write_json(self.folder.path / ENVIRONMENT, collect_environment())
            write_json(self.folder.path / DATA, described)
        self.vectors = VectorMaker(self.dataset, config, self.folder, self.progress.steps)
        self._joined: dict[str, Vectors] = {}
        self._parts: Parts | None = None
        self._pipeline: FeaturePipeline | None = None
        self._compared: dict[VectorSource, FeaturePipeline] = {}
        self._compared_parts: dict[VectorSource, Parts] = {}
        if self.bins and not reopen and all(v.vectors is None for v in self.variants):
            self.left_out["similarity_bins"] = "no variant here has vectors to compare products by"

    def _refuse_wrong_data(self) -> None:
        # Who trains no encoder need not wait for every image to be decoded.
        trains = any(v.vectors not in (None, "off_the_shelf") for v in self.variants)
        # What was built was checked as it was read.
        checked = self.dataset if self.built is None else self.dataset.without_log()
        refuse_errors(check_dataset(checked, max_images=None if trains else 0))
        earlier = self._earlier(None)
        if self.built is not None and earlier is not None:
            self.built.pipeline.refuse_unless_continuing(earlier)

    @cached_property
    def split(self) -> Split:
        """The impressions as a table, by time; where features were built, only this reads them."""
        return self.dataset.split()

    @property
    def validation_label_N(self) -> NDArray[np.float32]:
        """Whether each validation row was clicked, shape (N,)."""
        if self.built is not None:
            return self.built.arrays.array("validation", "label_N")
        return self.split.validation["clicked"].cast(pl.Float32).to_numpy()

    def validation_sample(self, rows: int) -> pl.DataFrame:
        """Return at most so many raw validation impressions, evenly over their time."""
        if self.built is not None:
            return self.built.validation_sample(self.dataset, rows)
        validation = self.split.validation
        return validation.gather_every(max(1, -(-len(validation) // rows)))

    @property
    def bins(self) -> int:
        """Bins of the cosines' histogram; 0 where cosines are no features."""
        return self.dataset.spec.features.similarity_bins

    @classmethod
    def reopen(cls, path: Path, progress: Progress | None = None) -> Run:
        """Open the folder of a run to read its models, on the data that it was trained on.

        Raises:
            ValueError: If the folder is no run, or its dataset was changed since.
        """
        return cls(read_run_config(path), progress, reopen=True)

    @property
    def pipeline(self) -> FeaturePipeline:
        """The feature pipeline, fitted on training rows and stored under ``features/``.

        It is without the columns that come from vectors, which ``pipeline_of`` adds.
        """
        if self._pipeline is None:
            self._pipeline = self._kept(features_at(None), self._fitted)
        return self._pipeline

    def _fitted(self) -> FeaturePipeline:
        if self.built is not None:
            # That it goes on from the earlier run's was seen to at the beginning.
            return self.built.pipeline
        with self.progress.stage("features"):
            spec = self.dataset.spec
            plain = spec.model_copy(update={"features": replace(spec.features, similarity_bins=0)})
            fitted = FeaturePipeline(plain, min_count=self.config.min_count)
            return self._gone_on(fitted.fit(self.dataset, self.split.train), None)

    def pipeline_of(self, variant: Variant) -> FeaturePipeline:
        """Return the features that a variant is given: with cosines, if asked for, of its vectors.

        Each kind of vectors has a pipeline of its own, stored beside that of all.
        """
        source = variant.vectors
        if source is None or not self.bins:
            return self.pipeline
        if source not in self._compared:
            self._compared[source] = self._kept(
                features_at(source), lambda: self._fitted_compared(variant)
            )
        return self._compared[source]

    def _fitted_compared(self, variant: Variant) -> FeaturePipeline:
        vectors, train = self.joined(variant), self.parts.train
        assert vectors is not None
        if self.built is not None and self.built.compares_by(vectors.fingerprint):
            built, earlier = self.built.compared_pipeline, self._earlier(variant.vectors)
            if earlier is not None:
                built.refuse_unless_continuing(earlier)
            return built
        with self.progress.stage(f"cosines of {variant.vectors} vectors"):
            compared = self.pipeline.compared_by(vectors, train, bins=self.bins)
            return self._gone_on(compared, variant.vectors)

    def _gone_on(self, fitted: FeaturePipeline, source: VectorSource | None) -> FeaturePipeline:
        """Features with the rows and scales of the run that this one goes on from, if any."""
        earlier = self._earlier(source)
        if earlier is not None:
            fitted.continue_from(earlier)
        return fitted

    def _earlier(self, source: VectorSource | None) -> FeaturePipeline | None:
        """The features of the run that this one goes on from, if any."""
        start_from = self.config.start_from
        return (
            None if start_from is None else FeaturePipeline.load(start_from / features_at(source))
        )

    def _kept(self, at: str, fit: Callable[[], FeaturePipeline]) -> FeaturePipeline:
        """A pipeline of the run, fitted and stored if it is not there."""
        if (self.folder.path / at).is_dir():
            return FeaturePipeline.load(self.folder.path / at)
        fitted = fit()
        self.folder.once(at, fitted.save_)
        return fitted

    @property
    def parts(self) -> Parts:
        """The impressions as arrays."""
        if self._parts is None and self.built is not None:
            self._parts = self.built.parts(self.pipeline)
        if self._parts is None:
            pipeline = self.pipeline
            with self.progress.stage("feature arrays"):
                self._parts = Parts(
                    train=pipeline.transform(self.split.train),
                    validation=pipeline.transform(self.split.validation),
                    test=pipeline.transform(self.split.test),
                )
        return self._parts

    def parts_of(self, variant: Variant) -> Parts:
        """Return the impressions as a variant is given them."""
        pipeline, source = self.pipeline_of(variant), variant.vectors
        if pipeline is self.pipeline or source is None:
            return self.parts
        if source not in self._compared_parts:
            # One kind at a time: each holds its own copy of all dense columns.
            built = self.built
            parts = built.parts(pipeline) if built else compared_parts(self.parts, pipeline)
            self._compared_parts = {source: parts}
        return self._compared_parts[source]

    def joined(self, variant: Variant) -> Vectors | None:
        """Return a variant's vectors in catalogue order, or None."""
        if variant.vectors is None:
            return None
        if variant.vectors not in self._joined:
            self._joined[variant.vectors] = join_vectors(
                *self.vectors.stores(variant.vectors),
                self.pipeline.product_ids_,
                self.pipeline.query_ids_,
            )
        return self._joined[variant.vectors]

    def train_all(
        self, on_trained: Callable[[Trained], None] = lambda trained: None
    ) -> dict[str, list[Trained]]:
        """Train every variant once a seed, several at once where that is worth it.

        Args:
            on_trained: Called with each model that was not there yet, as soon as it is.

        Returns:
            By variant, one model a seed.
        """
        missing = [
            Training(variant=variant, seed=seed)
            for variant in self.variants
            for seed in range(self.config.seeds)
            if not self._is_trained(variant, seed)
        ]
        # Encoders are trained first, with all cores to themselves.
        vectors: dict[VectorSource, Vectors] = {}
        for one in missing:
            joined = self.joined(one.variant)
            if joined is not None and one.variant.vectors is not None:
                vectors[one.variant.vectors] = joined
        workers = 1
        # Under torchrun every fit is carried out by all ranks, and one after the other.
        if missing and current_leader() is None:
            # Fitted here, for the processes read them.
            columns = max(len(self.pipeline_of(one.variant).dense_names) for one in missing)
            workers = plan_workers(
                len(missing),
                self.parts,
                list(vectors.values()),
                self.config,
                more_columns=columns - len(self.pipeline.dense_names),
            )
        if workers == 1:
            for one in missing:
                on_trained(self.train_one(one.variant, one.seed))
        else:
            stage = f"{len(missing)} click models, {workers} at once"
            with self.progress.stage(stage) as report:
                done = itertools.count(1)

                def trained_one(trained: Trained) -> None:
                    name = f"{trained.variant.name}, seed {trained.seed}"
                    report(next(done), len(missing), f"{name}: {trained.seconds:.0f} s")
                    on_trained(trained)

                train_in_processes(
                    missing,
                    self.parts,
                    vectors,
                    self.config,
                    self.folder,
                    workers,
                    on_trained=trained_one,
                )
        return {variant.name: self.train(variant) for variant in self.variants}

    def train(self, variant: Variant) -> list[Trained]:
        """Train a variant once a seed, or read what was trained before."""
        return [self.train_one(variant, seed) for seed in range(self.config.seeds)]

    def train_one(self, variant: Variant, seed: int) -> Trained:
        """Train a variant with one seed, or read what was trained before."""
        if self._is_trained(variant, seed):
            drop_checkpoints_(variant, seed, self.folder)
            return read_trained(variant, seed, self.folder.path)
        parts = self.parts_of(variant)
        given = (variant, seed, parts, self.joined(variant), self.config, self.folder)
        label = f"{variant.name}, seed {seed}" if self.config.seeds > 1 else variant.name
        with self.progress.stage(label) as report:
            return train_once(*given, report)

    def _is_trained(self, variant: Variant, seed: int) -> bool:
        return (self.folder.path / trained_at(variant, seed)).is_dir()

    def scorer(self, trained: Trained) -> Scorer:
        """Return the function from raw impression rows to pCTR that serves a variant."""
        model, vectors = trained.model(), self.joined(trained.variant)
        pipeline = self.pipeline_of(trained.variant)

        def score(impressions: pl.DataFrame) -> NDArray[np.float64]:
            return model.predict_proba(pipeline.transform(impressions), vectors)

        return score


def _refuse_workers_beside_ranks(config: RunConfig) -> None:
    if current_leader() is not None and (config.workers or 1) > 1:
        raise ValueError(
            f"workers={config.workers} are processes that each train a model, but under torchrun "
            "all ranks train one model together; leave --workers out, or start without torchrun"
        )


def run(config: RunConfig, progress: Progress | None = None) -> RunResult:
    """Train every variant on a dataset, compare them, and write all of it to a folder.

    Args:
        config: What to run, and where to.
        progress: Told of the stages; silent by default.

    Returns:
        The comparison, the A/B test where the truth is known, and the flat figures.

    Raises:
        ValueError: If the dataset, a variant or the folder will not do; nothing is left behind.
    """
    from experiments.mirror import mirrored
    from experiments.run_comparison import compare_run
    from experiments.run_report import write_run_report

    line = Run(config, progress)
    with full_disk_named(line.folder.path, "for the run"), mirrored(line) as mirror:
        trained = line.train_all(mirror.trained)
        sources: dict[VectorSource, None] = {v.vectors: None for v in line.variants if v.vectors}
        with line.progress.stage("judging the vectors"):
            evaluation = line.vectors.evaluate(sources)
        comparison = compare_run(line, trained, evaluation)
        ab = _simulate(line, trained)
        metrics = _metrics(line, trained, comparison, evaluation, ab)
        write_metrics(line.folder.path / METRICS, metrics)
        result = RunResult(
            folder=line.folder.path,
            comparison=comparison,
            embedding_evaluation=evaluation,
            ab=ab,
            metrics=metrics,
            left_out=line.left_out,
        )
        with line.progress.stage("report"):
            write_run_report(line, trained, result)
        mirror.finished(trained, result)
    line.folder.finish_(left_out=line.left_out)
    return result


def read_run_config(path: Path) -> RunConfig:
    """Return the configuration that a run folder was made with.

    Raises:
        ValueError: If the folder is not that of a run that trained click models.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        raise ValueError(
            f"{path} is not the folder of a run (it has no config.json); "
            "make one with `adtower run`, `adtower train` or `adtower compare`"
        )
    fields = read_json(file)
    if "tower" not in fields:
        raise ValueError(f"{path} holds embeddings only; `adtower train` makes click models")
    return RunConfig.model_validate({**fields, "out": path})


def _simulate(line: Run, trained: dict[str, list[Trained]]) -> AbResult | None:
    if not line.config.simulate:
        line.left_out["ab"] = "the run was told not to simulate"
        return None
    ab = line.config.ab
    truth = truth_folder(line.dataset)
    arms = [name for name in (ab.control, ab.treatment) if name not in trained]
    if truth is None:
        line.left_out["ab"] = "the true click probabilities are known in simulated data only"
        return None
    if arms:
        line.left_out["ab"] = f"the A/B test needs {' and '.join(arms)}, which was not trained"
        return None
    result = ab_between(line, trained[ab.control][0], trained[ab.treatment][0], ab)
    write_bytes(line.folder.path / "ab.json", result.to_json().encode())
    return result


def ab_between(line: Run, control: Trained, treatment: Trained, ab: AbConfig) -> AbResult:
    """Run the simulated A/B test between two trained variants of a run.

    Raises:
        ValueError: If the dataset does not know the truth of its clicks.
    """
    truth = truth_folder(line.dataset)
    if truth is None:
        raise ValueError(
            f"dataset {line.dataset.spec.name!r} has no truth/ folder, so nobody knows what other "
            "rankings would have earned; a simulated A/B test needs data from `adtower data make` "
            "or `adtower data simulate`"
        )
    settings = SimulateConfig.model_validate(
        {**ab.model_dump(), "confidence": line.config.confidence}
    )
    return run_ab(
        World.load(truth),
        line.scorer(control),
        line.scorer(treatment),
        settings,
        seed=line.config.seed + 7,
        folder=line.folder.path,
        data=line.dataset.fingerprint(),
        progress=line.progress,
    )


def _metrics(
    line: Run,
    trained: dict[str, list[Trained]],
    comparison: Comparison | None,
    evaluation: dict[str, dict[str, float]],
    ab: AbResult | None,
) -> dict[str, float]:
    """Gather the flat figures of a run."""
    known = truth_folder(line.dataset) is not None
    metrics = oracle_auc(line.dataset, line.split) if known else {}
    if comparison is not None:
        metrics |= comparison.to_metrics()
    for name, seeds in trained.items():
        offline = offline_metrics(line.parts, mean_over_seeds(seeds), line.config.confidence)
        # What the comparison says of a variant (interval with clusters and seeds) stands.
        metrics = {f"{name}.{k}": v for k, v in offline.items()} | metrics
        metrics[f"{name}.fit_seconds"] = float(np.mean([one.seconds for one in seeds]))
        metrics[f"{name}.parameters"] = float(seeds[0].parameters)
    for name, measures in evaluation.items():
        metrics |= {f"embedding.{name}.{k}": v for k, v in measures.items() if np.isfinite(v)}
    if ab is not None:
        metrics |= ab.to_metrics()
    return metrics
