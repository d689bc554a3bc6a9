"""Id tables over ranks: where their rows come from, how they begin anew, how they come together."""

import dataclasses

import pytest
import torch

from embeddings.ranks import Ranks
from ranking import row_memory
from ranking import sharded_tables as sharded_tables_module
from ranking.fit_job import FitJob
from ranking.fit_leader import current_leader
from ranking.fused_tables import FusedTables, TableGroup, id_tables
from ranking.sharded_fit import leading, sharded_tables, train_together
from ranking.sharded_tables import ShardedTables
from ranking.warm_start import adagrad_tensors


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


def test_parts_of_a_table_are_gathered_row_by_row_and_column_by_column(
    job_folder, group_of_one, in_pieces
):
    job = FitJob.read(job_folder)
    network = job.network(job_folder)
    with sharded_tables(network, job.config, group_of_one):
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
    job = FitJob.read(job_folder)
    network = job.network(job_folder)
    with sharded_tables(network, job.config, group_of_one):
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


class Killed(Exception):  # noqa: N818
    pass


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
        with sharded_tables(each, job.config, ranks, folder=tmp_path / "job"):
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
        sharded_tables(network, job.config, group_of_one, folder=tmp_path / "job"),
    ):
        raise Killed
    # What they hold is undefined; that they can be written is not.
    for _, tables in id_tables(network):
        assert tables.weights()[0].fill_(1.0).sum() == tables.weights()[0].numel()


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
