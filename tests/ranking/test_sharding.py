"""Training on several ranks under torchrun: the same weights, checkpoints that fit any number."""

import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from embeddings import tensor_file
from embeddings.ranks import Ranks
from experiments.config import RunConfig
from experiments.marketplace.world import make_world
from experiments.torchrun import torchrun
from experiments.verify_sharding import _whole, verify_sharding
from ranking import row_memory
from ranking import sharded_tables as sharded_tables_module
from ranking.checkpoint import write_manifest
from ranking.fit_job import FitJob
from ranking.fit_leader import current_leader
from ranking.fused_tables import FusedTables, TableGroup, id_tables
from ranking.metrics import log_loss_nats
from ranking.model import ClickNetwork
from ranking.sample_weights import sample_weights
from ranking.sharded_checkpoint import same_checkpoint
from ranking.sharded_fit import Leader, leading, sharded_tables, train_together
from ranking.sharded_tables import ShardedTables
from ranking.sharded_training import ShardedTraining
from ranking.sharding_plan import PlannedShard, plan_tables
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig
from ranking.train import LabelledRows, predict_network, train_network
from ranking.training_checkpoints import Cadence, kept_in, left_by_ranks
from ranking.warm_start import adagrad_tensors

ROOT = Path(__file__).parents[2]
CONFIG = TowerConfig(
    batch_size=48,
    dropout=0.0,
    vector_dropout=0.0,
    bf16="off",
    embedding_dim=8,
    production_mlp=(16,),
    head=(8,),
    tower_mlp=(8, 4),
    projected_dim=4,
    attention="ids",
    ema_decay=0.9,
    negative_rate=0.8,
)


def weighted(examples):
    """The rows, each counting its own way."""
    weight_N = np.random.default_rng(0).uniform(0.5, 2.0, len(examples)).astype(np.float32)
    return dataclasses.replace(examples, weight_N=weight_N)


@pytest.fixture(scope="session")
def job_folder(shop, tmp_path_factory):
    """A fit with vectors, a production tower and a table of its own for the history, of some of
    the non-clicks, with weights of rows and averages of weights."""
    folder = tmp_path_factory.mktemp("sharding") / "job"
    rows = weighted(shop.examples)
    job, network, _ = TowerRanker(CONFIG).begin_fit_(
        rows.take(slice(0, 480)), rows.take(slice(480, 600)), shop.vectors, seed=3
    )
    job.write_(folder, network)
    return folder


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


@pytest.fixture(scope="module")
def group_of_one():
    """A process group with this process alone, so that one rank runs what many run."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks()
    gc.collect()
    dist.destroy_process_group()


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


def losses_together(job, job_folder, ranks):
    """Validation log loss at the checks of a training for ranks, and at its end."""
    network = job.network(job_folder)
    checks = train_together(job, network, ranks)
    end = log_loss_nats(job.label_N, predict_network(network, job.tensors()[1]))
    return [check.validation_log_loss_nats for check in checks], end


def losses_alone(job, job_folder):
    """The same of a training in one process."""
    network = job.network(job_folder)
    train, validation = job.tensors()
    held = [each for each in network.modules() if isinstance(each, FusedTables)]
    checks = train_network(
        network,
        TableGroup(*held),
        train,
        job.outcome_N,
        validation,
        job.label_N,
        job.config,
        seed=job.seed,
        train_weight_N=sample_weights(job.train),
    )
    end = log_loss_nats(job.label_N, predict_network(network, validation))
    return [check.validation_log_loss_nats for check in checks], end


@pytest.mark.parametrize("left_out", [None, "ema_decay", "negative_rate", "weight_N"])
def test_ranks_train_as_one_process_does(job_folder, group_of_one, left_out):
    """Averages, down-sampling, weights of rows, drops at plateaus: the same losses at each check,
    and others when one of them is left out."""
    job = FitJob.read(job_folder)
    config = CONFIG.model_copy(update={"max_epochs": 4})
    job = dataclasses.replace(job, config=config)
    checks, end = losses_together(job, job_folder, group_of_one)
    if left_out == "weight_N":
        job = dataclasses.replace(job, train=dataclasses.replace(job.train, weight_N=None))
    elif left_out is not None:
        plain = {left_out: TowerConfig().model_dump()[left_out]}
        job = dataclasses.replace(job, config=config.model_copy(update=plain))
    own_checks, own_end = losses_alone(job, job_folder)
    same = len(checks) == len(own_checks) and np.allclose(
        [*checks, end], [*own_checks, own_end], rtol=0, atol=2e-5
    )
    assert same == (left_out is None)
    assert end == pytest.approx(min(checks), abs=1e-6)


@pytest.fixture
def dropping(job_folder):
    """A job with dropout, whose best check comes long before its end."""
    changes = {"dropout": 0.3, "vector_dropout": 0.2, "max_epochs": 4, "lr": 0.03, "patience": 99}
    return dataclasses.replace(FitJob.read(job_folder), config=CONFIG.model_copy(update=changes))


class Killed(Exception):  # noqa: N818
    pass


def test_the_best_weights_are_copied_over_those_before(
    dropping, job_folder, group_of_one, monkeypatch
):
    """Shards that fill a third of a machine leave no room for two copies."""
    keep_best_, at = ShardedTraining._keep_best_, []

    def note(self):
        keep_best_(self)
        (kept_SD, *_), (shard, *_) = self.best["shards"], self._shards()
        at.append(kept_SD.data_ptr())
        assert torch.equal(kept_SD, shard.weight_SD)
        assert kept_SD.data_ptr() != shard.weight_SD.data_ptr()
        dense = self._scoring_state()
        assert all(torch.equal(kept, dense[name]) for name, kept in self.best["dense"].items())

    monkeypatch.setattr(ShardedTraining, "_keep_best_", note)
    train_together(dropping, dropping.network(job_folder), group_of_one)
    assert len(at) > 1 and len(set(at)) == 1


@pytest.mark.parametrize("killed_after", [3, 17, 31])
def test_dropout_and_the_best_weights_survive_a_kill(
    dropping, job_folder, group_of_one, tmp_path, monkeypatch, killed_after
):
    whole, resumed = (dropping.network(job_folder) for _ in range(2))
    checks = train_together(dropping, whole, group_of_one)
    losses = [check.validation_log_loss_nats for check in checks]
    assert 0 < losses.index(min(losses)) < len(losses) - 1, "the best is neither first nor last"
    save_, steps = ShardedTraining.save_, []

    def save_and_die(self):
        save_(self)
        steps.append(self.step)
        if self.step == killed_after:
            raise Killed

    monkeypatch.setattr(ShardedTraining, "save_", save_and_die)
    kept = {"checkpoint": tmp_path / "state", "cadence": Cadence(every_steps=1)}
    with pytest.raises(Killed):
        train_together(dropping, dropping.network(job_folder), group_of_one, **kept)
    torch.manual_seed(77)
    assert train_together(dropping, resumed, group_of_one, **kept) == checks
    assert steps[killed_after] == killed_after + 1, "what was done is not done again"
    one, two = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = adagrad_tensors(whole), adagrad_tensors(resumed)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_network_without_id_tables_keeps_its_best_weights(shop, group_of_one, tmp_path):
    rows = dataclasses.replace(
        shop.examples,
        sparse_names=(),
        sparse_NF=shop.examples.sparse_NF[:, :0],
        vocabulary_sizes=(),
    )
    changes = {"attention": "none", "max_epochs": 9, "lr": 0.05, "lr_drops": 0}
    job, network, _ = TowerRanker(CONFIG.model_copy(update=changes)).begin_fit_(
        rows.take(slice(0, 480)), rows.take(slice(480, 600)), shop.vectors, seed=3
    )
    job.write_(tmp_path / "job", network)
    networks = [job.network(tmp_path / "job") for _ in range(2)]
    first, again = (
        train_together(job, each, group_of_one, checkpoint=tmp_path / "state") for each in networks
    )
    losses = [check.validation_log_loss_nats for check in first]
    assert first == again and losses.index(min(losses)) < len(losses) - 1
    one, two = (predict_network(each, job.tensors()[1]) for each in networks)
    assert np.array_equal(one, two)


def test_masks_differ_by_step_and_by_rank(dropping, job_folder, group_of_one):
    def masks(rank, seed, steps):
        network = dropping.network(job_folder)
        with sharded_tables(network, dropping.config, group_of_one):
            training = ShardedTraining(network, dropping.config, seed=seed, ranks=group_of_one)
            training.ranks = Ranks(rank=rank, world=4)
            drawn = []
            for training.step in range(steps):
                training._seed_dropout_()
                drawn.append(torch.rand(4).tolist())
            return drawn

    first, again = masks(0, 3, 3), masks(0, 3, 3)
    assert first == again
    others = [first, masks(1, 3, 3), masks(0, 4, 3)]
    assert len({tuple(drawn) for each in others for drawn in each}) == 9


def test_states_are_written_by_the_first_ranks_clock(
    dropping, job_folder, group_of_one, tmp_path, monkeypatch
):
    written = []
    save_ = ShardedTraining.save_

    def save_and_note(self):
        save_(self)
        written.append(self.step)

    monkeypatch.setattr(ShardedTraining, "save_", save_and_note)
    monkeypatch.setattr(Cadence, "due", lambda self, step: True)
    network = dropping.network(job_folder)
    train_together(dropping, network, group_of_one, checkpoint=tmp_path)
    assert written == [16, 32, 36]


def test_losses_of_other_ranks_are_their_mean(dropping, job_folder, group_of_one):
    network = dropping.network(job_folder)
    with sharded_tables(network, dropping.config, group_of_one):
        training = ShardedTraining(network, dropping.config, seed=0, ranks=group_of_one)
        training.losses = [0.5, 0.25]
        assert training._losses_by_rank() == [[0.5, 0.25]]
        assert training._own_losses([[0.5, 0.25]]) == [0.5, 0.25]
        assert training._own_losses([[1.0, 0.0], [0.0, 0.5]]) == [0.5, 0.25]
        assert training._own_losses([]) == []
        training.ranks = Ranks(rank=1, world=2)
        assert training._own_losses([[1.0, 0.0], [0.0, 0.5]]) == [0.0, 0.5]


def test_another_trainings_state_is_refused(job_folder, dropping, group_of_one, tmp_path):
    job = dataclasses.replace(dropping, identity={"setting lr": 0.03, "seed": 3})
    for max_steps in (2, 4):
        train_together(
            job, job.network(job_folder), group_of_one, checkpoint=tmp_path, max_steps=max_steps
        )
    other = dataclasses.replace(job, identity={"setting lr": 0.05, "seed": 3})
    with pytest.raises(ValueError, match=r"another training: setting lr was 0\.03 and is 0\.05"):
        train_together(other, other.network(job_folder), group_of_one, checkpoint=tmp_path)


def test_ranks_and_one_process_refuse_each_others_states(
    job_folder, dropping, group_of_one, tmp_path
):
    network = dropping.network(job_folder)
    ranks_at, alone_at = tmp_path / "ranks", tmp_path / "alone"
    leader = Leader(tmp_path / "jobs", group_of_one)
    leader.folder.mkdir()
    short = dataclasses.replace(dropping, config=CONFIG.model_copy(update={"max_epochs": 1}))
    assert leader.train(short, network, None, ranks_at)
    assert left_by_ranks(ranks_at)
    with pytest.raises(ValueError, match="under torchrun, with two ranks or more"):
        kept_in(ranks_at, short, network)
    (ranks_at / "state").rename(ranks_at / ".state.old")
    with pytest.raises(ValueError, match="under torchrun, with two ranks or more"):
        kept_in(ranks_at, short, network)
    with pytest.raises(
        ValueError, match=r"another training: .*setting dropout was 0\.0 and is 0\.3"
    ):
        leader.train(dropping, network, None, ranks_at)
    kept_in(alone_at, short, network).write_(1, {}, {})
    with pytest.raises(ValueError, match="without torchrun"):
        leader.train(short, network, None, alone_at)
    assert leader.jobs == 1, "no rank was asked"


def test_the_first_rank_brings_tables_together_in_a_file(
    job_folder, dropping, group_of_one, tmp_path, monkeypatch
):
    monkeypatch.setattr(row_memory, "MAPPED_BYTES", 0)
    here = dropping.network(job_folder)
    checks = train_together(dropping, here, group_of_one)
    with leading(tmp_path / "jobs", group_of_one):
        there = dropping.network(job_folder)
        leader = current_leader()
        assert leader is not None and leader.train(dropping, there, None, None) == checks
        tables = [table for _, group in id_tables(there) for table in group.weights()]
        assert tables and all(table.untyped_storage().filename for table in tables)
        assert list((tmp_path / "jobs").iterdir()) == []
    one, two = here.state_dict(), there.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one), "still there to be scored with"
    table = next(group.weights()[0] for _, group in id_tables(dropping.network(job_folder)))
    assert table.untyped_storage().filename is None, "what comes later lies in memory again"


def test_a_full_disk_is_said_and_leaves_the_state_before(
    job_folder, dropping, group_of_one, tmp_path, monkeypatch
):
    save_file = tensor_file.save_file

    def full(tensors, path):
        if len(wrote) == 5:
            path.write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device")
        wrote.append(path)
        save_file(tensors, path)

    wrote = []
    monkeypatch.setattr(tensor_file, "save_file", full)
    kept = {"checkpoint": tmp_path / "state", "cadence": Cadence(every_steps=1)}
    with pytest.raises(ValueError, match=r"checkpoint of step 3 could not .* No space left"):
        train_together(dropping, dropping.network(job_folder), group_of_one, **kept)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["state"]
    whole, resumed = (dropping.network(job_folder) for _ in range(2))
    checks = train_together(dropping, whole, group_of_one)
    assert train_together(dropping, resumed, group_of_one, **kept) == checks


def test_adagrads_sums_come_with_the_tables_and_go_back_with_them(job_folder, group_of_one):
    """What a model goes on from, and what the next one goes on from."""
    job = FitJob.read(job_folder)
    network = job.network(job_folder)
    tables = [each for each in network.modules() if isinstance(each, FusedTables)]
    for number, sum_V in enumerate(TableGroup(*tables).accumulators()):
        sum_V.uniform_(number + 1.0, number + 2.0)
    before = {name: sum_V.clone() for name, sum_V in adagrad_tensors(network).items()}
    with sharded_tables(network, job.config, group_of_one):
        shards = [shard for table in sharded(network) for shard in table.shards()]
        assert min(float(shard.momentum_S.min()) for shard in shards) >= 1.0
        for shard in shards:
            shard.momentum_S.add_(0.5)
    after = adagrad_tensors(network)
    assert before.keys() == after.keys() and len(after) == 5
    assert all(torch.equal(after[name], before[name] + 0.5) for name in before)


def sharded(network):
    """The tables of a network that are sharded now."""
    return [each for each in network.modules() if isinstance(each, ShardedTables)]


@pytest.fixture
def in_pieces(monkeypatch):
    """Tables are gathered and drawn in pieces that none of them is a multiple of."""
    monkeypatch.setattr(sharded_tables_module, "GATHERED_ROWS", 7)
    monkeypatch.setattr(sharded_tables_module, "DRAWN_ROWS", 7)


def cut(shard, *, top, bottom, left, right):
    """A part of a shard, as another rank could hold it."""
    return dataclasses.replace(
        shard,
        row=top,
        column=left,
        weight_SD=shard.weight_SD[top:bottom, left:right],
        momentum_S=shard.momentum_S[top:bottom].clone(),
    )


def test_parts_of_a_table_are_gathered_row_by_row_and_column_by_column(
    job_folder, group_of_one, in_pieces
):
    network = FitJob.read(job_folder).network(job_folder)
    with sharded_tables(network, CONFIG, group_of_one):
        table = sharded(network)[0]
        (first, *others) = table.shards()
        rows = len(first.weight_SD)
        first.momentum_S.copy_(torch.arange(rows))
        parts = [
            cut(first, top=top, bottom=bottom, left=left, right=right)
            for top, bottom in ((0, 10), (10, rows))
            for left, right in ((0, 2), (2, 8))
        ]
        for part, more in zip(parts, (1.0, 5.0, 1.0, 5.0), strict=True):
            part.momentum_S.add_(more)
        table.__dict__["shards"] = lambda: [*parts, *others]
        tables = [torch.full((size, 8), -1.0) for size in table.sizes]
        sums = [torch.full((size,), -1.0) for size in table.sizes]
        table.gather_(tables, sums)
        del table.__dict__["shards"]
    assert rows > 14 and torch.equal(tables[0], first.weight_SD)
    # Where the columns of a row lie apart its sum is their mean: two of eight, and six.
    assert torch.equal(sums[0], torch.arange(rows) + 4.0)
    for shard in others:
        assert torch.equal(tables[shard.table], shard.weight_SD)


def test_tables_begin_anew_alike_however_they_are_cut(job_folder, group_of_one, in_pieces):
    network = FitJob.read(job_folder).network(job_folder)
    with sharded_tables(network, CONFIG, group_of_one):
        table = sharded(network)[0]
        shards = table.shards()
        table.draw_again_(20, seed=5)
        whole = [shard.weight_SD.clone() for shard in shards]
        large = [shard for shard in shards if len(shard.weight_SD) >= 20]
        assert len(large) > 1
        for shard in large:
            shard.weight_SD.fill_(9.0)
            shard.momentum_S.fill_(9.0)
        bounds = [(0, 3), (3, 10), (10, 17), (17, None)]
        table.__dict__["shards"] = lambda: [
            cut(shard, top=top, bottom=bottom or len(shard.weight_SD), left=left, right=right)
            for shard in large
            for top, bottom in bounds
            for left, right in ((0, 4), (4, 8))
        ]
        table.draw_again_(20, seed=5)
        again = [shard.weight_SD.clone() for shard in shards]
        table.draw_again_(20, seed=6)
        other = [shard.weight_SD.clone() for shard in shards]
        del table.__dict__["shards"]
    assert all(torch.equal(one, two) for one, two in zip(whole, again, strict=True))
    drawn = [each for each, shard in zip(whole, shards, strict=True) if len(each) >= 20]
    for one, two in zip(drawn, [each for each in other if len(each) >= 20], strict=True):
        assert not one[0].any() and not two[0].any()
        assert not (one[1:] == two[1:]).any()
        assert float(one[1:].std()) == pytest.approx(0.01, rel=0.2)
        # No piece repeats another.
        assert len(one.unique()) == one[1:].numel() + 1
    assert not torch.equal(drawn[0][1:20], drawn[1][1:20])


def test_rows_are_read_from_the_job_and_no_rank_holds_whole_tables(
    job_folder, group_of_one, tmp_path
):
    job = FitJob.read(job_folder)
    network = job.network(job_folder)
    for number, sum_V in enumerate(adagrad_tensors(network).values()):
        sum_V.fill_(number)
    given = {name: value.clone() for name, value in network.state_dict().items()}
    job.write_(tmp_path / "job", network)
    for _, tables in id_tables(network):
        for weight_VE in tables.weights():
            weight_VE.fill_(7.0)
    follower = job.network(tmp_path / "job", rows=False)
    for rank, each in enumerate((network, follower)):
        whole = id_tables(each)
        ranks = Ranks(rank=rank, world=1)
        with sharded_tables(each, CONFIG, ranks, folder=tmp_path / "job"):
            held = [weight_VE for _, tables in whole for weight_VE in tables.weights()]
            assert {weight_VE.device.type for weight_VE in held} == {"meta"}
            for (name, _), table in zip(whole, sharded(each), strict=True):
                for shard in table.shards():
                    expected = given[f"{name}.table.{shard.table}"]
                    assert torch.equal(shard.weight_SD, expected)
        assert id_tables(each) == whole
    assert all(torch.equal(value, given[name]) for name, value in network.state_dict().items())
    with (
        pytest.raises(Killed),
        sharded_tables(network, CONFIG, group_of_one, folder=tmp_path / "job"),
    ):
        raise Killed
    # What they hold is undefined; that they can be written is not.
    for _, tables in id_tables(network):
        assert tables.weights()[0].fill_(1.0).sum() == tables.weights()[0].numel()


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


def test_a_training_that_stopped_does_not_go_on(job_folder, group_of_one, tmp_path):
    job = FitJob.read(job_folder)
    config = CONFIG.model_copy(update={"max_epochs": 9, "lr": 0.05, "lr_drops": 0})
    job = dataclasses.replace(job, config=config)
    networks = [job.network(job_folder) for _ in range(2)]
    first, again = (
        train_together(job, network, group_of_one, checkpoint=tmp_path / "state")
        for network in networks
    )
    assert first == again
    assert len(first) < 9 * CONFIG.checks_per_epoch
    one, two = (predict_network(network, job.tensors()[1]) for network in networks)
    assert np.array_equal(one, two)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_loss_is_never_taken_in_bfloat16(job_folder, group_of_one, monkeypatch, parts):
    seen, loss_of = [], ClickNetwork.loss

    def spy(self, hidden, *args, **options):
        seen.append((torch.is_autocast_enabled("cpu"), hidden.seen[0].dtype))
        return loss_of(self, hidden, *args, **options)

    monkeypatch.setattr(ClickNetwork, "loss", spy)
    job = FitJob.read(job_folder)
    job = dataclasses.replace(job, config=CONFIG.model_copy(update={"bf16": "on"}))
    train_together(job, job.network(job_folder), group_of_one, max_steps=2, parts=parts)
    assert seen == [(False, torch.bfloat16)] * (2 * parts)


@pytest.mark.parametrize("guard", ["freeze", "draw_again"])
def test_rates_warm_up_and_large_tables_are_guarded_after_an_epoch(job_folder, group_of_one, guard):
    changes = {"warm_up_steps": 5, "large_table_rows": 20, "max_epochs": 2, "patience": 99}
    changes |= {"large_tables": guard, "negative_rate": 1.0}
    job = FitJob.read(job_folder)
    job = dataclasses.replace(job, config=CONFIG.model_copy(update=changes))
    train, validation = job.tensors()
    rows = (
        LabelledRows(inputs=train, label_N=job.outcome_N),
        LabelledRows(inputs=validation, label_N=job.label_N),
    )
    network = job.network(job_folder)
    with sharded_tables(network, job.config, group_of_one):
        training = ShardedTraining(network, job.config, seed=0, ranks=group_of_one)
        rates = []
        training.optimizer.register_step_pre_hook(
            lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
        )
        one_epoch = 10
        training.run(*rows, max_steps=one_epoch)
        (tables, *_) = training.tables.values()
        after = [shard.weight_SD.clone() for shard in tables.shards()]
        if guard == "draw_again":
            # Nothing learns any more, so that what begins anew is seen alone.
            training._update = lambda *_: 0.0
        training.run(*rows, max_steps=2 * one_epoch)
        moved = {
            tables.names[shard.table]: not torch.equal(before, shard.weight_SD)
            for before, shard in zip(after, tables.shards(), strict=True)
        }
        forgotten = {
            tables.names[shard.table]: not bool(shard.momentum_S.any()) for shard in tables.shards()
        }
    assert rates[:6] == pytest.approx([CONFIG.lr * step / 5 for step in (1, 2, 3, 4, 5, 5)])
    sizes = dict(zip(job.signature.sparse_names, job.signature.vocabulary_sizes, strict=True))
    large = {name: size >= 20 for name, size in sizes.items()}
    if guard == "draw_again":
        assert moved == forgotten == large
    else:
        assert moved == {name: not is_large for name, is_large in large.items()}


def test_a_fit_travels_in_a_folder(job_folder, shop):
    job = FitJob.read(job_folder)
    rows = weighted(shop.examples)
    fresh, network, _ = TowerRanker(CONFIG).begin_fit_(
        rows.take(slice(0, 480)),
        rows.take(slice(480, 600)),
        shop.vectors,
        seed=3,
    )
    for part in ("train", "validation", "vectors"):
        left, right = getattr(job, part), getattr(fresh, part)
        for field in dataclasses.fields(left):
            one, two = getattr(left, field.name), getattr(right, field.name)
            same = np.array_equal(one, two) if isinstance(two, np.ndarray) else one == two
            assert same, (part, field.name)
    again = job.network(job_folder)
    inputs = job.tensors()[1].batch(slice(0, 50))
    with torch.no_grad():
        assert torch.equal(again.eval()(*inputs), network.eval()(*inputs))


def test_shards_cover_every_table_once():
    sizes = {"user_id": 50_000, "product_id": 3_000, "brand": 40}
    shards = plan_tables(sizes, 16, ranks=3, device="cpu", memory_gib=4, batch=4096)
    for name, rows in sizes.items():
        own = [shard for shard in shards if shard.table == name]
        assert sum(shard.rows * shard.columns for shard in own) == rows * 16
    assert {shard.rank for shard in shards} <= {0, 1, 2}
    assert {shard.sharding for shard in shards} <= {"table_wise", "column_wise"}


def test_columns_are_split_where_asked_and_bytes_are_counted_by_hand():
    shards = plan_tables(
        {"a": 1000, "b": 10}, 16, ranks=2, device="cpu", memory_gib=1, batch=64,
        column_wise=("a",),
    )  # fmt: skip
    halves = [shard for shard in shards if shard.table == "a"]
    assert sorted((each.rank, each.rows, each.columns) for each in halves) == [
        (0, 1000, 8),
        (1, 1000, 8),
    ]
    # A thousand rows of eight weights and one sum, four bytes each.
    assert halves[0].bytes == 36_000
    assert PlannedShard(table="x", sharding="table_wise", rank=0, rows=1, columns=3).bytes == 16


def test_tables_that_do_not_fit_are_planned_as_none():
    sizes = {"user_id": 1_000_000_000}
    assert plan_tables(sizes, 64, ranks=2, device="cpu", memory_gib=8, batch=4096) is None


@pytest.mark.slow
def test_the_command_shows_it_on_a_dataset_of_the_users_own(tmp_path):
    """Two ranks within the tolerance after 200 steps; what cannot be compared is refused."""
    world = make_world(tmp_path / "world", products=120, requests=2000, seed=0)
    config = RunConfig(
        data=world, out=tmp_path / "run", tower=CONFIG.model_copy(update={"attention": "none"})
    )
    verdict = verify_sharding(config, steps=200)
    assert verdict.agrees
    assert verdict.weight_difference < 1e-4
    assert verdict.whole_batch_difference > verdict.weight_difference
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="variant 'logistic' is no network with id tables"):
        verify_sharding(config.model_copy(update={"variants": ("logistic",)}))
    odd = config.tower.model_copy(update={"batch_size": 33})
    with pytest.raises(ValueError, match="batch_size=33 cannot be shared by 2 ranks"):
        verify_sharding(config.model_copy(update={"tower": odd}))
