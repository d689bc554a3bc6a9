"""Scoring files: in parts, resumable, all of the result or nothing."""

import numpy as np
import polars as pl
import pytest

from ranking.batch_score import score_parquet
from ranking.score import Scorer


@pytest.fixture(scope="module")
def scorer(front):
    return Scorer.load(front.bundle)


@pytest.fixture
def table(front, tmp_path):
    path = tmp_path / "rows.parquet"
    front.impressions.write_parquet(path, row_group_size=90)
    return path


def test_a_file_scores_as_its_table_does(front, scorer, table, tmp_path):
    seen = []
    written = score_parquet(
        scorer, table, tmp_path / "out.parquet", part_rows=64, progress=lambda *at: seen.append(at)
    )
    scored = pl.read_parquet(tmp_path / "out.parquet")
    expected_N = scorer.score(front.impressions)
    np.testing.assert_allclose(scored["p_click"], expected_N, rtol=0, atol=1e-7)
    assert scored.columns == ["request_id", "product_id", "p_click"]
    assert scored.drop("p_click").equals(front.impressions.select("request_id", "product_id"))
    assert (written.rows, written.resumed_rows) == (600, 0)
    assert written.mean_p_click == pytest.approx(expected_N.mean())
    assert seen == [(min(done, 600), 600) for done in range(64, 641, 64)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "rows.parquet"]


def test_a_job_cut_off_goes_on_and_ends_with_the_same_bits(scorer, table, tmp_path, monkeypatch):
    whole, resumed = tmp_path / "whole.parquet", tmp_path / "resumed.parquet"
    score_parquet(scorer, table, whole, part_rows=100)

    def cut_off(done, rows):
        if done == 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_parquet(scorer, table, resumed, part_rows=100, progress=cut_off)
    assert not resumed.exists()
    scored = []
    score = scorer.score
    monkeypatch.setattr(scorer, "score", lambda rows: scored.append(len(rows)) or score(rows))
    assert score_parquet(scorer, table, resumed, part_rows=100).resumed_rows == 300
    assert sum(scored) == 300
    assert pl.read_parquet(resumed).equals(pl.read_parquet(whole))


def test_parts_of_another_job_are_not_taken(front, scorer, table, tmp_path):
    out = tmp_path / "out.parquet"

    def cut_off(done, rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_parquet(Scorer.load(front.other_bundle), table, out, part_rows=100, progress=cut_off)
    assert score_parquet(scorer, table, out, part_rows=100).resumed_rows == 0
    np.testing.assert_allclose(
        pl.read_parquet(out)["p_click"], scorer.score(front.impressions), rtol=0, atol=1e-7
    )


def test_memory_holds_one_part_at_a_time(scorer, table, tmp_path, monkeypatch):
    heights = []
    score = scorer.score
    monkeypatch.setattr(scorer, "score", lambda rows: heights.append(len(rows)) or score(rows))
    score_parquet(scorer, table, tmp_path / "out.parquet", part_rows=250)
    assert heights == [250, 250, 100]


def test_what_cannot_be_scored_is_refused_and_leaves_no_result(front, scorer, tmp_path):
    out = tmp_path / "out.parquet"
    with pytest.raises(ValueError, match=r"nowhere.parquet does not exist"):
        score_parquet(scorer, tmp_path / "nowhere.parquet", out)
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 is not all of it")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        score_parquet(scorer, bad, out)
    front.impressions[:0].write_parquet(bad)
    with pytest.raises(ValueError, match="has no rows"):
        score_parquet(scorer, bad, out)
    front.impressions.drop("bid").write_parquet(bad)
    with pytest.raises(ValueError, match="lack the column bid"):
        score_parquet(scorer, bad, out)
    nan = pl.when(pl.col("request_id") == "r150").then(float("nan")).otherwise("bid")
    front.impressions.with_columns(bid=nan).write_parquet(bad)
    with pytest.raises(ValueError, match=r"rows from 400: dense feature 'bid' is nan in row 50"):
        score_parquet(scorer, bad, out, part_rows=200)
    with pytest.raises(ValueError, match="part_rows is 0"):
        score_parquet(scorer, bad, out, part_rows=0)
    assert not out.exists()
