"""The whole line in seconds, on a world of a few dozen products."""

import json
import shutil

import polars as pl
import pytest

from embeddings.stage1_config import Stage1Config
from embeddings.stage2_config import Stage2Config
from experiments import commands
from experiments.config import AbConfig, EmbedConfig, RunConfig
from experiments.marketplace.world import make_world
from ranking.certificate import verify_bundle
from ranking.tower_config import TowerConfig

TINY = {
    "stage1": Stage1Config(
        text_weights="random", image_width=24, image_layers=1, steps=4, batch=16, warmup_steps=1
    ),
    "stage2": Stage2Config(steps=4, batch=16, warmup_steps=1),
    "tower": TowerConfig(max_epochs=2, batch_size=256, production_mlp=(16,), cross_layers=1),
    "ab": AbConfig(requests=400),
    "track": False,
}
VARIANTS = ("production", "random_vectors", "shuffled_vectors", "stage1", "dashclip", "logistic")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("w") / "world", products=150, requests=900, seed=0)


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("r") / "run"
    return commands.run(RunConfig(data=world, out=out, variants=VARIANTS, **TINY))


def test_the_metrics_of_every_variant_are_written_flat(finished):
    metrics = json.loads((finished.folder / "metrics.json").read_text())
    figures = ("auc", "auc_low", "auc_high", "log_loss", "normalized_entropy")
    differences = ("delta_auc", "delta_auc_low", "delta_auc_high")
    against_placebo = ("delta_placebo", "delta_placebo_low", "delta_placebo_high")
    for name in VARIANTS:
        assert {f"{name}.{figure}" for figure in figures} <= metrics.keys()
        if name != "production":
            assert {f"{name}.{figure}" for figure in differences} <= metrics.keys()
    for name in ("stage1", "dashclip", "logistic"):
        assert {f"{name}.{figure}" for figure in against_placebo} <= metrics.keys()
    for metric in ("ctr", "rpm"):
        assert {f"ab.{metric}.{f}" for f in ("lift", "low", "high", "true")} <= metrics.keys()
    assert metrics == finished.metrics


def test_no_model_beats_the_oracle(finished):
    oracle = finished.metrics["oracle.auc"]
    assert all(finished.metrics[f"{name}.auc"] < oracle for name in VARIANTS)


def test_the_report_is_one_page_that_stands_alone(finished):
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<html") == 1
    assert 'src="http' not in page
    assert "imulated" in page


def test_the_same_seed_gives_the_same_figures(finished, world, tmp_path):
    again = commands.run(RunConfig(data=world, out=tmp_path / "again", variants=VARIANTS, **TINY))

    def repeatable(metrics):
        return {k: v for k, v in metrics.items() if not k.endswith("seconds")}

    assert repeatable(again.metrics) == repeatable(finished.metrics)


def test_an_interrupted_run_resumes_to_the_same_figures(finished, world, tmp_path):
    config = RunConfig(data=world, out=tmp_path / "cut", variants=VARIANTS, **TINY)
    shutil.copytree(finished.folder, config.out)
    state = json.loads((config.out / "run.json").read_text())
    (config.out / "run.json").write_text(json.dumps({**state, "state": "running"}))
    shutil.rmtree(config.out / "variants" / "dashclip")
    (config.out / "metrics.json").unlink()
    resumed = commands.run(config)
    for name in ("dashclip.auc", "stage1.auc", "ab.ctr.lift"):
        assert resumed.metrics[name] == finished.metrics[name]


def test_a_finished_run_is_not_overwritten(finished, world):
    with pytest.raises(ValueError, match="holds a finished run"):
        commands.run(RunConfig(data=world, out=finished.folder, variants=VARIANTS, **TINY))


def test_evaluate_agrees_with_the_run(finished):
    measured = commands.evaluate(finished.folder)
    for name in VARIANTS:
        assert measured[name]["auc"] == pytest.approx(finished.metrics[f"{name}.auc"], abs=1e-12)
        assert "slice.warm_products.impressions" in measured[name]


def test_simulate_repeats_the_runs_own_test(finished):
    again = commands.simulate(finished.folder, TINY["ab"])
    assert again.to_metrics() == finished.ab.to_metrics()


def test_a_bundle_scores_a_table_as_the_model_does(finished, world, tmp_path):
    bundle = commands.export(finished.folder, tmp_path / "bundle", variants=["dashclip"])
    table = tmp_path / "rows.parquet"
    rows = pl.read_parquet(world / "impressions.parquet").tail(300).drop("clicked", "purchased")
    rows.write_parquet(table)
    commands.score(bundle, table, tmp_path / "scores.parquet")
    scored = pl.read_parquet(tmp_path / "scores.parquet")
    line = commands.Run.reopen(finished.folder)
    model = line.train(next(v for v in line.variants if v.name == "dashclip"))[0]
    assert scored["p_click"].to_numpy() == pytest.approx(line.scorer(model)(rows), abs=1e-6)


def test_variants_are_averaged_calibrated_and_described_in_one_bundle(finished, tmp_path):
    names = ["dashclip", "production", "logistic"]
    bundle = commands.export(
        finished.folder, tmp_path / "bundle", variants=names, calibrate="platt", int8_tables=True
    )
    assert verify_bundle(bundle).passed
    card = (bundle / "model_card.md").read_text()
    validation = json.loads((finished.folder / "data.json").read_text())["parts"]["validation"]
    assert f"- parts.validation.first: {validation['first']}" in card
    assert "their logits are averaged" in card
    with pytest.raises(ValueError, match="use the vectors dashclip and stage1"):
        commands.export(finished.folder, tmp_path / "two", variants=["dashclip", "stage1"])


def test_an_existing_bundle_is_not_overwritten(finished, tmp_path):
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ValueError, match="exist"):
        commands.export(finished.folder, tmp_path / "bundle", variants=["production"])


def test_impressions_alone_train_production_and_refuse_vectors(world, tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    shutil.copy(world / "impressions.parquet", log)
    (log / "dataset.toml").write_text(
        'name = "log"\n[tables]\nimpressions = "impressions.parquet"\n'
        '[features]\nsparse = ["user_id", "query_id", "product_id"]\n'
    )
    with pytest.raises(ValueError, match="has no products and no queries and no relevance"):
        commands.train(
            RunConfig(data=log, out=tmp_path / "refused", variants=("dashclip",), **TINY)
        )
    assert not (tmp_path / "refused").exists()
    result = commands.run(RunConfig(data=log, out=tmp_path / "run", **TINY))
    assert "production.auc" in result.metrics
    assert "no products and no queries" in result.left_out["dashclip"]
    assert "simulated data only" in result.left_out["ab"]
    assert (tmp_path / "run" / "report.html").is_file()


def test_products_alone_cannot_train_a_click_model(world, tmp_path):
    only = tmp_path / "catalogue"
    only.mkdir()
    shutil.copy(world / "products.parquet", only)
    (only / "dataset.toml").write_text('name = "c"\n[tables]\nproducts = "products.parquet"\n')
    with pytest.raises(ValueError, match="impressions"):
        commands.run(RunConfig(data=only, out=tmp_path / "run", **TINY))
    assert not (tmp_path / "run").exists()


def test_embed_leaves_stores_and_their_measures(world, tmp_path):
    config = EmbedConfig(
        data=world,
        out=tmp_path / "vectors",
        sources=("stage1", "dashclip"),
        stage1=TINY["stage1"],
        stage2=TINY["stage2"],
    )
    evaluation = commands.embed(config)
    assert {"tfidf", "stage1", "dashclip"} <= evaluation.keys()
    assert (config.out / "embeddings" / "dashclip" / "products" / "manifest.json").is_file()


def test_products_alone_are_embedded(world, tmp_path):
    only = tmp_path / "catalogue"
    only.mkdir()
    shutil.copy(world / "products.parquet", only)
    (only / "dataset.toml").write_text('name = "c"\n[tables]\nproducts = "products.parquet"\n')
    config = EmbedConfig(
        data=only, out=tmp_path / "vectors", sources=("stage1",), stage1=TINY["stage1"]
    )
    # Nobody can say what is relevant here, but whether images and texts find each other.
    evaluation = commands.embed(config)
    assert evaluation.keys() == {"stage1"}
    assert {"image_to_text.r10", "image.category_f1"} <= evaluation["stage1"].keys()
    assert not any("auc" in name for name in evaluation["stage1"])
    assert (config.out / "embeddings" / "stage1" / "products" / "manifest.json").is_file()
    with pytest.raises(ValueError, match="no queries and no relevance, which the vectors"):
        commands.embed(config.model_copy(update={"sources": ("dashclip",), "out": tmp_path / "n"}))
    assert not (tmp_path / "n").exists()
