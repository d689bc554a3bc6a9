"""A search for the settings of the click model, by validation log loss alone.

The study lies in a sqlite file in the run's folder: a search that was cut off goes on, and one that
is asked for more trials adds them. Its first trial is the default, so what it recommends is never
worse than that on the validation rows. Test rows are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from experiments.config import RunConfig
from experiments.pipeline import Run
from experiments.progress import Progress, Silent
from experiments.training import limited_threads, new_model
from experiments.tune_config import TuneConfig
from experiments.variants import Variant
from features.examples import Examples
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig

if TYPE_CHECKING:
    import optuna

STUDY = "study.db"
_NAME = "click model"
_MLPS: dict[str, tuple[int, ...]] = {
    "64": (64,),
    "128 64": (128, 64),
    "256 128": (256, 128),
    "400 400 400": (400, 400, 400),
}


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """What the search found."""

    settings: dict[str, Any]
    """The best settings of ``TowerConfig``."""
    best_log_loss_nats: float
    default_log_loss_nats: float
    """Of the default settings, on the same validation rows."""
    best_auc: float
    trials: int
    """Trials so far, earlier calls included."""

    def flags(self) -> str:
        """Return the settings as command-line flags of `adtower train`, `compare` and `run`."""
        words = []
        for name, value in self.settings.items():
            given = " ".join(map(str, value)) if isinstance(value, tuple | list) else f"{value}"
            words.append(f"--tower.{name.replace('_', '-')} {given}")
        return " ".join(words)

    def to_metrics(self) -> dict[str, float]:
        """Return the figures, flat."""
        return {
            "best.validation_log_loss": self.best_log_loss_nats,
            "best.validation_auc": self.best_auc,
            "default.validation_log_loss": self.default_log_loss_nats,
            "trials": float(self.trials),
        }


def tune(config: TuneConfig, progress: Progress | None = None) -> TuneResult:
    """Search settings of the click model on training and validation rows.

    Raises:
        ValueError: If optuna is missing, the variant is none of the neural ones, or as ``run``.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            "`adtower tune` needs optuna; install it with pip install 'adtower[tune]'"
        ) from error
    progress = progress or Silent()
    line = Run(
        RunConfig(
            data=config.data,
            out=config.out,
            features=config.features,
            variants=(config.variant,),
            seed=config.seed,
            threads=config.threads,
            tower=TowerConfig(max_epochs=config.max_epochs),
            simulate=False,
            track=False,
        ),
        progress,
    )
    (variant,) = line.variants
    if variant.model != "tower":
        raise ValueError(
            f"variant {variant.name!r} is a {variant.model} model; the search is for those of the "
            "click network"
        )
    if line.built is not None:
        parts = line.parts_of(variant)
        train, validation = parts.train, parts.validation
    else:
        train, validation = (
            line.pipeline_of(variant).transform(part)
            for part in (line.split.train, line.split.validation)
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{(line.folder.path / STUDY).resolve()}",
        study_name=_NAME,
        load_if_exists=True,
        direction="minimize",
    )
    _give_up_interrupted(study)
    done = _finished(study)
    # Another seed for what is added, or it would repeat the first proposals.
    study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(done), n_startup_trials=8)
    if not done:
        study.enqueue_trial(_parameters(line.config.tower))
    with progress.stage(f"{config.trials} trials") as report:

        def told(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            count, best = len(_finished(study)), _best(study)
            told_best = "none yet" if best is None else f"{best.value:.5f}"
            report(count, config.trials, f"trial {trial.number}: best log loss {told_best}")

        study.optimize(
            lambda trial: _train(trial, line, variant, train, validation),
            n_trials=max(0, config.trials - len(done)),
            callbacks=[told],
        )
    return _result(study)


def _train(
    trial: optuna.Trial, line: Run, variant: Variant, train: Examples, validation: Examples
) -> float:
    """Train one model; return its best validation log loss."""
    import optuna

    tower = TowerConfig.model_validate({**line.config.tower.model_dump(), **_propose(trial)})
    config = line.config.model_copy(update={"tower": tower})
    model = new_model(variant, config)
    assert isinstance(model, TowerRanker)
    try:
        with limited_threads(config.threads):
            model.fit(train, validation, line.joined(variant), seed=config.seed)
    except ValueError as error:
        if "the loss of step" in str(error):
            raise optuna.TrialPruned(str(error)) from error
        raise
    best = min(model.checks_, key=lambda check: check.validation_log_loss_nats)
    trial.set_user_attr("validation_auc", best.validation_auc)
    return best.validation_log_loss_nats


def _propose(trial: optuna.Trial) -> dict[str, Any]:
    """Return settings of ``TowerConfig`` to try."""
    return {
        "lr": trial.suggest_float("lr", 3e-4, 1e-2, log=True),
        "sparse_lr": trial.suggest_float("sparse_lr", 0.01, 0.5, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-4, 0.1, log=True),
        "dropout": trial.suggest_float("dropout", 0.0, 0.4),
        "batch_size": trial.suggest_categorical("batch_size", [512, 1024, 2048, 4096]),
        "embedding_dim": trial.suggest_categorical("embedding_dim", [8, 16, 32]),
        "cross_layers": trial.suggest_int("cross_layers", 1, 4),
        "cross_rank": trial.suggest_categorical("cross_rank", [16, 32, 64]),
        "production_mlp": _MLPS[trial.suggest_categorical("production_mlp", list(_MLPS))],
    }


def _parameters(tower: TowerConfig) -> dict[str, Any]:
    """Return the default settings as the study names them."""
    names = ("lr", "sparse_lr", "weight_decay", "dropout", "batch_size", "embedding_dim",
             "cross_layers", "cross_rank")  # fmt: skip
    mlp = " ".join(map(str, tower.production_mlp))
    return {**{name: getattr(tower, name) for name in names}, "production_mlp": mlp}


def _give_up_interrupted(study: optuna.Study) -> None:
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _best(study: optuna.Study) -> optuna.trial.FrozenTrial | None:
    complete = [trial for trial in _finished(study) if trial.value is not None]
    return min(complete, key=lambda trial: trial.value or 0.0, default=None)


def _result(study: optuna.Study) -> TuneResult:
    finished, best = _finished(study), _best(study)
    if best is None:
        raise ValueError(f"none of {len(finished)} trials could be trained; their losses diverged")
    default = finished[0]
    settings = {**best.params, "production_mlp": _MLPS[best.params["production_mlp"]]}
    assert best.value is not None
    return TuneResult(
        settings=settings,
        best_log_loss_nats=best.value,
        default_log_loss_nats=float("inf") if default.value is None else default.value,
        best_auc=best.user_attrs["validation_auc"],
        trials=len(finished),
    )
