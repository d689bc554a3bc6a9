"""Commands under torchrun: two ranks, one of which dies, go on to the same model; who does what."""

import json
import os
import re
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file

from experiments import commands, schedule_trainings
from experiments.config import RunConfig
from experiments.marketplace.world import make_world
from experiments.torchrun import torchrun
from features.build import build_features
from ranking import fit_leader
from ranking.tower_config import TowerConfig

ROOT = Path(__file__).parents[2]
RANKED = """
    # Trains as `python -m experiments train` does, but keeps a state after every step, and notes
    # what was copied for the other ranks.
    import sys
    from pathlib import Path

    from experiments.commands import train
    from experiments.config import RunConfig
    from ranking import sharded_training
    from ranking.fit_job import FitJob
    from ranking.training_checkpoints import Cadence

    config = RunConfig.model_validate_json(Path(sys.argv[1]).read_text())
    sharded_training.ASKED_EVERY = 1
    Cadence.due = lambda self, step: True
    write_ = FitJob.write_

    def write_and_note(self, folder, network):
        write_(self, folder, network)
        names = sorted(path.stem for path in Path(folder).glob("train/*.npy"))
        Path(f"{config.out}.copied").write_text(" ".join(names))

    FitJob.write_ = write_and_note
    train(config)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("w") / "world", products=100, requests=600, seed=0)


@pytest.fixture(scope="module")
def built(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("f") / "features"
    build_features(world, out, workers="local:1", partitions=2)
    return out


@pytest.fixture
def train(world, built, tmp_path):
    """Starts a training on two ranks into a folder of this name."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(RANKED))

    def started(name):
        tower = TowerConfig(
            max_epochs=2, patience=9, batch_size=64, production_mlp=(16,), cross_layers=1
        )
        config = RunConfig(
            data=world,
            out=tmp_path / name,
            features=built,
            variants=("production",),
            tower=tower,
            track=False,
        )
        settings = tmp_path / f"{name}.json"
        settings.write_text(config.model_dump_json())
        return subprocess.Popen(
            torchrun(2, script, settings),
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return started


def finished(process):
    """Wait for it, and say what it said if it failed."""
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said[-4000:]


def step_kept(out):
    """The step of the last state of a training that goes on; 0 before there is one."""
    manifest = out / "checkpoints/production-seed0/state/manifest.json"
    try:
        return json.loads(manifest.read_text())["record"]["step"]
    except FileNotFoundError:
        return 0


def test_a_training_whose_first_rank_died_goes_on_to_the_same_bits(train, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finished(train("whole"))
    running = train("cut")
    deadline = time.monotonic() + 120
    while step_kept(cut) < 20 and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.01)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    said, _ = running.communicate(timeout=60)
    assert running.returncode != 0
    assert re.search(r"exitcode +: -9", said)
    assert not (cut / "variants/production/seed0").exists(), "it was killed in the middle"
    stopped_at = step_kept(cut)
    assert stopped_at >= 20
    finished(train("cut"))
    one, two = (at / "variants/production/seed0" for at in (whole, cut))
    assert (one / "model/manifest.json").read_text() == (two / "model/manifest.json").read_text()
    assert pl.read_parquet(one / "predictions.parquet").equals(
        pl.read_parquet(two / "predictions.parquet")
    )
    assert any(sums.any() for sums in load_file(two / "model/adagrad.safetensors").values())
    assert not (cut / "checkpoints").exists()
    assert not list(tmp_path.glob(".*-ranks")), "nothing is left of what the ranks shared"
    # Users and requests are numbered as rows are read; everything else is mapped where it lies.
    assert Path(f"{cut}.copied").read_text() == "request_N user_N"


def test_ranks_train_the_models_of_a_comparison_together(world, built, tmp_path):
    out = tmp_path / "run"
    command = torchrun(2, "-m", "experiments", "compare", "--no-placebos")
    command += ["--data", world, "--features", built, "--out", out, "--no-track"]
    command += ["--variants", "production", "full_rank", "logistic", "--tower.max-epochs", "1"]
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert (done.stdout + done.stderr).count("report: ") == 1, "one rank speaks for all"
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"production.auc", "full_rank.delta_auc", "logistic.delta_auc"} <= metrics.keys()
    assert (out / "report.html").is_file()


class Asked(Exception):  # noqa: N818
    pass


class Ready:
    """A first rank that says when it is asked to fit."""

    def train(self, *given):
        raise Asked


@pytest.fixture
def led(monkeypatch):
    monkeypatch.setattr(fit_leader, "LEADERS", [Ready()])


def test_models_are_not_trained_in_processes_beside_the_ranks(
    world, built, tmp_path, led, monkeypatch
):
    monkeypatch.setattr(schedule_trainings, "WORTH_ROWS", 0)
    config = RunConfig(
        data=world, out=tmp_path / "run", features=built, variants=("production", "full_rank")
    )
    with pytest.raises(Asked):
        commands.train(config)


def test_processes_beside_ranks_are_refused_before_anything_is_written(world, built, tmp_path, led):
    config = RunConfig(data=world, out=tmp_path / "run", features=built, workers=2)
    with pytest.raises(ValueError, match=r"workers=2 .* leave --workers out"):
        commands.train(config)
    assert not (tmp_path / "run").exists()
