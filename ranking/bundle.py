"""What a bundle is: a folder that scores raw impressions without the code that trained it.

========================  ======================================================================
``manifest.json``         format, members, inputs, vectors, calibration, versions, and the size
                          and SHA-256 of every other file
``manifest.sha256``       SHA-256 of ``manifest.json``, as ``sha256sum -c`` reads it
``model.onnx``            a network with its tables lowered to Gather; ``model.bin`` beside it
                          where the tables are large (``trees.txt``: LightGBM). An ensemble has
                          several such files
``features/``             the fitted ``FeaturePipeline``, as data
``product_vectors/``      the vector stores the model was fitted with, where it uses vectors and
``query_vectors/``        the bundle holds them itself
``golden.parquet``        raw impressions, edge cases among them, and the trained model's score
                          of each
``model_card.md``         data, time range, slices, calibration and limits, for people
``certificate.json``      what was checked when the bundle was written, and how it came out
========================  ======================================================================

``open_bundle`` is the only door to one: nothing is parsed before its size and SHA-256 agree with
the manifest, and the manifest's own with ``manifest.sha256``. The sums find damage and files that
were swapped; they are no signature, so a bundle from a stranger still needs a trusted way of
transport. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from features.file_sum import file_sha256
from ranking.contract import InputSignature
from ranking.onnx_file import read_onnx

FORMAT = "adtower-bundle-2"

MANIFEST_FILE = "manifest.json"
SEAL_FILE = "manifest.sha256"
FEATURES = "features"
PRODUCT_VECTORS = "product_vectors"
QUERY_VECTORS = "query_vectors"
GOLDEN_FILE = "golden.parquet"
CERTIFICATE_FILE = "certificate.json"
MODEL_CARD_FILE = "model_card.md"
GOLDEN_SCORE = "expected_p_click"
"""The column of ``golden.parquet`` that holds the trained model's scores."""

OUTPUT_NAME = "p_click"

MAX_FILES = 256
MAX_MANIFEST_BYTES = 64 << 20

MemberKind = Literal["onnx", "lightgbm"]
Average = Literal["logit", "probability"]
VectorsPlace = Literal["none", "inside", "pointer"]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model of a bundle. Most bundles have one; an ensemble has several."""

    name: str
    """Name of the model, for reports."""
    kind: MemberKind
    """What scores it: onnxruntime or LightGBM."""
    file: str
    """Its file in the bundle."""
    uses_vectors: bool

    def signature_of(self, manifest: BundleManifest) -> InputSignature:
        """Return what this member is fed: all of the bundle's inputs, or all but the vectors."""
        if self.uses_vectors:
            return manifest.signature
        return replace(manifest.signature, vectors_fingerprint=None, vectors_dim=None)


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """What the manifest says of one file."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class BundleManifest:
    """What ``manifest.json`` says, beside its list of files."""

    name: str
    """Name of the model, for reports."""
    members: tuple[Member, ...]
    average: Average
    """What of the members is averaged; with one member it makes no difference."""
    signature: InputSignature
    """The features and vectors it scores."""
    vectors: VectorsPlace
    """Whether the vectors lie in the bundle, or in stores that the reader must name, which the
    fingerprint in ``signature`` then identifies."""
    calibration: dict[str, Any] | None
    """What ``ranking.calibration.calibrator_from_dict`` reads; None if there is none."""
    calibration_inside: bool
    """Whether ``model.onnx`` calibrates already, so that the reader must not."""
    versions: dict[str, str]
    """Of Python and the libraries that wrote it."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``from_json`` reads them."""
        plain = {name: value for name, value in vars(self).items() if name != "signature"}
        members = [asdict(member) for member in self.members]
        return {**plain, "members": members, "signature": self.signature.to_json()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> BundleManifest:
        """Return the manifest that ``to_json`` described.

        Raises:
            ValueError: If a field is missing or unknown, or has a value that is not allowed.
        """
        try:
            members = tuple(Member(**member) for member in fields["members"])
            signature = InputSignature.from_json(fields["signature"])
            manifest = cls(**{**fields, "members": members, "signature": signature})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"the manifest's fields are not those of {FORMAT}: {error!r}"
            ) from error
        allowed: dict[str, tuple[Any, tuple[str, ...]]] = {
            "average": (manifest.average, ("logit", "probability")),
            "vectors": (manifest.vectors, ("none", "inside", "pointer")),
            **{f"kind of {m.file!r}": (m.kind, ("onnx", "lightgbm")) for m in members},
        }
        for what, (value, values) in allowed.items():
            if value not in values:
                raise ValueError(f"the manifest's {what} is {value!r}, must be one of {values}")
        if not members:
            raise ValueError("the manifest names no member; a bundle scores with at least one")
        return manifest


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle: its manifest and where its files lie."""

    folder: Path
    manifest: BundleManifest
    files: dict[str, FileRecord]
    """Every file but the manifest and its seal, by path within the folder."""
    product_vectors: Path | None
    """The vector stores, inside the bundle or where the reader said; None if it uses none."""
    query_vectors: Path | None

    @property
    def features(self) -> Path:
        """The folder of the fitted pipeline."""
        return self.folder / FEATURES

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, which covers every file."""
        return file_sha256(self.folder / MANIFEST_FILE)

    def path(self, name: str) -> Path:
        """Return the path of a listed file.

        Raises:
            ValueError: If the manifest lists no such file.
        """
        if name not in self.files:
            raise ValueError(f"{self.folder} lists no file {name!r}; it has {sorted(self.files)}")
        return self.folder / name

    def read(self, name: str) -> bytes:
        """Return a listed file, hashed again as it is read, for parsers that trust their input.

        Raises:
            ValueError: If the file is not listed, or was changed since the bundle was opened.
        """
        content = self.path(name).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.files[name].sha256:
            raise ValueError(f"{self.path(name)} was changed while the bundle was open")
        return content


def open_bundle(folder: str | Path, *, vectors: str | Path | None = None) -> Bundle:
    """Verify every file of a bundle; nothing is parsed before its size and sum agree.

    Args:
        folder: What ``adtower export`` wrote.
        vectors: For a bundle that points to its vectors: the folder that holds their stores as
            ``products`` and ``queries``. Whoever opens them compares the fingerprint.

    Raises:
        ValueError: If the folder is no bundle or of another format, a file is missing, unlisted,
            changed, no plain file, or named outside the folder, or ``vectors`` is missing or not
            asked for.
    """
    folder = Path(folder)
    fields = _sealed_manifest(folder)
    found = fields.pop("format", None)
    if found != FORMAT:
        raise ValueError(
            f"{folder} has format {found!r}, this version reads {FORMAT!r}; "
            "is it a bundle that `adtower export` wrote?"
        )
    files = _listed_files(folder, fields.pop("files", None))
    _refuse_other_files(folder, files)
    for name, record in files.items():
        _verify(folder / name, record)
    manifest = BundleManifest.from_json(fields)
    for member in manifest.members:
        _check_member(folder, member, files)
    products, queries = _vector_stores(folder, manifest, None if vectors is None else Path(vectors))
    return Bundle(
        folder=folder,
        manifest=manifest,
        files=files,
        product_vectors=products,
        query_vectors=queries,
    )


def seal_(folder: Path, manifest: BundleManifest) -> None:
    """Write the manifest over every file in ``folder``, and the manifest's own sum beside it."""
    names = sorted(set(_plain_files(folder)) - {MANIFEST_FILE, SEAL_FILE})
    files = {
        name: {"sha256": file_sha256(folder / name), "size_bytes": (folder / name).stat().st_size}
        for name in names
    }
    fields = {"format": FORMAT, **manifest.to_json(), "files": files}
    content = (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()
    (folder / MANIFEST_FILE).write_bytes(content)
    (folder / SEAL_FILE).write_bytes(_seal_of(content))


def _sealed_manifest(folder: Path) -> dict[str, Any]:
    manifest, seal = folder / MANIFEST_FILE, folder / SEAL_FILE
    if not manifest.is_file():
        raise ValueError(f"{manifest} does not exist; is {folder} a bundle?")
    for path, limit in ((manifest, MAX_MANIFEST_BYTES), (seal, 256)):
        if not _is_plain_file(path):
            raise ValueError(f"{path} is missing or no plain file; was the bundle copied whole?")
        if path.stat().st_size > limit:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, at most {limit} are read")
    content = manifest.read_bytes()
    if seal.read_bytes() != _seal_of(content):
        raise ValueError(
            f"{manifest} does not have the SHA-256 that {SEAL_FILE} says; "
            "one of the two was changed or damaged after it was written"
        )
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{manifest} is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{manifest} holds a {type(fields).__name__}, not an object")
    return fields


def _listed_files(folder: Path, listed: Any) -> dict[str, FileRecord]:
    if not isinstance(listed, dict) or len(listed) > MAX_FILES:
        raise ValueError(
            f"{folder / MANIFEST_FILE} must list at most {MAX_FILES} 'files' with size and sum"
        )
    for name in listed:
        path = PurePosixPath(name)
        inside = not path.is_absolute() and ".." not in path.parts and path.as_posix() == name
        if not inside or "\\" in name or "\x00" in name or name in (".", MANIFEST_FILE, SEAL_FILE):
            raise ValueError(f"{folder / MANIFEST_FILE} lists {name!r}, no file inside the bundle")
    try:
        return {name: FileRecord(**record) for name, record in listed.items()}
    except TypeError as error:
        raise ValueError(f"{folder / MANIFEST_FILE}: a file's record is wrong: {error}") from error


def _refuse_other_files(folder: Path, files: dict[str, FileRecord]) -> None:
    present = set(_plain_files(folder)) - {MANIFEST_FILE, SEAL_FILE}
    if missing := sorted(set(files) - present):
        raise ValueError(f"{folder / missing[0]} is missing; was the bundle copied whole?")
    if unlisted := sorted(present - set(files)):
        raise ValueError(f"{folder} holds files that {MANIFEST_FILE} does not list: {unlisted}")


def _verify(path: Path, record: FileRecord) -> None:
    size = path.stat().st_size
    if size != record.size_bytes:
        raise ValueError(
            f"{path} has {size} bytes, but {MANIFEST_FILE} says {record.size_bytes}; "
            "the file was changed or damaged after it was written"
        )
    found = file_sha256(path)
    if found != record.sha256:
        raise ValueError(
            f"{path} has SHA-256 {found[:12]}…, but {MANIFEST_FILE} says "
            f"{str(record.sha256)[:12]}…; the file was changed or damaged after it was written"
        )


def _check_member(folder: Path, member: Member, files: dict[str, FileRecord]) -> None:
    if member.file not in files:
        raise ValueError(f"{folder} lists no file {member.file!r} of member {member.name!r}")
    if member.kind == "onnx":
        sizes = {name: record.size_bytes for name, record in files.items()}
        try:
            read_onnx((folder / member.file).read_bytes(), sizes)
        except ValueError as error:
            raise ValueError(f"{folder / member.file}: {error}") from error


def _vector_stores(
    folder: Path, manifest: BundleManifest, vectors: Path | None
) -> tuple[Path | None, Path | None]:
    if manifest.vectors != "pointer":
        if vectors is not None:
            raise ValueError(
                f"vectors is {vectors}, but {folder} "
                + ("uses no vectors" if manifest.vectors == "none" else "holds its own vectors")
            )
        if manifest.vectors == "none":
            return None, None
        return folder / PRODUCT_VECTORS, folder / QUERY_VECTORS
    if vectors is None:
        raise ValueError(
            f"{folder} points to vectors of fingerprint "
            f"{manifest.signature.vectors_fingerprint!r} and holds none; name the folder with "
            "their stores (vectors=, --vectors)"
        )
    return vectors / "products", vectors / "queries"


def _plain_files(folder: Path) -> list[str]:
    """Paths of all files below a folder; refuses links and whatever else is no plain file."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=False):
        for name in folders:
            if (Path(parent) / name).is_symlink():
                raise ValueError(f"{Path(parent) / name} is a link; a bundle holds plain files")
        for name in names:
            path = Path(parent) / name
            if not _is_plain_file(path):
                raise ValueError(f"{path} is a link or no plain file; a bundle holds plain files")
            found.append(path.relative_to(folder).as_posix())
            if len(found) > MAX_FILES + 2:
                raise ValueError(f"{folder} holds more than {MAX_FILES} files, so it is no bundle")
    return found


def _is_plain_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _seal_of(content: bytes) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST_FILE}\n".encode()
