"""What a training needs, by hand; and what cannot be planned, by name."""

import pytest
from pydantic import ValidationError

from experiments import capacity_plan
from experiments.capacity_plan import make_plan, measured_speed
from experiments.plan_config import PlanConfig
from ranking.checkpoint import write_manifest
from ranking.fit_job import FitJob
from ranking.tower_config import TowerConfig

SMALL = TowerConfig(
    use_vectors=False, batch_size=256, production_mlp=(8,), head=(8,), embedding_dim=8
)


def config(**changes):
    fields = {"tables": ("user_id=2e6", "brand=1000"), "rows": 3.6e6, "rows_per_second": 1000.0}
    return PlanConfig(**{**fields, "tower": SMALL, **changes})


def test_memory_and_hours_by_hand():
    plan = make_plan(config())
    # 2,001,000 rows of eight weights and one sum, four bytes each.
    assert plan.table_gib == pytest.approx(2_001_000 * 9 * 4 / 1024**3)
    # Two ids, thirteen dense columns and the label, four bytes each.
    assert plan.data_gib == pytest.approx(3.6e6 * 16 * 4 / 1024**3)
    assert plan.hours == pytest.approx(1.0)
    assert plan.feasible and plan.one_machine and not plan.measured
    # And the weights of the best check.
    best_gib = 2_001_000 * 8 * 4 / 1024**3
    assert plan.rank_gib == pytest.approx(plan.table_gib + best_gib + plan.dense_gib)
    # Two states, the second written beside the first.
    whole_gib = plan.table_gib + best_gib + plan.dense_gib
    assert plan.disk_gib == pytest.approx(2 * whole_gib)
    assert f"up to {plan.disk_gib:.2f} on disk" in plan.verdict()
    assert "one machine is enough" in plan.verdict()
    assert "a pass takes 1.0 hours at 1,000 rows a second" in plan.verdict()
    assert "a pass takes 30.0 minutes" in make_plan(config(rows=1.8e6)).verdict()


def test_ranks_share_tables_and_speed():
    tables = tuple(f"f{number}=1e6" for number in range(4))
    alone = make_plan(config(tables=tables))
    four = make_plan(config(tables=tables, ranks=4, ranks_per_machine=2, scaling=0.5))
    assert four.rows_per_second == 2 * alone.rows_per_second
    assert four.rank_gib < alone.rank_gib
    assert four.memory_gib == alone.memory_gib / 2
    assert {row[0] for row in four.by_table()} == {f"f{number}" for number in range(4)}
    # The first rank writes the tables as they begin for the others.
    assert four.disk_gib == pytest.approx(alone.disk_gib + alone.table_gib)
    assert four.to_metrics()["disk_gib"] == four.disk_gib


def test_gpus_keep_no_best_weights_and_their_machine_is_not_judged():
    asked = {"tables": ("a=1e6",), "device": "cuda", "ranks": 1, "memory_gib": 0.1}
    plan = make_plan(config(**asked))
    assert plan.rank_gib == pytest.approx(plan.table_gib + plan.dense_gib)
    assert plan.feasible


def test_too_much_for_one_machine_is_said():
    plan = make_plan(config(rows=1e12, row_bytes=400))
    assert plan.feasible and not plan.one_machine
    assert "one machine is not enough" in plan.verdict()
    plan = make_plan(config(tables=("user_id=1e10",)))
    assert not plan.feasible and not plan.one_machine
    assert "do not fit ranks of 24.0 GiB" in plan.verdict()
    assert plan.to_metrics()["feasible"] == 0


def test_gpus_may_hold_rows_of_a_table():
    plan = make_plan(config(tables=("user_id=1.5e9",), device="cuda", ranks=4, ranks_per_machine=4))
    assert plan.feasible
    assert {row[1] for row in plan.by_table()} <= {"row_wise", "column_wise"}


def test_the_speed_is_measured_where_none_is_named():
    asked = []
    unknown = config(rows_per_second=None)

    def measure(config):
        return asked.append(config) or 500.0

    plan = make_plan(unknown, measure=measure)
    assert plan.measured and plan.rows_per_second == 500 and len(asked) == 1
    assert measured_speed(config(tables=("a=100", "b=5"))) > 0
    # What two exchange was measured; what four do is less by the share that is said.
    for ranks, share in ((2, 1.0), (4, 0.8)):
        several = unknown.model_copy(update={"ranks": ranks})
        assert make_plan(several, measure=measure).rows_per_second == 500 * ranks * share
        named = several.model_copy(update={"rows_per_second": 500.0})
        assert make_plan(named).rows_per_second == 500 * ranks * 0.8


def test_the_speed_of_one_among_several_is_measured_with_two(monkeypatch):
    fitted = []

    def fit(job, ranks, state, steps):
        fitted.append((FitJob.read(job), ranks, steps))
        (state / "state").mkdir(parents=True)
        write_manifest(state / "state", record={"step_seconds": 0.25})

    monkeypatch.setattr(capacity_plan, "fit_on_ranks", fit)
    asked = config(tables=("a=100", "b=5"), ranks=8, rows_per_second=None)
    assert measured_speed(asked) == 32 / 0.25
    ((job, ranks, steps),) = fitted
    assert ranks == 2 and job.config.batch_size == 2 * 256 / 8
    assert len(job.train) == steps * job.config.batch_size


@pytest.mark.slow
def test_two_ranks_are_timed_here():
    asked = config(tables=("a=100", "b=5"), ranks=2, rows_per_second=None)
    assert 10 < measured_speed(asked) < 1e7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables": ()}, "no tables are named"),
        ({"tables": ("user_id",)}, "'user_id' is not NAME=ROWS"),
        ({"tables": ("user_id=many",)}, "'user_id=many' is not NAME=ROWS"),
        ({"tables": ("a=1", "a=2")}, "'a' is named twice"),
        ({"column_wise": ("nothing",)}, "column_wise names"),
    ],
)
def test_tables_that_are_none_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make_plan(config(**changes))


def test_more_ranks_on_a_machine_than_there_are_is_refused():
    with pytest.raises(ValidationError, match="ranks_per_machine=4 is more than ranks=2"):
        config(ranks=2, ranks_per_machine=4)
