"""Turn a trained click model into a bundle, and prove it before it is published.

Shape letters: N impressions.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embeddings.store import VectorStore
from features.columns import as_frame
from features.embedding_join import Vectors, join_vectors
from features.examples import Examples
from features.pipeline import FeaturePipeline
from ranking.baselines import LightGBMRanker, LogisticRegression
from ranking.bundle import (
    CERTIFICATE_FILE,
    FEATURES,
    GOLDEN_FILE,
    MODEL_CARD_FILE,
    PRODUCT_VECTORS,
    QUERY_VECTORS,
    BundleManifest,
    Member,
    seal_,
)
from ranking.calibration import Calibrator, Isotonic
from ranking.certificate import (
    THRESHOLDS_FILE,
    TOLERANCE,
    parity_check,
    verify_bundle,
)
from ranking.checkpoint import published_folder
from ranking.columns import tree_columns
from ranking.contract import ClickModel
from ranking.ensemble import Ensemble, signature_of
from ranking.golden import band_of, golden_cases, golden_table, random_rows, threshold_rows
from ranking.lowering import write_logistic_, write_network_
from ranking.model_card import CardFacts, card_text
from ranking.quantise import Int8Gate, with_rounded_tables
from ranking.score import Scorer
from ranking.tower import TowerRanker

RANDOM_ROWS = 10_000
"""Rows with every column drawn by itself that the bundle is compared with the model on."""

_SEED = 0
_LIBRARIES = (
    "adtower", "torch", "torchrec", "fbgemm-gpu-cpu", "onnx", "onnxruntime", "lightgbm", "polars",
    "numpy", "scipy", "pydantic",
)  # fmt: skip


def export_bundle(
    model: ClickModel | Ensemble,
    pipeline: FeaturePipeline,
    product_store: VectorStore | None,
    query_store: VectorStore | None,
    sample: pl.DataFrame,
    out: str | Path,
    *,
    calibrator: Calibrator | None = None,
    int8_tables: bool = False,
    vectors_place: Literal["inside", "pointer"] = "inside",
    facts: CardFacts | None = None,
    more_files: Callable[[Path], object] | None = None,
    tolerance: float = TOLERANCE,
) -> Path:
    """Write a bundle, after it has scored as the trained model does; otherwise write nothing.

    Args:
        model: A fitted tower, logistic regression or LightGBM model, or an ensemble of them.
        pipeline: The fitted pipeline that made its training examples.
        product_store, query_store: The vectors it was fitted with; ignored if it uses none.
        sample: Raw impressions to prove the export with, at least one and best some thousands
            that the model was not trained on. The first 256 become golden rows.
        out: A folder that does not exist yet.
        calibrator: Calibrates the bundle's scores, inside the graph where one network scores.
        int8_tables: Store the id tables of towers in one byte a value, if the labelled sample
            loses no more than ``ranking.quantise`` allows.
        vectors_place: "inside" copies the vectors into the bundle; "pointer" leaves their
            fingerprint, and the reader names the stores.
        facts: What the model card says of the data.
        more_files: Called with the bundle's folder to write further files into it, such as a
            query encoder, before the proof.
        tolerance: Largest distance between the bundle's and the model's probabilities; see
            ``slack_of`` for calibrated ones.

    Returns:
        ``out``.

    Raises:
        ValueError: If the model cannot be exported, the vectors are not those it was fitted with,
            ``out`` exists, int8 costs too much, or a check of the certificate fails.
    """
    out = Path(out)
    sample = as_frame(sample)
    if len(sample) == 0:
        raise ValueError("sample has no rows; the export proves itself on raw impressions")
    members = _members_of(model)
    vectors = _joined(model, pipeline, product_store, query_store)
    signature = signature_of(model)
    examples = pipeline.transform(sample)
    signature.check(examples, vectors)
    gate = None
    if int8_tables:
        model, gate = _rounded(model, examples, vectors)
        members = _members_of(model)
    inside = calibrator is not None and len(members) == 1 and _is_network(members[0])
    manifest = BundleManifest(
        name=model.name,
        members=tuple(_member(one, number, len(members)) for number, one in enumerate(members)),
        average=model.of if isinstance(model, Ensemble) else "logit",
        signature=signature,
        vectors="none" if vectors is None else vectors_place,
        calibration=None if calibrator is None else calibrator.to_dict(),
        calibration_inside=inside,
        versions=_versions(),
    )
    calibrate = None if calibrator is None else calibrator.calibrate
    slack = slack_of(calibrator, tolerance)

    def predict(raw: pl.DataFrame, given: Vectors | None) -> NDArray[np.float64]:
        return model.predict_proba(pipeline.transform(raw), given)

    with published_folder(out) as folder:
        for one, member in zip(members, manifest.members, strict=True):
            path = folder / member.file
            _write_member_(one, path, calibrator if inside else None, int8_tables)
        pipeline.save_(folder / FEATURES)
        if vectors is not None and vectors_place == "inside":
            assert product_store is not None
            assert query_store is not None
            _copy_store(product_store, folder / PRODUCT_VECTORS)
            _copy_store(query_store, folder / QUERY_VECTORS)
        cases = golden_cases(sample, pipeline, seed=_SEED)
        golden = golden_table(cases, predict, vectors, calibrate, slack=slack)
        golden.write_parquet(folder / GOLDEN_FILE)
        _write_thresholds_(members, manifest, pipeline, sample, vectors, folder)
        p_N = model.predict_proba(examples, vectors)
        p_N = p_N if calibrate is None else calibrate(p_N)
        card = card_text(manifest, sample, examples, p_N, facts or CardFacts(), gate)
        (folder / MODEL_CARD_FILE).write_text(card, encoding="utf-8")
        if more_files is not None:
            more_files(folder)
        # What is checked is a whole bundle; afterwards it is sealed again with its certificate.
        seal_(folder, manifest)
        with _pointed_to(product_store, query_store, manifest) as stores:
            certificate = verify_bundle(folder, vectors=stores, tolerance=tolerance)
            if certificate.passed:
                scorer = Scorer.load(folder, vectors=stores)
                raw = random_rows(sample, RANDOM_ROWS, seed=_SEED + 1)
                band = band_of(predict(raw, vectors), calibrate, slack)
                check = parity_check(
                    "against_model.random", scorer.score(raw), *band[1:], tolerance
                )
                certificate = replace(certificate, checks=(*certificate.checks, check))
        if not certificate.passed:
            raise ValueError(
                f"the bundle does not score as the trained model does (tolerance {tolerance:g}), "
                f"so nothing was written. {certificate.failures}"
            )
        (folder / CERTIFICATE_FILE).write_text(certificate.to_json(), encoding="utf-8")
        seal_(folder, manifest)
    return out


def slack_of(calibrator: Calibrator | None, tolerance: float) -> float:
    """Return how far a prediction may be from the model's before it is calibrated.

    An isotonic function has steps, which turn 1e-7 into anything; so there the tolerance holds
    before it. Platt reads the logit, and a prediction in float32 knows that of a near certain
    click to a few digits alone; so one rounding is allowed for.
    """
    if calibrator is None:
        return 0.0
    return tolerance if isinstance(calibrator, Isotonic) else float(np.finfo(np.float32).eps)


def _members_of(model: ClickModel | Ensemble) -> list[ClickModel]:
    members = model.members if isinstance(model, Ensemble) else [model]
    for member in members:
        if not isinstance(member, (TowerRanker, LogisticRegression, LightGBMRanker)):
            raise ValueError(
                f"a {member.name!r} model cannot be exported; a tower, logistic_regression or "
                "lightgbm model can. A base rate is one number and needs no bundle"
            )
    return members


def _is_network(model: ClickModel) -> bool:
    return not isinstance(model, LightGBMRanker)


def _member(model: ClickModel, number: int, of: int) -> Member:
    stem, ending = ("model", "onnx") if _is_network(model) else ("trees", "txt")
    return Member(
        name=model.name,
        kind="onnx" if _is_network(model) else "lightgbm",
        file=f"{stem}.{ending}" if of == 1 else f"{stem}_{number}.{ending}",
        uses_vectors=model.uses_vectors,
    )


def _write_member_(
    model: ClickModel, path: Path, calibrator: Calibrator | None, int8_tables: bool
) -> None:
    if isinstance(model, TowerRanker):
        write_network_(
            model.network_,
            model.signature_,
            path,
            calibrator=calibrator,
            int8_tables=int8_tables,
            codebook=model.codebook_,
        )
    elif isinstance(model, LogisticRegression):
        write_logistic_(model, path, calibrator=calibrator)
    else:
        assert isinstance(model, LightGBMRanker)
        path.write_text(model.booster_.model_to_string(), encoding="utf-8")


def _write_thresholds_(
    members: list[ClickModel],
    manifest: BundleManifest,
    pipeline: FeaturePipeline,
    sample: pl.DataFrame,
    vectors: Vectors | None,
    folder: Path,
) -> None:
    """Rows on the splits of every LightGBM member, with what its trees in memory say."""
    first = pipeline.transform(sample.head(1))
    arrays: dict[str, NDArray] = {}
    for model, member in zip(members, manifest.members, strict=True):
        if isinstance(model, LightGBMRanker):
            base_T = tree_columns(first, vectors if model.uses_vectors else None)[0]
            row_MT = threshold_rows(model.booster_.dump_model(), base_T)
            arrays[f"{member.file}.rows"] = row_MT
            arrays[f"{member.file}.expected"] = np.asarray(model.booster_.predict(row_MT))
    if arrays:
        np.savez(folder / THRESHOLDS_FILE, allow_pickle=False, **arrays)


def _rounded(
    model: ClickModel | Ensemble, examples: Examples, vectors: Vectors | None
) -> tuple[ClickModel | Ensemble, Int8Gate]:
    """The model with its towers' tables rounded to int8, and what that costs on labelled rows."""
    if examples.label_N is None:
        raise ValueError("int8 tables were asked for, but the sample carries no labels to judge by")
    rounded: ClickModel | Ensemble
    if isinstance(model, TowerRanker):
        rounded = with_rounded_tables(model)
    elif isinstance(model, Ensemble) and any(isinstance(m, TowerRanker) for m in model.members):
        members = [
            with_rounded_tables(m) if isinstance(m, TowerRanker) else m for m in model.members
        ]
        rounded = Ensemble(members, of=model.of)
    else:
        raise ValueError(
            f"int8 tables were asked for, but a {model.name!r} model has no id tables; a tower has"
        )
    gate = Int8Gate.measure(
        examples.label_N,
        model.predict_proba(examples, vectors),
        rounded.predict_proba(examples, vectors),
    )
    gate.check()
    return rounded, gate


def _joined(
    model: ClickModel | Ensemble,
    pipeline: FeaturePipeline,
    product_store: VectorStore | None,
    query_store: VectorStore | None,
) -> Vectors | None:
    if not model.uses_vectors:
        return None
    if product_store is None or query_store is None:
        missing = "product_store" if product_store is None else "query_store"
        raise ValueError(f"{missing} is None, but the model was fitted with vectors")
    return join_vectors(product_store, query_store, pipeline.product_ids_, pipeline.query_ids_)


@contextmanager
def _pointed_to(
    product_store: VectorStore | None, query_store: VectorStore | None, manifest: BundleManifest
) -> Iterator[Path | None]:
    """Where a bundle without vectors of its own finds them while it is checked."""
    if manifest.vectors != "pointer":
        yield None
        return
    assert product_store is not None
    assert query_store is not None
    with TemporaryDirectory() as folder:
        _copy_store(product_store, Path(folder) / "products")
        _copy_store(query_store, Path(folder) / "queries")
        yield Path(folder)


def _copy_store(store: VectorStore, folder: Path) -> None:
    VectorStore.write_(
        folder,
        store.ids,
        np.asarray(store.vectors_VD),
        kind=store.manifest.kind,
        encoder_fingerprint=store.manifest.encoder_fingerprint,
        data_fingerprint=store.manifest.data_fingerprint,
    )


def _versions() -> dict[str, str]:
    """Of Python and of what is installed among the libraries that matter."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            # The GPU build of fbgemm has another name, and adtower may run from its sources.
            continue
    return versions
