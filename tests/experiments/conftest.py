"""The files of a small run without any training, for the tests of its report."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.ab_result import AbResult
from experiments.always_valid import Look
from experiments.category_map import CategoryMap
from experiments.compare import compare_variants
from experiments.distortions import DISTORTIONS, DistortionRow
from experiments.figures import Curve, calibration_figure, figure_4, figure_5
from experiments.interference import BudgetReport
from experiments.leak_checks import LeakCheck
from experiments.lift import Lift
from experiments.model_figure import figure_3
from experiments.model_shape import model_shape
from experiments.power import PowerPlan
from experiments.preregistration import Preregistration
from experiments.records import collect_environment, write_bytes, write_json, write_metrics
from experiments.report import write_report
from experiments.report_content import (
    Cost,
    DataPart,
    DataSummary,
    Notes,
    TrainingRecord,
    read_report_content,
    write_figure,
)
from experiments.report_figures import page_figures
from ranking.calibration import reliability_curve

EVIL = "<script>alert('x')</script>"
METRICS = {"ctr": 0.041, "cvr": 0.087, "rpm": 19.4, "cpc": 0.47, "welfare": 31.2}


def some_comparison(gain: float = 1.0):
    """Six variants on 3,000 impressions; dashclip sees ``gain`` times what the others do not."""
    rng = np.random.default_rng(0)
    hidden_N, shown_N = rng.normal(size=(2, 3000))
    label_N = (rng.random(3000) < 1 / (1 + np.exp(2 - shown_N - hidden_N))).astype(float)

    def model(weight):
        noise_N = 0.02 * rng.normal(size=3000)
        return [1 / (1 + np.exp(2 - shown_N - weight * hidden_N - noise_N))]

    p_click = {
        "production": model(0),
        "random_vectors": model(0),
        "shuffled_vectors": model(0),
        "off_the_shelf": model(0.3 * gain),
        "dashclip": model(gain),
        "lightgbm": model(-0.3),
    }
    cold_N = rng.random(3000) < 0.3
    slices = {
        "cold_products": cold_N,
        "warm_products": ~cold_N,
        "missing_image": np.arange(3000) < 9,
    }
    quality = {
        "random_vectors": 0.1,
        "shuffled_vectors": 0.11,
        "off_the_shelf": 0.3,
        "dashclip": 0.6,
    }
    embedding = {
        name: {"recall@10": value, "auc_2v1": 0.5 + value / 2} for name, value in quality.items()
    }
    return compare_variants(
        label_N, rng.integers(0, 300, 3000), p_click, slices=slices, embedding=embedding
    )


def some_ab(srm_p_value: float = 0.7) -> AbResult:
    """The plainest result: one lift, nothing registered."""
    ctr = Lift(
        name="ctr", control=0.04, treatment=0.044, lift=0.1, low=0.02, high=0.18, p_value=0.01,
        true=0.0912,
    )  # fmt: skip
    return AbResult(
        lifts={"ctr": ctr},
        undefined={"cvr": "no purchase in the control arm"},
        n_requests=1000,
        n_users=200,
        users_control=101,
        users_treatment=99,
        srm_p_value=srm_p_value,
        confidence=0.95,
        salt="s",
    )


def full_ab() -> AbResult:
    """A result with every part that the page can show."""

    def lifts(width: float, shift: float = 0.0) -> dict[str, Lift]:
        return {
            name: Lift(
                name=name, control=value, treatment=value * (1.05 + shift), lift=0.05 + shift,
                low=0.05 + shift - width, high=0.05 + shift + width, p_value=0.03,
                error=width / 2, true=0.043,
            )
            for name, value in METRICS.items()
        }  # fmt: skip

    looks = {
        name: tuple(
            Look(share=k / 19, lift=0.05 + 0.1 / k, error=0.02 * (19 / k) ** 0.5,
                 low=0.05 - 0.07 * (19 / k) ** 0.5, high=0.05 + 0.08 * (19 / k) ** 0.5, p_value=0.1)
            for k in range(1, 20)
        )
        for name in METRICS
    }  # fmt: skip
    registration = Preregistration(
        control="production", treatment="dashclip", metric="ctr", test="cuped", alpha=0.05,
        requests=60_000, looks=0, salt="adtower", seed=7, calibration_requests=6000,
        minimum_detectable=0.031,
    )  # fmt: skip
    return AbResult(
        lifts=lifts(0.045),
        undefined={"relevance": "nobody knows it here"},
        n_requests=60_000,
        n_users=4200,
        users_control=2110,
        users_treatment=2090,
        srm_p_value=0.76,
        confidence=0.95,
        salt="adtower",
        currency="USD",
        cuped=lifts(0.03, -0.004),
        variance_reduction=dict.fromkeys(METRICS, 0.42),
        raw=lifts(0.05, 0.03),
        looks=looks,
        power={
            name: PowerPlan(
                metric=name, error=0.02, minimum_detectable=0.058, power=0.8, alpha=0.05
            )
            for name in METRICS
        },
        distortions=tuple(
            DistortionRow(
                arm=arm,
                distortion=bend,
                raw=dict.fromkeys(METRICS, 0.01 + 0.03 * (i if i % 2 == 0 else -i)),
                gated=dict.fromkeys(METRICS, 0.0),
            )
            for arm in ("control", "treatment")
            for i, bend in enumerate(DISTORTIONS)
        ),
        budgets=BudgetReport(
            pacing="throttle",
            budget_share=0.6,
            stopped_share=0.4,
            user_split=lifts(0.04),
            budget_split=lifts(0.06),
            user_split_expected=dict.fromkeys(METRICS, 0.07),
            budget_split_expected=dict.fromkeys(METRICS, 0.043),
        ),
        registration=registration,
        registration_sha256=registration.sha256,
    )


def some_data(simulated: bool = True) -> DataSummary:
    part = DataPart(impressions=3000, clicks=300, first="2026-01-01 00:00", last="2026-02-01 00:00")
    return DataSummary(
        name="grocery",
        simulated=simulated,
        fingerprint="ab" * 32,
        tables={"impressions": 3000},
        parts={"test": part},
    )


def shape_of(**settings):
    """The sizes of an unfitted network with these settings, and how many numbers it has."""
    from ranking.contract import InputSignature
    from ranking.network import build_network
    from ranking.tower_config import TowerConfig

    config = TowerConfig(**settings)
    features = ("user_id", "query_id", "product_id", "products.category", "time.hour")
    signature = InputSignature(
        sparse_names=features,
        vocabulary_sizes=(7366, 3908, 2231, 61, 25),
        dense_names=("products.price",),
        vectors_fingerprint="v",
        vectors_dim=128,
        history_length=3,
    )
    network, _ = build_network(config, signature, 2231)
    shapes = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    numbers = sum(weight.numel() for weight in network.state_dict().values())
    return model_shape(config, signature, shapes), numbers


def write_run(folder, *, title: str = "What are embeddings worth?", ab: AbResult | None = None):
    """Write a whole run folder, as the pipeline leaves it."""
    rng = np.random.default_rng(0)
    comparison, ab = some_comparison(), ab or full_ab()
    write_bytes(folder / "comparison.json", comparison.to_json().encode())
    write_bytes(folder / "ab.json", ab.to_json().encode())
    oracle = {"oracle.auc": 0.95, "oracle_without_position.auc": 0.9, "dashclip.fit_seconds": 12.0}
    write_metrics(folder / "metrics.json", comparison.to_metrics() | oracle)
    evaluation = {"tfidf": {"auc_2v1": 0.593}, "dashclip": {"auc_2v1": 0.8121, "pairs": 77.0}}
    write_json(folder / "embedding_evaluation.json", evaluation | {"random": {"auc_2v1": None}})
    write_json(folder / "data.json", some_data())
    write_json(folder / "environment.json", collect_environment())
    arms = {"control": "production", "treatment": "dashclip"}
    write_json(folder / "config.json", {"seed": 41, "ab": arms, "out": "r", "x": EVIL})
    curves = tuple(
        Curve(panel="Stage 1", name=name, x=tuple(range(1, 90)),
              y=tuple(float(v) for v in 4 / np.arange(1, 90) ** 0.3 + 0.1 * i),
              x_label="step", y_label="loss (nats)")
        for i, name in enumerate(("itc", "itm"))
    )  # fmt: skip
    costs = (
        Cost(what="stage 1", seconds=75.2, parameters=1_234_567),
        Cost(what="dashclip", seconds=12.0, parameters=287_261, peak_bytes=2**30, score_ms=1.25),
    )
    write_json(folder / "training.json", TrainingRecord(curves=curves, costs=costs))
    found = LeakCheck(looked_for="A request in two parts", found=f"none {EVIL}", clean=True)
    write_json(folder / "leak_checks.json", [found.model_dump()])
    figures = ("false_positive_rate", "coverage", "sequential_false_positive_rate", "power")
    values = dict(zip(figures, (0.051, 0.948, 0.012, 0.61), strict=True))
    write_metrics(
        folder / "selftest.json",
        {f"{name}.{figure}": value for name in METRICS for figure, value in values.items()}
        | {"rpm.coverage": 0.91, "experiments": 2000.0},
    )
    notes = Notes(
        title=title,
        command="adtower run --data d --out r",
        meanings={"dashclip": f"a meaning {EVIL}"},
        limits=(f"a limit {EVIL}",),
        left_out={"image_only": f"no images {EVIL}"},
        fingerprints={"vectors, dashclip": "cd" * 32},
    )
    write_json(folder / "notes.json", notes)
    maps = [
        CategoryMap(
            name=name,
            point_N2=(rng.normal(size=(60, 2)) + 4 * np.repeat(np.eye(3, 2), 20, axis=0)).astype(
                np.float32
            ),
            category_N=np.repeat(["tea & herbs", "bread", "cheese"], 20),
            silhouette=0.25,
        )
        for name in ("off the shelf", "dashclip")
    ]
    cosines = {label: rng.normal(0.3 * label, 0.1, 200).clip(-1, 1) for label in range(3)}
    p_N = rng.beta(1, 20, 3000)
    clicked_N = (rng.random(3000) < p_N).astype(float)
    curve = reliability_curve(clicked_N, p_N, bins=8)
    for name, image in {
        "figure_3": figure_3(shape_of()[0]),
        "figure_4": figure_4(maps),
        "figure_5": figure_5({"off the shelf": cosines, "dashclip": cosines}),
        "calibration": calibration_figure(
            dict.fromkeys(("production", "off_the_shelf", "dashclip"), curve)
        ),
    }.items():
        write_figure(folder, name, image, title=f"title of {name}", caption=f"caption of {name}")
    return folder


@pytest.fixture
def record() -> SimpleNamespace:
    """Makers of single records."""
    makers = (some_comparison, some_ab, full_ab, some_data, shape_of)
    return SimpleNamespace(evil=EVIL, **{make.__name__: make for make in makers})


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """A whole run folder with its page, for tests that read and do not write."""
    folder = write_run(tmp_path_factory.mktemp("run"))
    write_report(folder)
    return folder


@pytest.fixture(scope="session")
def drawn_run(whole_run, tmp_path_factory):
    """The same with names that try to break out of the page, and no figure left to draw."""
    folder = write_run(tmp_path_factory.mktemp("drawn"), title=f"a title {EVIL}")
    for figure in page_figures(read_report_content(whole_run)):
        write_figure(folder, figure.name, figure.image, title=figure.title, caption=figure.caption)
    return folder


@pytest.fixture
def run(drawn_run, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(drawn_run, tmp_path / "run")
