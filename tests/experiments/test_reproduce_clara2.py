"""The claim on search clicks, on a small log made up here."""

import json

import numpy as np
import polars as pl
import pytest

from experiments import reproduce_clara2 as claim
from ranking.baselines import LightGBMConfig


@pytest.fixture
def source(tmp_path):
    """Clicks fall off with the rank and go to some urls more than to others."""
    rng = np.random.default_rng(1)
    page_N, rank_N = np.divmod(np.arange(400 * 6), 6)
    url_N = np.concatenate([rng.permutation(12)[:6] for _ in range(400)])
    logit_N = -0.1 - 0.6 * rank_N + 0.5 * (url_N % 3)
    log = pl.DataFrame(
        {
            "session": (page_N // 3).astype(str),
            "serp": page_N,
            "query": rng.integers(0, 4, 400)[page_N].astype(str),
            "rank": rank_N + 1,
            "url": url_N.astype(str),
            "click": (rng.random(len(page_N)) < 1 / (1 + np.exp(-logit_N))).astype(int),
        }
    )
    (tmp_path / "clara2").mkdir()
    log.write_parquet(tmp_path / "clara2" / "serp_clicks.parquet")
    return tmp_path


def test_every_model_is_judged_with_and_without_the_position(source, tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "TREES", LightGBMConfig(rounds=20, min_leaf_rows=20))
    monkeypatch.setattr(
        claim, "NETWORK", claim.NETWORK.model_copy(update={"max_epochs": 1, "batch_size": 128})
    )
    found = claim.reproduce_clara2(source, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == pytest.approx(found)
    assert (tmp_path / "run" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    models = {key.removesuffix(".auc") for key in found if key.endswith(".auc")}
    both = {"base_rate", "logistic_ids", "logistic", "lightgbm", "production", "full_rank",
            "attention", "production_1", "production_2", "best"}  # fmt: skip
    assert models == (
        both | {"rank_alone"} | {f"no_position.{name}" for name in (*both, "position_tower")}
    )
    assert found["base_rate.auc"] == 0.5
    assert found["rank_alone.same_rank_auc"] == pytest.approx(0.5)
    assert found["best.auc_low"] < found["best.auc"] < found["best.auc_high"]
    assert found["best.auc"] > found["no_position.best.auc"] + 0.05
    assert found["best.calibration_ratio"] == pytest.approx(1, abs=0.15)
    assert "debiasing.delta_same_rank_auc" in found
    with pytest.raises(ValueError, match="holds a finished run"):
        claim.reproduce_clara2(source, tmp_path / "run")


def test_the_log_is_cut_by_time_and_histories_are_of_earlier_pages(source):
    log = claim.read_log(source)
    examples = claim.search_examples(log)
    pages = [np.unique(part.request_N) for part in
             (examples.train, examples.validation, examples.test)]  # fmt: skip
    assert [len(p) for p in pages] == [280, 40, 80]
    assert pages[0].max() < pages[1].min() and pages[1].max() < pages[2].min()
    whole = np.concatenate([examples.train.history_NL, examples.validation.history_NL])
    url_N = np.concatenate([examples.train.product_N, examples.validation.product_N])
    for row in range(0, len(whole), 7):
        earlier = log[: len(whole)].with_columns(url_row=url_N).filter(
            (pl.col("session") == log["session"][row])
            & (pl.col("page") < log["page"][row])
            & (pl.col("clicked") == 1)
        )  # fmt: skip
        newest = earlier.sort("page", "rank", descending=True)["url_row"].to_list()
        expected = (newest + [-1] * claim.HISTORY)[: claim.HISTORY]
        assert whole[row].tolist() == expected


def test_a_folder_without_the_log_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"serp_clicks\.parquet does not exist"):
        claim.reproduce_clara2(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()
