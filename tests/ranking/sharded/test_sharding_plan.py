"""Where torchrec's planner puts the shards of id tables."""

from ranking.sharding_plan import PlannedShard, plan_tables


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
