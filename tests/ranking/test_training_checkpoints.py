"""A killed training goes on to the same bits; states of other trainings are refused."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from embeddings import tensor_file
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig
from ranking.training_checkpoints import Cadence, Checkpoints

SETTINGS = {
    "batch_size": 100,
    "projected_dim": 8,
    "max_epochs": 3,
    "patience": 2,
    "ema_decay": 0.9,
    "negative_rate": 0.8,
    "lr": 0.01,
}


class Killed(Exception):  # noqa: N818
    pass


def weights_sum(model):
    digest = hashlib.sha256()
    for value in model.network_.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def fit(log, folder=None, seed=0, **options):
    config = TowerConfig(**{**SETTINGS, **options})
    return TowerRanker(config).fit(
        log.train, log.validation, log.vectors, seed=seed, checkpoints=folder
    )


@pytest.fixture
def every_step(monkeypatch):
    monkeypatch.setattr(Checkpoints, "due", lambda self, step: True)


@pytest.mark.parametrize(("killed_after", "run_rows"), [(1, 1), (13, 1), (17, 1), (17, 32)])
def test_a_training_cut_off_goes_on_to_the_same_bits(
    small_log, tmp_path, every_step, monkeypatch, killed_after, run_rows
):
    small_log = replace(small_log, train=replace(small_log.train, run_rows=run_rows))
    whole = fit(small_log)
    write_ = Checkpoints.write_

    def write_and_die(self, step, tensors, record):
        write_(self, step, tensors, record)
        if step == killed_after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write_", write_and_die)
        with pytest.raises(Killed):
            fit(small_log, tmp_path / "state")
    steps = []
    monkeypatch.setattr(Checkpoints, "write_", lambda self, step, *_: steps.append(step))
    resumed = fit(small_log, tmp_path / "state")
    assert steps[0] == killed_after + 1, "what was done is not done again"
    assert weights_sum(resumed) == weights_sum(whole)
    assert resumed.checks_ == whole.checks_


def kill_at_random(folder: Path, kills: int, rng: np.random.Generator) -> str:
    """Run the job, kill it so many times at random moments, and return its result."""
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    for _ in range(kills):
        job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert job.stdout is not None
        first = job.stdout.readline()
        assert first, "the job ended before its first step"
        if not first.startswith("done"):
            time.sleep(rng.random() * 0.1)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        job.stdout.close()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def test_a_process_killed_at_a_random_moment_goes_on_to_the_same_bits(small_log, tmp_path):
    killed = kill_at_random(tmp_path / "state", 1, np.random.default_rng())
    assert killed == kill_at_random(tmp_path / "whole", 0, np.random.default_rng())


@pytest.mark.slow
def test_ten_kills_change_no_bit(tmp_path):
    killed = kill_at_random(tmp_path / "state", 10, np.random.default_rng())
    assert killed == kill_at_random(tmp_path / "whole", 0, np.random.default_rng())


def test_another_trainings_state_is_refused(small_log, tmp_path, every_step):
    fit(small_log, tmp_path / "state", max_epochs=1)
    with pytest.raises(ValueError, match=r"another training: setting max_epochs was 1 and is 2"):
        fit(small_log, tmp_path / "state", max_epochs=2)
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        fit(small_log, tmp_path / "state", max_epochs=1, seed=1)


def test_rows_read_in_another_order_are_refused(small_log, tmp_path, every_step):
    fit(small_log, tmp_path / "state", max_epochs=1)
    in_runs = replace(small_log, train=replace(small_log.train, run_rows=32))
    with pytest.raises(ValueError, match="rows read in runs of was 1 and is 32"):
        fit(in_runs, tmp_path / "state", max_epochs=1)


def test_other_rows_are_refused(small_log, tmp_path, every_step):
    fit(small_log, tmp_path / "state", max_epochs=1)
    fewer = small_log.train.take(slice(0, 1500))
    with pytest.raises(ValueError, match="training rows was"):
        TowerRanker(TowerConfig(**{**SETTINGS, "max_epochs": 1})).fit(
            fewer, small_log.validation, small_log.vectors, seed=0, checkpoints=tmp_path / "state"
        )


def test_a_full_disk_is_said_and_leaves_the_state_before(
    small_log, tmp_path, every_step, monkeypatch
):
    folder, save_file = tmp_path / "state", tensor_file.save_file

    def full(tensors, path):
        if path.name.startswith(".state-4."):
            path.write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    monkeypatch.setattr(tensor_file, "save_file", full)
    with pytest.raises(ValueError, match=r"checkpoint of step 4 could not .* No space left"):
        fit(small_log, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["state-3.safetensors", "state.json"]
    monkeypatch.undo()
    assert weights_sum(fit(small_log, folder)) == weights_sum(fit(small_log))


def test_a_damaged_state_is_refused(small_log, tmp_path, every_step):
    fit(small_log, tmp_path / "state", max_epochs=1)
    (path,) = (tmp_path / "state").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="damaged"):
        fit(small_log, tmp_path / "state", max_epochs=1)


def test_states_are_written_by_the_clock_and_never_for_long(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    kept = Checkpoints(tmp_path / "state", {}, Cadence(every_seconds=60))
    assert not kept.due(1)
    now[0] = 60.0
    assert kept.due(2)
    kept.write_(2, {}, {})
    now[0] = 119.0
    assert not kept.due(3)
    now[0] = 120.0
    assert kept.due(4)


def work_slowly(folder: Path) -> None:
    """Train on the small log, saying every step, with time to be killed in."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import conftest

    write_ = Checkpoints.write_

    def write_and_say(self, step, tensors, record):
        write_(self, step, tensors, record)
        print(step, flush=True)
        time.sleep(0.01)

    Checkpoints.write_ = write_and_say
    Checkpoints.due = lambda self, step: True
    print("done", weights_sum(fit(conftest.small_log.__wrapped__(), folder)), flush=True)


if __name__ == "__main__":
    work_slowly(Path(sys.argv[1]))
