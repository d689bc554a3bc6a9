"""A bundle copied to a machine with a runtime, numpy and polars is verified and scored there."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from packaging.requirements import Requirement

from ranking.baselines import LightGBMConfig, LightGBMRanker, LogisticRegression
from ranking.calibration import Platt
from ranking.ensemble import Ensemble
from ranking.export import export_bundle
from ranking.score import Scorer

ROOT = Path(__file__).parents[2]
ABSENT = ("pydantic", "torch", "tyro", "rich", "tokenizers", "pandas", "pyarrow", "mlflow")


def with_what_they_need(*names):
    """Distributions and, by their own metadata and without extras, all that they need."""
    found, waiting = [], list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.append(name)
        needed = map(Requirement, distribution(name).requires or ())
        waiting += [
            need.name for need in needed if not need.marker or need.marker.evaluate({"extra": ""})
        ]
    return found


def link_into(site_packages, name):
    """Link a distribution's packages and single files; of a folder that several share, its own."""
    for file in distribution(name).files or ():
        if file.parts[0] == ".." or "__pycache__" in file.parts:
            continue
        source = Path(str(distribution(name).locate_file(file.parts[0])))
        is_package = not source.is_dir() or (source / "__init__.py").is_file()
        parts = file.parts[: 1 if is_package else 2]
        target = site_packages.joinpath(*parts)
        if not target.is_symlink():
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(source.parent.joinpath(*parts))


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """Make the interpreter of a bare environment that has these distributions and our packages."""
    made = {}

    def python_with(runtime):
        if runtime not in made:
            folder = tmp_path_factory.mktemp("bare") / "venv"
            made[runtime] = folder / "bin" / "python"
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
            (site_packages,) = folder.glob("lib/python*/site-packages")
            assert not any(site_packages.iterdir())
            for name in with_what_they_need("numpy", "polars", runtime):
                link_into(site_packages, name)
            for package in ("features", "embeddings", "ranking"):
                (site_packages / package).symlink_to(ROOT / package)
        return made[runtime]

    return python_with


def run(python, *arguments, status=0):
    """Standard output of an isolated interpreter that sees its own site-packages alone."""
    done = subprocess.run(
        [python, "-I", *map(str, arguments)],
        cwd=python.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status != 2 else done.stderr


@pytest.fixture(scope="module")
def bundles(shop, tmp_path_factory):
    """Trees, and two networks that are calibrated after their mean."""
    train, validation = shop.examples.take(slice(0, 480)), shop.examples.take(slice(480, 600))
    networks = [
        LogisticRegression().fit(train, validation, shop.vectors, seed=seed) for seed in (0, 1)
    ]
    trees = LightGBMRanker(LightGBMConfig(rounds=4, min_leaf_rows=5))
    models = (Ensemble(networks), trees.fit(train, validation, shop.vectors, seed=0))
    folder = tmp_path_factory.mktemp("bundles")
    for model in models:
        export_bundle(
            model,
            shop.pipeline,
            shop.product_store,
            shop.query_store,
            shop.impressions[480:],
            folder / model.name,
            calibrator=Platt(slope=0.8, intercept=-0.1),
        )
    return folder


@pytest.fixture(params=["ensemble", "lightgbm", "query_encoder"])
def copied(request, bundles, front, shop, tmp_path):
    """A bundle, what runs it, and impressions whose queries training knew."""
    if request.param == "query_encoder":
        source, runtime, rows = front.bundle, "onnxruntime", front.impressions[:50]
    else:
        source, rows = bundles / request.param, shop.impressions[:50]
        runtime = "lightgbm" if request.param == "lightgbm" else "onnxruntime"
    return shutil.copytree(source, tmp_path / "bundle"), runtime, rows


def test_the_bare_machine_lacks_what_scoring_must_do_without(bare_python):
    look = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    here = "numpy", "polars", "ranking"
    for runtime, other in (("onnxruntime", "lightgbm"), ("lightgbm", "onnxruntime")):
        python = bare_python(runtime)
        assert run(python, "-c", look, *ABSENT, other).strip() == "[]"
        assert run(python, "-c", look, *here, runtime).strip() == str([*here, runtime])
    assert run(bare_python("onnxruntime"), "-c", look, "scipy", "experiments").strip() == "[]"


def test_a_bundle_is_verified_and_scores_the_same_on_a_bare_machine(copied, bare_python, tmp_path):
    bundle, runtime, rows = copied
    python = bare_python(runtime)
    shown = run(python, "-m", "ranking", "verify", bundle, "--json", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["passed"] == 1.0
    assert "golden.sample" in shown and "checks passed" in shown.splitlines()[-1]

    rows = rows.drop("query", strict=False)
    rows.write_parquet(tmp_path / "rows.parquet")
    said = run(python, "-m", "ranking", "score", bundle, tmp_path / "rows.parquet")
    assert said.startswith("50 rows scored, mean pCTR 0.")
    found = pl.read_parquet(tmp_path / "rows.scored.parquet")
    assert found["product_id"].to_list() == rows["product_id"].to_list()
    expected_N = Scorer.load(bundle).score(rows)
    np.testing.assert_array_equal(found["p_click"].to_numpy(), expected_N)


def test_texts_that_training_knew_need_no_tokenizer_and_others_say_so(front, bare_python, tmp_path):
    python = bare_python("onnxruntime")
    known = front.impressions[:20].with_columns(
        query_id=pl.lit(None, pl.String), query=pl.lit("thing 5")
    )
    known.write_parquet(tmp_path / "known.parquet")
    command = ("-m", "ranking", "score", front.bundle)
    out = tmp_path / "scores.parquet"
    run(python, *command, tmp_path / "known.parquet", "--out", out)
    found_N = pl.read_parquet(out)["p_click"].to_numpy()
    np.testing.assert_array_equal(found_N, Scorer.load(front.bundle).score(known))

    known.with_columns(query=pl.lit("red tea")).write_parquet(tmp_path / "new.parquet")
    said = run(python, *command, tmp_path / "new.parquet", status=2)
    assert "the package 'tokenizers' is not installed" in said


def test_a_failed_check_and_a_mistake_have_their_status(bundles, bare_python, tmp_path):
    python = bare_python("onnxruntime")
    bundle = shutil.copytree(bundles / "ensemble", tmp_path / "bundle")
    (bundle / "features" / "transforms.json").write_text("{}")
    assert "failed: files: " in run(python, "-m", "ranking", "verify", bundle, status=1)
    said = run(python, "-m", "ranking", "score", bundle, tmp_path / "absent.parquet", status=2)
    assert said.startswith("python -m ranking: ") and "transforms.json has 2 bytes" in said


def test_both_command_lines_print_the_same_rows(bundles):
    printed = []
    for module in ("ranking", "experiments"):
        done = subprocess.run(
            [sys.executable, "-m", module, "verify", bundles / "ensemble"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        printed.append(done.stdout)
    for line in printed[0].splitlines()[1:]:
        name = line.split()[0]
        assert "latency" in name or name in printed[1]
    assert printed[0].splitlines()[-1] == printed[1].splitlines()[-1]
