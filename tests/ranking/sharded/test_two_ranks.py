"""What two ranks started by torchrun make of a fit, beside what one makes of it."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.torchrun import torchrun
from experiments.verify_sharding import _whole
from ranking import sharded_checkpoint
from ranking.checkpoint import write_manifest
from ranking.fit_job import FitJob
from ranking.sharded_checkpoint import same_checkpoint
from ranking.sharded_fit import train_together
from ranking.warm_start import adagrad_tensors

ROOT = Path(__file__).parents[3]


def start(ranks, job, state, steps):
    """Start ``ranking.sharding_check`` on so many ranks."""
    return subprocess.Popen(
        torchrun(ranks, "-m", "ranking.sharding_check", job, state, steps),
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*started):
    """Wait for all of them, and say what those said that failed."""
    said = [process.communicate(timeout=300)[0] for process in started]
    codes = [process.returncode for process in started]
    assert not any(codes), "\n".join(said)[-4000:]


def on_one_rank(job_folder, state, steps, ranks):
    """What ``ranking.sharding_check`` does, in this process."""
    job = FitJob.read(job_folder)
    train_together(job, job.network(job_folder), ranks, checkpoint=state, max_steps=steps)


@pytest.fixture(scope="module")
def states(job_folder, group_of_one):
    """Ten steps on one rank, on two, and the first's state taken through two ranks and back."""
    at = {name: job_folder.with_name(name) for name in ("one", "many", "there")}
    many = start(2, job_folder, at["many"], 10)
    on_one_rank(job_folder, at["one"], 10, group_of_one)
    shutil.copytree(at["one"], at["there"])
    finish(many, start(2, job_folder, at["there"], 0))
    on_one_rank(job_folder, at["there"], 0, group_of_one)
    return at


def test_two_ranks_learn_what_one_learns(states):
    one, many = (_whole(states[name] / "state") for name in ("one", "many"))
    assert one.keys() == many.keys()
    apart = {name: float((one[name] - many[name]).abs().max()) for name in one}
    assert max(apart.values()) < 1e-5
    # Both held tables: the features', and the one that attention looks history up in.
    assert {name.split(".")[0] for name in one if name.startswith("table-")} == {
        f"table-{number}" for number in range(5)
    }
    files = [load_file(path).keys() for path in (states["many"] / "state").glob("rank-*")]
    assert len(files) == 2 and all(files) and not files[0] & files[1]


def test_training_moved_every_table(states, job_folder):
    job = FitJob.read(job_folder)
    first = load_file(job_folder / "initial.safetensors")
    learned = _whole(states["one"] / "state")
    tables = [name for name in first if ".table." in name]
    assert len(tables) == 5
    for number, name in enumerate(sorted(tables, key=_as_numbered(job_folder, job))):
        assert not torch.equal(first[name], learned[f"table-{number}.weight"])


def _as_numbered(folder, job):
    order = [name for name, _ in job.network(folder).named_parameters() if ".table." in name]
    return order.index


def test_a_checkpoint_goes_from_one_rank_to_two_and_back_bit_for_bit(states):
    assert same_checkpoint(states["one"] / "state", states["there"] / "state")
    assert not same_checkpoint(states["one"] / "state", states["many"] / "state")


def test_a_checkpoint_is_read_in_pieces(states, job_folder, tmp_path, group_of_one, monkeypatch):
    monkeypatch.setattr(sharded_checkpoint, "READ_ROWS", 7)
    shutil.copytree(states["many"], tmp_path / "state")
    on_one_rank(job_folder, tmp_path / "state", 0, group_of_one)
    one, many = _whole(tmp_path / "state/state"), _whole(states["many"] / "state")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_a_training_cut_off_goes_on_to_the_same_bits(job_folder, states, tmp_path, group_of_one):
    for steps in (3, 7, 10):
        on_one_rank(job_folder, tmp_path / "state", steps, group_of_one)
    straight, resumed = (_whole(at / "state") for at in (states["one"], tmp_path / "state"))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert any(name.startswith("average.") for name in straight)
    names = {name.removeprefix("dense.") for name in straight if name.startswith("dense.")}
    network = FitJob.read(job_folder).network(job_folder)
    assert names >= {name for name, _ in network.named_parameters() if ".table." not in name}


def test_a_damaged_or_foreign_checkpoint_is_refused(states, job_folder, tmp_path, group_of_one):
    broken = tmp_path / "broken"
    shutil.copytree(states["one"], broken)
    path = broken / "state/dense.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    lacking = tmp_path / "lacking"
    shutil.copytree(states["many"], lacking)
    shard = lacking / "state/rank-00001.safetensors"
    shard.unlink()
    save_file({}, shard)
    write_manifest(lacking / "state", **_manifest(states["many"] / "state"))
    foreign = tmp_path / "foreign"
    shutil.copytree(states["one"], foreign)
    other = {**_manifest(states["one"] / "state"), "tables": [["user_id", 3, 8]]}
    (foreign / "state/manifest.json").unlink()
    write_manifest(foreign / "state", **other)
    for state, message in (
        (broken, "has SHA-256"),
        (lacking, "was a rank's file left behind"),
        (foreign, "Were the features or their vocabularies changed"),
    ):
        with pytest.raises(ValueError, match=message):
            on_one_rank(job_folder, state, 0, group_of_one)


def _manifest(folder):
    fields = json.loads((folder / "manifest.json").read_text())
    return {name: value for name, value in fields.items() if name != "sha256"}


@pytest.mark.slow
def test_columns_of_a_table_can_lie_on_different_ranks(job_folder, states, tmp_path, group_of_one):
    job = dataclasses.replace(FitJob.read(job_folder), column_wise=("product_id",))
    network = job.network(job_folder)
    halves = tmp_path / "job"
    job.write_(halves, network)
    shutil.copytree(states["one"], tmp_path / "state")
    finish(start(2, halves, tmp_path / "state", 0))
    parts = [load_file(path) for path in sorted((tmp_path / "state/state").glob("rank-*"))]
    split = [key for part in parts for key in part if key.endswith("-4.weight")]
    assert split, [list(part) for part in parts]
    on_one_rank(job_folder, tmp_path / "state", 0, group_of_one)
    assert same_checkpoint(states["one"] / "state", tmp_path / "state/state")
    # And it learns: parts of rows have sums of their own, so not the very same numbers.
    finish(start(2, halves, tmp_path / "learned", 10))
    one, two = _whole(states["one"] / "state"), _whole(tmp_path / "learned/state")
    table = f"table-{job.signature.sparse_names.index('product_id')}.weight"
    first = _whole(tmp_path / "state/state")[table]
    assert one[table].shape == two[table].shape
    assert not torch.equal(two[table], first)
    assert not torch.equal(two[table], one[table])


@pytest.mark.slow
def test_an_interrupted_training_goes_on_with_another_number_of_ranks(job_folder, states, tmp_path):
    finish(start(2, job_folder, tmp_path / "state", 4))
    finish(start(1, job_folder, tmp_path / "state", 10))
    one, two = _whole(states["one"] / "state"), _whole(tmp_path / "state/state")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5


@pytest.mark.slow
def test_adagrads_sums_reach_every_rank(job_folder, states, tmp_path, group_of_one):
    """Two ranks that begin with the sums of one, columns of a table apart."""
    job = dataclasses.replace(FitJob.read(job_folder), column_wise=("product_id",))
    network = job.network(job_folder)
    train_together(job, network, group_of_one, max_steps=5)
    job.write_(tmp_path / "job", network)
    finish(start(2, tmp_path / "job", tmp_path / "state", 0))
    found, groups = _whole(tmp_path / "state/state"), adagrad_tensors(network)
    given = sorted(groups, key=lambda name: [int(part) for part in name.split(".")])
    for number, name in enumerate(given):
        assert groups[name].any()
        assert torch.equal(found[f"table-{number}.momentum"], groups[name]), name


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_with_a_message(job_folder, tmp_path):
    running = start(2, job_folder, tmp_path / "state", 100_000)
    deadline = time.monotonic() + 120
    victim = None
    while victim is None and time.monotonic() < deadline:
        time.sleep(0.5)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        if len(children) == 2 and (tmp_path / "state/state").exists():
            victim = int(children[1])
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    said, _ = running.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert running.returncode != 0
    assert f"exitcode  : -9 (pid: {victim})" in said
