"""A model is champion if its run's verdict says so, challenger if not, and never a pickle."""

import json
import shutil
import warnings

import mlflow
import numpy as np
import polars as pl
import pytest

from embeddings.stage1_config import Stage1Config
from embeddings.stage2_config import Stage2Config
from experiments import commands
from experiments.comparison import Comparison, VariantResult
from experiments.config import RunConfig
from experiments.marketplace.world import make_world
from experiments.model_registry import choose, refuse_pickles, register_run
from experiments.run_comparison import COMPARISON
from experiments.tracking import default_uri
from ranking.tower_config import TowerConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*type hint:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def row(name, delta, placebo=None, auc=0.6):
    """A variant whose intervals reach 0.01 to both sides."""
    return VariantResult(
        name=name, seeds=1, auc=auc, auc_low=0.5, auc_high=0.7,
        delta_auc=delta, delta_auc_low=delta - 0.01, delta_auc_high=delta + 0.01, p_value_holm=0.5,
        delta_placebo=placebo,
        delta_placebo_low=None if placebo is None else placebo - 0.01,
        delta_placebo_high=None if placebo is None else placebo + 0.01,
        log_loss=0.1, normalized_entropy=1.0, calibration_ratio=1.0, ece=0.0, pr_auc=0.1,
    )  # fmt: skip


def comparison(*rows):
    return Comparison(
        rows=(row("production", 0.0), row("random_vectors", 0.002), *rows),
        baseline="production", controls=("random_vectors",), placebo="random_vectors",
        confidence=0.95, impressions=100, clicks=10, users=20,
    )  # fmt: skip


def test_only_what_is_above_baseline_and_placebo_is_champion():
    ships = row("dashclip", 0.03, 0.028, auc=0.63)
    gains = row("stage1", 0.02, 0.005, auc=0.64)
    assert choose(comparison(gains, ships)) == ("dashclip", "champion")
    assert choose(comparison(gains)) == ("stage1", "challenger")
    assert choose(comparison(gains, ships), "stage1") == ("stage1", "challenger")
    with pytest.raises(ValueError, match="random_vectors is a placebo"):
        choose(comparison(ships), "random_vectors")
    with pytest.raises(ValueError, match="compared nothing with production"):
        choose(comparison())


def test_a_pickle_is_refused_by_name_and_by_its_first_bytes(tmp_path):
    (tmp_path / "MLmodel").write_text("flavors: {}")
    assert refuse_pickles(tmp_path) == tmp_path
    (tmp_path / "weights").write_bytes(b"\x80\x05cos\nsystem\n")
    with pytest.raises(ValueError, match="weights is a pickle"):
        refuse_pickles(tmp_path)
    (tmp_path / "weights").unlink()
    (tmp_path / "model.pkl").write_text("")
    with pytest.raises(ValueError, match=r"model\.pkl is a pickle"):
        refuse_pickles(tmp_path)


def test_a_run_is_registered_by_its_verdict_and_the_model_scores(tmp_path):
    data = make_world(tmp_path / "world", products=120, requests=700, seed=0)
    out = tmp_path / "runs" / "run"
    commands.run(
        RunConfig(
            data=data,
            out=out,
            variants=("production", "logistic"),
            stage1=Stage1Config(text_weights="random", image_width=24, image_layers=1, steps=2),
            stage2=Stage2Config(steps=2),
            tower=TowerConfig(max_epochs=1, batch_size=256, production_mlp=(8,), cross_layers=1),
            simulate=False,
        )
    )
    bundle = commands.export(out, tmp_path / "bundle", variants=["logistic"])
    first = register_run(out, bundle, "clicks", "logistic")
    assert (first.alias, first.version, first.before) == ("challenger", "1", None)
    # The same run with another verdict: its variant is champion, and then the next one is.
    found = Comparison.from_json((out / COMPARISON).read_text())
    fields = json.loads(found.to_json())
    for one in fields["rows"]:
        if one["name"] == "logistic":
            one |= {"delta_auc_low": 0.01, "delta_placebo_low": 0.01, "delta_placebo": 0.02}
            one |= {"delta_placebo_high": 0.03}
    (out / COMPARISON).write_text(json.dumps(fields))
    second, third = (register_run(out, bundle, "clicks") for _ in range(2))
    assert (second.alias, second.version, second.before) == ("champion", "2", None)
    assert (third.version, third.before) == ("3", "2")
    uri = default_uri(out.parent)
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    version = client.get_model_version_by_alias("clicks", "champion")
    assert (version.version, version.tags["variant"]) == (3, "logistic")
    # The alias leads to a model that scores as the bundle does.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.set_registry_uri(uri)
        mlflow.set_tracking_uri(uri)
        try:
            model = mlflow.pyfunc.load_model(third.uri)
        finally:
            mlflow.set_registry_uri("")
            mlflow.set_tracking_uri("")
    rows = pl.read_parquet(data / "impressions.parquet").tail(50)
    rows = rows.drop("clicked", "purchased")
    table = tmp_path / "rows.parquet"
    rows.write_parquet(table)
    commands.score(bundle, table, tmp_path / "scores.parquet")
    needed = [column.name for column in model.metadata.signature.inputs]
    frame = rows.select(n for n in needed if n in rows.columns).with_columns(
        pl.col("time").dt.replace_time_zone(None)
    )
    np.testing.assert_allclose(
        model.predict(frame.to_pandas())["p_click"],
        pl.read_parquet(tmp_path / "scores.parquet")["p_click"],
        atol=1e-7,
    )
    shutil.rmtree(out / "tracking")
    with pytest.raises(ValueError, match="holds no journal of tracking"):
        register_run(out, bundle, "clicks")
