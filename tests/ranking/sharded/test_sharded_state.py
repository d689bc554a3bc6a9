"""The state that ranks keep: it survives a kill and a full disk, and is no other training's."""

import dataclasses

import pytest
import torch
from safetensors import SafetensorError

from embeddings import tensor_file
from ranking.sharded_fit import Leader, train_together
from ranking.sharded_training import ShardedTraining
from ranking.training_checkpoints import Cadence, kept_in, left_by_ranks
from ranking.warm_start import adagrad_tensors


class Killed(Exception):  # noqa: N818
    pass


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
    job_folder, fit_config, dropping, group_of_one, tmp_path
):
    network = dropping.network(job_folder)
    ranks_at, alone_at = tmp_path / "ranks", tmp_path / "alone"
    leader = Leader(tmp_path / "jobs", group_of_one)
    leader.folder.mkdir()
    short = dataclasses.replace(dropping, config=fit_config.model_copy(update={"max_epochs": 1}))
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
