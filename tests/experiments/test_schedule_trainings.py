"""Several trainings at once give the same models as one after the other, within the budget."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from experiments.config import RunConfig
from experiments.run_folder import RunFolder
from experiments.schedule_trainings import (
    SHARED,
    Training,
    plan_workers,
    train_in_processes,
    training_bytes,
)
from experiments.training import Parts, limited_threads, train_once
from experiments.variants import REGISTRY
from features.array_record import write_record
from ranking.tower_config import TowerConfig

ROOT = Path(__file__).parents[2]
TOWER = TowerConfig(max_epochs=2, batch_size=256, production_mlp=(16,), cross_layers=1)


@pytest.fixture
def parts(small_log):
    return Parts(train=small_log.train, validation=small_log.validation, test=small_log.test)


@pytest.fixture
def config(tmp_path):
    return RunConfig(data=tmp_path, out=tmp_path / "run", seeds=2, tower=TOWER)


def test_processes_train_the_same_models_to_the_bit(small_log, parts, config, tmp_path):
    names = ("production", "dashclip", "lightgbm_dashclip", "logistic")
    trainings = [Training(variant=REGISTRY[name](), seed=1) for name in names]
    beside = RunFolder.begin_(tmp_path / "beside", {})
    alone = RunFolder.begin_(tmp_path / "alone", {})
    told = []
    train_in_processes(
        trainings, parts, {"dashclip": small_log.vectors}, config, beside, 2, on_trained=told.append
    )
    assert {(t.variant.name, t.seed) for t in told} == {(t.variant.name, t.seed) for t in trainings}
    assert not (beside.path / SHARED).exists()
    for one in trainings:
        vectors = small_log.vectors if one.variant.vectors else None
        here = train_once(one.variant, one.seed, parts, vectors, config, alone)
        there = train_once(one.variant, one.seed, parts, vectors, config, beside)
        assert np.array_equal(here.p_test_N, there.p_test_N), one
        assert here.curve == there.curve
        assert here.peak_bytes > 10**8


def test_a_training_has_its_threads_alone_and_gives_them_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with limited_threads(1):
        assert torch.get_num_threads() == 1
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_the_budget_decides_how_many_train_at_once(parts, config):
    need = training_bytes(parts, [], config)

    def plan(trainings=6, **settings):
        return plan_workers(trainings, parts, [], config.model_copy(update=settings))

    assert plan(workers=3, memory_gb=100) == 3
    assert plan(workers=3, memory_gb=2.5 * need / 1e9) == 2
    assert plan(trainings=2, workers=3, memory_gb=100) == 2
    wide = config.model_copy(update={"workers": 3, "memory_gb": 2.5 * need / 1e9})
    rows = len(parts.train) + len(parts.validation) + len(parts.test)
    assert plan_workers(6, parts, [], wide) == 2
    assert plan_workers(6, parts, [], wide, more_columns=need // (8 * rows)) == 1
    # A small job is not worth a process.
    assert plan() == 1
    with pytest.raises(ValueError, match=r"memory_gb is 0\.1, but one training .* about 0\.7 GB"):
        plan(workers=2, memory_gb=0.1)


def test_many_rows_are_worth_as_many_processes_as_there_are_cores(parts, config, monkeypatch):
    monkeypatch.setattr("experiments.schedule_trainings.WORTH_ROWS", 1000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert plan_workers(20, parts, [], config, available_bytes=10**12) == 8
    two_each = config.model_copy(update={"threads": 2})
    assert plan_workers(20, parts, [], two_each, available_bytes=10**12) == 4
    need = training_bytes(parts, [], config)
    assert plan_workers(20, parts, [], config, available_bytes=3 * need) == 3


@pytest.mark.slow
def test_a_process_that_is_killed_is_named_with_what_to_do(parts, tmp_path):
    # The variant's model ends its process, as the system does when memory runs out.
    code = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from experiments import schedule_trainings as s
        from experiments.run_folder import RunFolder
        from features.array_record import map_record
        from experiments.config import RunConfig
        from experiments.training import Parts
        from experiments.variants import REGISTRY
        from features.examples import Examples

        def die(*given):
            os.kill(os.getpid(), signal.SIGKILL)

        if __name__ == "__main__":
            folder = RunFolder.begin_(Path(sys.argv[1]) / "run", {})
            parts = Parts(**{n: map_record(Examples, Path(sys.argv[1]) / n)
                             for n in ("train", "validation", "test")})
            s._train_here = die
            try:
                s.train_in_processes(
                    [s.Training(variant=REGISTRY["production"](), seed=0)], parts, {},
                    RunConfig(data="x", out="y"), folder, 2, on_trained=print)
            except RuntimeError as error:
                sys.exit(3 if "smaller --workers or --memory-gb" in str(error) else 4)
        """
    )
    for name in ("train", "validation", "test"):
        write_record(getattr(parts, name), tmp_path / name)
    script = tmp_path / "killed.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
