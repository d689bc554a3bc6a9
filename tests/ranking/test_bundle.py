"""The door to a bundle: damage and foreign tricks end in words, before anything is parsed."""

import hashlib
import json
import os
import shutil

import numpy as np
import onnx
import pytest

from ranking.baselines import LightGBMConfig, LightGBMRanker
from ranking.bundle import MANIFEST_FILE, SEAL_FILE, open_bundle
from ranking.calibration import Platt
from ranking.certificate import verify_bundle
from ranking.ensemble import Ensemble
from ranking.export import export_bundle
from ranking.score import Scorer
from ranking.tower import TowerRanker
from ranking.tower_config import TowerConfig


@pytest.fixture(scope="module")
def original(shop, tmp_path_factory):
    """A bundle with every kind of file: a network with tables beside it, trees, vectors."""
    train, validation = shop.examples.take(slice(0, 480)), shop.examples.take(slice(480, 600))
    config = TowerConfig(batch_size=64, max_epochs=1, projected_dim=8)
    trees = LightGBMRanker(LightGBMConfig(rounds=3, min_leaf_rows=5))
    members = [
        TowerRanker(config).fit(train, validation, shop.vectors, seed=0),
        trees.fit(train, validation, None, seed=0),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ranking.graph.EXTERNAL_BYTES", 2048)
        return export_bundle(
            Ensemble(members),
            shop.pipeline,
            shop.product_store,
            shop.query_store,
            shop.impressions[480:],
            tmp_path_factory.mktemp("bundles") / "both",
            calibrator=Platt(slope=0.9, intercept=0.1),
        )


@pytest.fixture
def bundle(original, tmp_path):
    return shutil.copytree(original, tmp_path / "bundle")


def reseal(folder, change=lambda fields: None):
    """Write sums that fit the files as they are now, as a forger would."""
    fields = json.loads((folder / MANIFEST_FILE).read_text())
    for name, record in fields["files"].items():
        content = (folder / name).read_bytes()
        record |= {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    change(fields)
    content = json.dumps(fields).encode()
    (folder / MANIFEST_FILE).write_bytes(content)
    seal = f"{hashlib.sha256(content).hexdigest()}  {MANIFEST_FILE}\n"
    (folder / SEAL_FILE).write_text(seal)


def test_the_fixture_has_every_kind_of_file(original):
    names = {p.relative_to(original).as_posix() for p in original.rglob("*") if p.is_file()}
    assert names == {
        "manifest.json", "manifest.sha256", "model_0.onnx", "model_0.bin", "trees_1.txt",
        "golden.parquet", "golden_thresholds.npz", "model_card.md", "certificate.json",
        "features/transforms.json", "features/products.parquet", "features/queries.parquet",
        "features/events.parquet",
        *(f"{side}_vectors/{name}" for side in ("product", "query")
          for name in ("manifest.json", "ids.json", "vectors.npy")),
    }  # fmt: skip
    assert open_bundle(original).files.keys() == names - {"manifest.json", "manifest.sha256"}


def test_a_thousand_flipped_bits_and_cut_files_are_refused_before_parsing(bundle, monkeypatch):
    def parsed(*_, **__):
        raise AssertionError("something was parsed")

    monkeypatch.setattr("ranking.score.FeaturePipeline.load", parsed)
    monkeypatch.setattr("ranking.bundle.read_onnx", parsed)
    rng = np.random.default_rng(0)
    paths = sorted(path for path in bundle.rglob("*") if path.is_file())
    for turn in range(1000):
        path = paths[turn % len(paths)]
        content = path.read_bytes()
        place = int(rng.integers(len(content)))
        if turn // len(paths) % 3 == 0:
            damaged = content[:place]
        else:
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"was changed|has \d+ bytes|one of the two"):
            Scorer.load(bundle)
        path.write_bytes(content)
    monkeypatch.undo()
    Scorer.load(bundle)


def test_a_file_that_grew_is_refused_before_it_is_read(bundle, monkeypatch):
    hashed = []
    monkeypatch.setattr("ranking.bundle.file_sha256", lambda path: hashed.append(path.name))
    first = min(listed(bundle))
    with (bundle / first).open("ab") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValueError, match=r"has 1073741824 bytes, but manifest.json says"):
        open_bundle(bundle)
    assert hashed == []


def listed(folder):
    return json.loads((folder / MANIFEST_FILE).read_text())["files"]


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256", "trees_1.txt"])
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(ValueError, match=name):
        open_bundle(bundle)


def test_a_file_that_nobody_listed_is_refused(bundle):
    (bundle / "extra.py").write_text("")
    with pytest.raises(ValueError, match=r"does not list: \['extra.py'\]"):
        open_bundle(bundle)


def test_links_and_pipes_are_refused(bundle, tmp_path):
    outside = tmp_path / "outside.txt"
    (bundle / "trees_1.txt").rename(outside)
    (bundle / "trees_1.txt").symlink_to(outside)
    with pytest.raises(ValueError, match=r"trees_1.txt is a link or no plain file"):
        open_bundle(bundle)
    (bundle / "trees_1.txt").unlink()
    os.mkfifo(bundle / "trees_1.txt")
    with pytest.raises(ValueError, match=r"trees_1.txt is a link or no plain file"):
        open_bundle(bundle)
    (bundle / "trees_1.txt").unlink()
    (bundle / "features").rename(tmp_path / "features")
    (bundle / "features").symlink_to(tmp_path / "features")
    with pytest.raises(ValueError, match=r"features is a link"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside", "a/../b", "a//b", ".", "a\\b", ""])
def test_no_path_leads_outside(bundle, name):
    def outside(fields):
        fields["files"][name] = {"sha256": "0" * 64, "size_bytes": 1}

    reseal(bundle, outside)
    with pytest.raises(ValueError, match="no file inside the bundle"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(format="adtower-bundle-9"), "format 'adtower-bundle-9'"),
        (lambda f: f.update(average="median"), "average is 'median', must be one of"),
        (lambda f: f.update(vectors="elsewhere"), "vectors is 'elsewhere'"),
        (lambda f: f.update(colour="red"), "fields are not those"),
        (lambda f: f.pop("signature"), "fields are not those"),
        (lambda f: f.update(members=[]), "names no member"),
        (lambda f: f["members"][0].update(kind="pickle"), "'model_0.onnx' is 'pickle'"),
        (lambda f: f["members"][0].update(file="../x.onnx"), "lists no file '../x.onnx'"),
        (lambda f: f["files"]["trees_1.txt"].update(mode=7), "a file's record is wrong"),
        (lambda f: f.update(files=[]), "must list at most 256 'files'"),
    ],
)
def test_a_forged_manifest_is_refused(bundle, change, message):
    reseal(bundle, change)
    with pytest.raises(ValueError, match=message):
        open_bundle(bundle)


def test_an_endless_manifest_is_not_read(bundle, monkeypatch):
    monkeypatch.setattr("ranking.bundle.MAX_MANIFEST_BYTES", 100)
    with pytest.raises(ValueError, match="at most 100 are read"):
        open_bundle(bundle)


@pytest.mark.parametrize("location", ["../model_0.bin", "/etc/hostname", "model_9.bin"])
def test_weights_outside_the_bundle_are_refused(bundle, location):
    model = onnx.load(bundle / "model_0.onnx", load_external_data=False)
    outside = [t for t in model.graph.initializer if t.external_data]
    outside[0].external_data[0].value = location
    (bundle / "model_0.onnx").write_bytes(model.SerializeToString())
    reseal(bundle)
    with pytest.raises(ValueError, match=f"lies in '{location}', no listed file"):
        open_bundle(bundle)


def test_weights_beyond_the_end_of_their_file_are_refused(bundle):
    (bundle / "model_0.bin").write_bytes((bundle / "model_0.bin").read_bytes()[:-4])
    reseal(bundle)
    with pytest.raises(ValueError, match=r"ends at byte \d+ of 'model_0.bin', which has"):
        open_bundle(bundle)


def test_a_graph_that_onnxruntime_does_not_take_ends_in_words(bundle):
    model = onnx.load(bundle / "model_0.onnx", load_external_data=False)
    model.graph.node[0].op_type = "Teleport"
    (bundle / "model_0.onnx").write_bytes(model.SerializeToString())
    reseal(bundle)
    with pytest.raises(ValueError, match=r"onnxruntime does not take .*Teleport"):
        Scorer.load(bundle)
    (check,) = verify_bundle(bundle).checks
    assert "Teleport" in check.note


def test_trees_over_other_columns_are_refused_though_lightgbm_would_score(bundle):
    text = (bundle / "trees_1.txt").read_text()
    swapped = text.replace("0_user_id", "?").replace("1_query_id", "0_user_id")
    (bundle / "trees_1.txt").write_text(swapped.replace("?", "1_query_id"))
    reseal(bundle)
    with pytest.raises(ValueError, match=r"splits on the columns \['1_query_id', '0_user_id'"):
        Scorer.load(bundle)


def test_vectors_of_another_encoder_are_refused(bundle):
    store = bundle / "product_vectors" / "manifest.json"
    store.write_text(store.read_text().replace('"encoder"', '"another"'))
    reseal(bundle)
    with pytest.raises(ValueError, match="scores would be noise"):
        Scorer.load(bundle)


def test_a_member_with_other_weights_fails_its_proof(bundle):
    weights = bytearray((bundle / "model_0.bin").read_bytes())
    weights[: 4 * 1000] = np.full(1000, 0.5, np.float32).tobytes()
    (bundle / "model_0.bin").write_bytes(weights)
    reseal(bundle)
    certificate = verify_bundle(bundle)
    assert not certificate.passed
    assert "golden.sample: row" in certificate.failures


def test_a_link_to_a_whole_bundle_is_how_versions_are_switched(bundle, tmp_path):
    (tmp_path / "current").symlink_to(bundle)
    assert open_bundle(tmp_path / "current").manifest.name == "ensemble"
