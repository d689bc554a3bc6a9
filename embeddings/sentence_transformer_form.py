"""A query encoder as a folder that ``SentenceTransformer(path)`` opens, with equal output.

The folder has a BERT checkpoint, its tokenizer, and the modules after it: pooling; after stage 2
the layer norm without weights of the pooled vector; the projection; length 1.

Shape letters: D width of the text encoder, E embedding size.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from embeddings.checkpoint_families import TEXT_FAMILIES
from embeddings.encoders import TextShape
from embeddings.lora import has_lora
from embeddings.model import DashClip
from embeddings.store import publish_
from embeddings.transformer import TransformerLayer

ST_MODULES = "sentence_transformers.models"

TOKENS = {
    "unk_token": ("[UNK]", "<unk>"),
    "pad_token": ("[PAD]", "<pad>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
}
"""What tokenizers call these; the first that is in the vocabulary."""


def write_sentence_transformer_(model: DashClip, folder: str | Path) -> Path:
    """Write the query encoder of a model for sentence-transformers, whole or not at all.

    ``SentenceTransformer(folder).encode(texts)`` then gives what ``model.embed_queries(texts)``
    gives in float32.

    Args:
        model: Before stage 2 its queries are read by the text encoder and its ITC projection.
        folder: Must not exist.

    Returns:
        ``folder``.

    Raises:
        ValueError: If ``folder`` exists, or the encoder is not a BERT: causal, normalising before
            its layers, with a head of its own, filled to a fixed length or read at its last token
            (CLIP, SigLIP); or its adapters are not merged yet.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already; name another folder")
    shape = model.architecture.text
    refuse_other_than_bert(shape)
    if has_lora(model):
        raise ValueError("the model still has adapters; save it, which merges them, and load it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_transformer_(unfinished, model)
        modules = ["Transformer", "Pooling"]
        pooling = {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token"}
        modes = {name: name == pooling[shape.pool] for name in pooling.values()}
        _write_module_(
            unfinished / "1_Pooling", {"word_embedding_dimension": shape.width, **modes}, {}
        )
        projection = model.itc_text
        if model.query_encoder is not None:
            projection = model.query_encoder.projection
            silent = nn.LayerNorm(shape.pooled_width).state_dict()
            modules.append("LayerNorm")
            _write_module_(
                unfinished / "2_LayerNorm",
                {"dimension": shape.pooled_width},
                {f"norm.{name}": tensor for name, tensor in silent.items()},
            )
        modules += ["Dense", "Normalize"]
        _write_module_(
            unfinished / f"{len(modules) - 2}_Dense",
            {
                "in_features": projection.in_features,
                "out_features": projection.out_features,
                "bias": projection.bias is not None,
                "activation_function": "torch.nn.modules.linear.Identity",
            },
            {f"linear.{name}": tensor for name, tensor in projection.state_dict().items()},
        )
        (unfinished / f"{len(modules) - 1}_Normalize").mkdir()
        listed = [
            {
                "idx": at,
                "name": str(at),
                "path": f"{at}_{name}" if at else "",
                "type": f"{ST_MODULES}.{name}",
            }
            for at, name in enumerate(modules)
        ]
        _write_json(unfinished / "modules.json", listed)
        _write_json(
            unfinished / "config_sentence_transformers.json",
            {"similarity_fn_name": "cosine", "adtower_model": model.fingerprint},
        )
        publish_(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def refuse_other_than_bert(shape: TextShape) -> None:
    """Refuse a text encoder that Hugging Face's ``BertModel`` cannot compute.

    Raises:
        ValueError: Naming what differs.
    """
    wanted = {
        "norm": ("post",), "causal": (False,), "head": (0,), "pad_token": (None,),
        "pool": ("mean", "first"),
    }  # fmt: skip
    for name, allowed in wanted.items():
        value = getattr(shape, name)
        if value not in allowed:
            raise ValueError(
                f"the text encoder has {name}={value!r}, which the form of sentence-transformers "
                f"that is written here (a BERT, {name} {' or '.join(map(repr, allowed))}) cannot "
                "say; encoders of CLIP and SigLIP are such"
            )


def _write_transformer_(folder: Path, model: DashClip) -> None:
    """config.json, model.safetensors, the tokenizer, and what reads them."""
    shape = model.architecture.text
    _write_json(
        folder / "config.json",
        {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.width,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "intermediate_size": shape.feed_forward,
            "hidden_act": shape.activation,
            "max_position_embeddings": shape.positions,
            "layer_norm_eps": shape.norm_epsilon,
            "type_vocab_size": 1,
            "pad_token_id": _pad_id(model.tokenizer),
            "torch_dtype": "float32",
        },
    )
    save_file(bert_tensors(model), folder / "model.safetensors", metadata={"format": "pt"})
    model.tokenizer.save(str(folder / "tokenizer.json"))
    tokens = model.architecture.max_query_tokens
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": tokens,
            "clean_up_tokenization_spaces": False,
            **_special_tokens(model.tokenizer),
        },
    )
    _write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": tokens, "do_lower_case": False}
    )


def bert_tensors(model: DashClip) -> dict[str, Tensor]:
    """The query encoder's tensors under the names of ``BertModel``.

    The positions hold the embedding of token type 0 already, so that one is zero.
    """
    family, text = TEXT_FAMILIES["bert"], model.text
    named = dict(text.state_dict())
    tensors = {theirs: named[ours] for ours, theirs in family.tables.items()}
    for ours, theirs in family.parts.items():
        for end in ("weight", "bias"):
            tensors[f"{theirs}.{end}"] = named[f"{ours}.{end}"]
    width = text.shape.width
    tensors["embeddings.token_type_embeddings.weight"] = torch.zeros(1, width)
    layers: list[nn.Module] = list(text.layers)
    if model.query_encoder is not None:
        own = list(model.query_encoder.layers)
        layers = [*layers[: len(layers) - len(own)], *own]
    for depth, layer in enumerate(layers):
        assert isinstance(layer, TransformerLayer)
        state = layer.state_dict()
        for ours, parts in family.layer.items():
            for end in ("weight", "bias"):
                pieces = state[f"{ours}.{end}"].chunk(len(parts))
                for theirs, piece in zip(parts, pieces, strict=True):
                    tensors[f"{family.layers}.{depth}.{theirs}.{end}"] = piece
    return {name: tensor.detach().cpu().float().clone() for name, tensor in tensors.items()}


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    found: dict[str, str] = {}
    for role, names in TOKENS.items():
        for name in names:
            if tokenizer.token_to_id(name) is not None:
                found.setdefault(role, name)
    if "pad_token" not in found:
        # Padding is masked, so any token will do.
        found["pad_token"] = str(tokenizer.id_to_token(0))
    return found


def _pad_id(tokenizer: Tokenizer) -> int:
    return tokenizer.token_to_id(_special_tokens(tokenizer)["pad_token"]) or 0


def _write_module_(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir()
    _write_json(folder / "config.json", config)
    if tensors:
        own = {name: tensor.detach().cpu().float().clone() for name, tensor in tensors.items()}
        save_file(own, folder / "model.safetensors")


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
