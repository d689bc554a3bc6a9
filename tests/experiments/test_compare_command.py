"""The verb compare, whole: placebos by itself, killed and repeated, full disks, several runs."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from embeddings.stage1_config import Stage1Config
from embeddings.stage2_config import Stage2Config
from experiments import commands
from experiments.config import RunConfig
from experiments.joined_runs import join_runs
from experiments.marketplace.world import make_world
from experiments.run_folder import RunFolder, full_disk_named
from experiments.tracking import EXPERIMENT, default_uri
from ranking.tower_config import TowerConfig

ROOT = Path(__file__).parents[2]
TINY = {
    "stage1": Stage1Config(text_weights="random", image_width=24, image_layers=1, steps=2),
    "stage2": Stage2Config(steps=2),
    "tower": TowerConfig(max_epochs=1, batch_size=256, production_mlp=(8,), cross_layers=1),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("c") / "world", products=120, requests=700, seed=0)


@pytest.fixture(scope="module")
def compared(world, tmp_path_factory):
    """One comparison that named no placebo, tracked in MLflow."""
    out = tmp_path_factory.mktemp("runs") / "compared"
    names = ("production", "dashclip")
    config = RunConfig(data=world, out=out, variants=names, seeds=2, **TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return out, commands.compare(config), config


def repeatable(metrics):
    return {k: v for k, v in metrics.items() if not k.endswith(("seconds", "_bytes"))}


def test_placebos_join_the_set_and_every_figure_is_there(compared):
    out, comparison, _ = compared
    names = [row.name for row in comparison.rows]
    assert names == ["production", "random_vectors", "shuffled_vectors", "dashclip"]
    assert all(row.seeds == 2 and len(row.auc_by_seed) == 2 for row in comparison.rows)
    metrics = json.loads((out / "metrics.json").read_text())
    for name in ("capacity.delta_auc", "dashclip.delta_placebo", "dashclip.auc_seed_sd",
                 "dashclip.slice.warm_products.delta_auc_low", "dashclip.slice.tail_queries.auc",
                 "exchange.recall@10.slope", "exchange.auc_2v1.points"):  # fmt: skip
        assert name in metrics, name
    assert metrics["exchange.auc_2v1.points"] == 3


def test_mlflow_has_parent_and_children_with_fingerprints(compared):
    import mlflow

    out, comparison, _ = compared
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client = mlflow.MlflowClient(tracking_uri=default_uri(out.parent))
        experiment = client.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None
        runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"compared", *(row.name for row in comparison.rows)}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    data = json.loads((out / "data.json").read_text())["fingerprint"]
    for run in runs.values():
        assert run.data.tags["data"] == data
        assert run.data.tags["code"]
    parent, child = runs["compared"], runs["dashclip"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["encoder"] != runs["random_vectors"].data.tags["encoder"]
    assert "encoder" not in runs["production"].data.tags
    assert child.data.metrics["delta_auc"] == comparison["dashclip"].delta_auc
    assert "seed1.validation_log_loss_nats" in child.data.metrics


def test_without_placebos_there_is_no_verdict_and_a_missing_baseline_is_refused(world, tmp_path):
    config = RunConfig(
        data=world, out=tmp_path / "run", variants=("production", "logistic"), track=False, **TINY
    )
    comparison = commands.compare(config, placebos=False)
    assert [row.name for row in comparison.rows] == ["production", "logistic"]
    assert comparison.verdict().startswith("No verdict is possible without a placebo")
    with pytest.raises(ValueError, match=r"lack the baseline production.*--variants production l"):
        commands.compare(config.model_copy(update={"variants": ("logistic",)}))


def test_data_that_cannot_feed_placebos_is_refused_with_the_way_out(world, tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    shutil.copy(world / "impressions.parquet", log)
    (log / "dataset.toml").write_text(
        'name = "log"\n[tables]\nimpressions = "impressions.parquet"\n'
        '[features]\nsparse = ["user_id", "query_id", "product_id"]\n'
    )
    config = RunConfig(
        data=log, out=tmp_path / "run", variants=("production", "logistic"), track=False, **TINY
    )
    with pytest.raises(ValueError, match=r"placebos .* has no products .*--no-placebos"):
        commands.compare(config)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(compared, tmp_path, world):
    _, comparison, config = compared
    again = config.model_copy(update={"out": tmp_path / "full", "track": False})
    once, tried = RunFolder.once, []

    def full(self, name, make):
        if name == "variants/dashclip/seed1" and not tried:
            tried.append(name)

            def writes_half(at):
                at.mkdir()
                (at / "half").write_text("half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(at))

            return once(self, name, writes_half)
        return once(self, name, make)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "once", full)
        with pytest.raises(OSError, match=r"no space is left for variants/dashclip/seed1 in"):
            commands.compare(again)
    assert (tmp_path / "full" / "variants" / "dashclip" / "seed0").is_dir()
    resumed = commands.compare(again)
    assert tried and resumed.to_metrics() == comparison.to_metrics()


def test_every_writers_full_disk_is_recognised_and_other_errors_pass(tmp_path):
    # As polars tells of it, in an error of its own.
    with pytest.raises(OSError, match="repeat the command"), full_disk_named(tmp_path, "for it"):
        raise RuntimeError("parquet: No space left on device (os error 28)")
    with pytest.raises(PermissionError), full_disk_named(tmp_path, "for it"):
        raise PermissionError(errno.EACCES, "no")


def test_runs_on_different_data_are_not_compared(compared, tmp_path):
    out, comparison, _ = compared
    twin = tmp_path / "twin"
    shutil.copytree(out, twin)
    joined = join_runs([out, twin])
    assert joined["twin/dashclip"].auc == comparison["dashclip"].auc
    assert joined["dashclip"].delta_auc == comparison["dashclip"].delta_auc
    assert set(joined.controls) == {"random_vectors", "shuffled_vectors", "twin/random_vectors",
                                    "twin/shuffled_vectors"}  # fmt: skip
    data = json.loads((twin / "data.json").read_text())
    (twin / "data.json").write_text(json.dumps({**data, "fingerprint": "0" * 64}))
    with pytest.raises(ValueError, match=r"different data.*train both on one dataset"):
        join_runs([out, twin])
    with pytest.raises(ValueError, match="needs at least two"):
        join_runs([out])
    state = json.loads((twin / "run.json").read_text())
    (twin / "run.json").write_text(json.dumps({**state, "state": "running"}))
    with pytest.raises(ValueError, match="twin is no finished run"):
        join_runs([out, twin])


@pytest.mark.slow
def test_a_comparison_killed_in_mid_training_is_repeated_to_equal_figures(compared, tmp_path):
    _, comparison, config = compared
    settings = config.model_copy(
        update={"out": tmp_path / "killed", "workers": 2, "memory_gb": 8.0}
    )
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from experiments.commands import compare\n"
        "from experiments.config import RunConfig\n"
        "if __name__ == '__main__':\n"
        "    compare(RunConfig.model_validate_json(Path(sys.argv[1]).read_text()))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    command = [sys.executable, str(script), str(tmp_path / "settings.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ADTOWER_PROBE": "off"}
    process = subprocess.Popen(command, env=environment)
    variants = settings.out / "variants"
    while process.poll() is None and len(list(variants.glob("*/seed*"))) < 2:
        time.sleep(0.05)
    assert process.poll() is None, "it was done before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    # The trainings it left behind end by themselves.
    time.sleep(1.0)
    finished = len(list(variants.glob("*/seed*")))
    assert finished < 8
    subprocess.run(command, env=environment, check=True)
    metrics = json.loads((settings.out / "metrics.json").read_text())
    expected = repeatable(comparison.to_metrics())
    assert {key: metrics[key] for key in expected} == expected
