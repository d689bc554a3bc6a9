"""A claim is repeated by one command, from the published files to figures."""

import itertools
from pathlib import Path

import polars as pl
import pytest

from embeddings.stage1 import Stage1Config
from embeddings.stage2 import Stage2Config
from experiments import reproduce as module
from experiments.config import AbConfig, RunConfig
from experiments.records import read_metrics
from experiments.reproduce import homedepot_csv, reproduce
from features.dataset import Dataset
from ranking.tower import TowerConfig

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
TINY = {
    "variants": ("production", "off_the_shelf", "dashclip"),
    "stage1": Stage1Config(text_weights="random", steps=4, batch=16, warmup_steps=1),
    "stage2": Stage2Config(steps=4, batch=16, warmup_steps=1),
    "tower": TowerConfig(max_epochs=1, batch_size=256, production_mlp=(16,), cross_layers=1),
    "ab": AbConfig(requests=200),
    "track": False,
}


@pytest.fixture
def small(monkeypatch):
    """Few requests and little training; everything else as published."""
    monkeypatch.setattr(module, "HOMEDEPOT_REQUESTS", 600)
    monkeypatch.setattr(module, "RunConfig", lambda **given: RunConfig(**{**given, **TINY}))


@pytest.fixture
def source(tmp_path):
    """A folder like shared/data, with forty products that are judged for thirty queries."""
    things, kinds = ("bolt", "faucet", "deck", "lamp", "saw"), ("steel", "brass", "oak", "led")
    titles = [f"{kind} {thing} {size} in." for kind, thing, size in
              itertools.product(kinds, things, (2, 4))]  # fmt: skip
    rows = []
    for kind, thing in [*itertools.product(kinds, things), *itertools.product(things, ("cheap",))]:
        for number, title in enumerate(titles):
            words = sum(word in title for word in (kind, thing))
            if words or number % 9 == 0:
                rating = (1.0, 2.33, 3.0)[words]
                rows.append((str(100_000 + number), title, f"{kind} {thing}", rating))
    folder = tmp_path / "data" / "homedepot_relevance"
    folder.mkdir(parents=True)
    columns = ["product_uid", "product_title", "search_term", "relevance"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(folder / "pairs.parquet")
    return tmp_path / "data"


def test_the_competitions_own_folder_is_taken_as_it_is(tmp_path):
    (tmp_path / "train.csv").write_text("id\n")
    assert homedepot_csv(tmp_path, tmp_path / "scratch") == tmp_path
    assert not (tmp_path / "scratch").exists()


def test_pairs_are_written_out_in_the_competitions_layout(tmp_path):
    folder = tmp_path / "homedepot_relevance"
    folder.mkdir()
    pairs = pl.DataFrame(
        {
            "search_term": ["deck, over"],
            "relevance": [2.33],
            "product_uid": ["100002"],
            "product_title": ["D\u00e9cor \u2122 1/2 in."],
        }
    )
    pairs.write_parquet(folder / "pairs.parquet")
    made = homedepot_csv(tmp_path, tmp_path / "scratch")
    text = (made / "train.csv").read_bytes().decode("iso-8859-1")
    # The competition's Latin-1 has no trade mark sign.
    assert text == (
        "id,product_uid,product_title,search_term,relevance\n"
        '0,100002,D\u00e9cor ? 1/2 in.,"deck, over",2.33\n'
    )


def test_a_folder_with_neither_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"has neither train\.csv .* nor homedepot_relevance/pair"):
        reproduce("homedepot", tmp_path, tmp_path / "runs" / "claim")
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "runs"])


def test_an_unknown_claim_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="nothing is called 'criteo'; there is: homedepot"):
        reproduce("criteo", tmp_path, tmp_path / "run")


def test_from_published_labels_to_figures_and_again(small, source, tmp_path):
    out = tmp_path / "runs" / "claim"
    result = reproduce("homedepot", source, out)
    written = read_metrics(out / "metrics.json")
    assert written == result.metrics
    for pair in ("auc_2v0", "auc_2v1", "auc_1v0"):
        assert written[f"test.{pair}"] == written[f"embedding.dashclip.{pair}"]
        place = f"test.off_the_shelf.{pair}"
        assert written[place] == written[f"embedding.off_the_shelf.{pair}"]
    assert {"dashclip.delta_auc", "ab.ctr.lift"} <= written.keys()
    assert sorted(path.name for path in out.parent.iterdir()) == ["claim", "claim-data"]
    dataset = Dataset.open(out.with_name("claim-data"))
    assert dataset.spec.simulated
    assert dataset.table("relevance")["source"].unique().to_list() == ["human"]
    with pytest.raises(ValueError, match="holds a finished run"):
        reproduce("homedepot", source, out)
    with pytest.raises(ValueError, match="is not the Home Depot dataset of these settings"):
        reproduce("homedepot", source, out, seed=1)
    again = reproduce("homedepot", source, out, overwrite=True)
    assert again.metrics["dashclip.auc"] == result.metrics["dashclip.auc"]


def test_an_import_that_is_cut_off_leaves_no_dataset_and_can_be_repeated(
    small, source, tmp_path, monkeypatch
):
    def cut_off(folder, **settings):
        raise KeyboardInterrupt

    out = tmp_path / "runs" / "claim"
    with monkeypatch.context() as patch:
        patch.setattr(module, "simulate_log", cut_off)
        with pytest.raises(KeyboardInterrupt):
            reproduce("homedepot", source, out)
    assert list(out.parent.iterdir()) == []
    module._make_homedepot(source, out, seed=0, overwrite=False, progress=module.Silent())
    assert Dataset.open(out).has("impressions")


def test_a_folder_of_something_else_is_never_replaced(small, source, tmp_path):
    other = tmp_path / "claim-data"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="claim-data exists and is not the Home Depot dataset"):
        reproduce("homedepot", source, tmp_path / "claim", overwrite=True)
    assert (other / "thesis.txt").read_text() == "years of work"


@pytest.mark.slow
def test_public_labels_go_through_the_whole_line(small, tmp_path):
    pairs = SHARED / "homedepot_relevance" / "pairs.parquet"
    if not pairs.is_file():
        pytest.skip("no homedepot_relevance in a folder shared/data beside the repository")
    few = tmp_path / "data" / "homedepot_relevance"
    few.mkdir(parents=True)
    pl.read_parquet(pairs).head(4000).write_parquet(few / "pairs.parquet")
    metrics = reproduce("homedepot", tmp_path / "data", tmp_path / "claim").metrics
    # On all held-out queries frozen MiniLM reaches .781; four steps of training teach nothing.
    assert metrics["test.off_the_shelf.auc_2v0"] == pytest.approx(0.781, abs=0.08)
    assert metrics["test.off_the_shelf.auc_2v0"] > metrics["test.auc_2v0"]
