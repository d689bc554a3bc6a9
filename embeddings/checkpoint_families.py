"""What BERT, BLIP, CLIP, SigLIP and ViT checkpoints call their settings and tensors.

Names are those on disk, as ``save_pretrained`` writes them and as the published files have them;
settings that a config.json may leave out have the values that Hugging Face's classes give them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Family:
    """What one kind of checkpoint calls its settings and tensors."""

    defaults: Mapping[str, Any]
    """Settings that its config.json leaves out where they are as usual."""
    shape: Mapping[str, Any]
    """Fields of our shape that hold for the whole family."""
    prefixes: tuple[str, ...]
    """What may stand before tensor names, by the class that was saved."""
    layers: str
    """Where the layers are."""
    layer: Mapping[str, tuple[str, ...]]
    """Our linear maps and norms of a layer, each made of theirs on top of each other."""
    tables: Mapping[str, str]
    """Our single tensors and theirs."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Our other linear maps and norms, and theirs."""
    without_bias: tuple[str, ...] = ()
    """Those of ``parts`` that have no bias there."""


_SIZES = {"num_hidden_layers": 12, "num_attention_heads": 12}
_BASE = {"hidden_size": 768, "intermediate_size": 3072, **_SIZES}
_OPENAI_PIXELS = {
    "pixel_mean": (0.48145466, 0.4578275, 0.40821073),
    "pixel_std": (0.26862954, 0.26130258, 0.27577711),
}
_HALF_PIXELS = {"pixel_mean": (0.5, 0.5, 0.5), "pixel_std": (0.5, 0.5, 0.5)}

_BERT_LAYER = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_out": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
    "feed_norm": ("output.LayerNorm",),
}
_VIT_LAYER = {
    "qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    "attention_out": ("attention.output.dense",),
    "attention_norm": ("layernorm_before",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
    "feed_norm": ("layernorm_after",),
}
_CLIP_LAYER = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention_out": ("self_attn.out_proj",),
    "attention_norm": ("layer_norm1",),
    "up": ("mlp.fc1",),
    "down": ("mlp.fc2",),
    "feed_norm": ("layer_norm2",),
}
_BLIP_LAYER = _CLIP_LAYER | {"qkv": ("self_attn.qkv",), "attention_out": ("self_attn.projection",)}

CROSS_ATTENTION = {
    "query": ("crossattention.self.query",),
    "keys_values": ("crossattention.self.key", "crossattention.self.value"),
    "out": ("crossattention.output.dense",),
    "norm": ("crossattention.output.LayerNorm",),
}
"""Our parts of one cross-attention and BLIP's, within a layer."""

_BERT_TABLES = {
    "words.weight": "embeddings.word_embeddings.weight",
    "positions.weight": "embeddings.position_embeddings.weight",
}
_CLIP_TABLES = {
    "words.weight": "embeddings.token_embedding.weight",
    "positions.weight": "embeddings.position_embedding.weight",
}

TEXT_FAMILIES = {
    "bert": Family(
        defaults={
            **_BASE,
            "vocab_size": 30522,
            "max_position_embeddings": 512,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
        },
        shape={},
        prefixes=("", "bert."),
        layers="encoder.layer",
        layer=_BERT_LAYER,
        tables=_BERT_TABLES,
        parts={"norm": "embeddings.LayerNorm"},
    ),
    "blip_text_model": Family(
        defaults={
            **_BASE,
            "num_attention_heads": 8,
            "vocab_size": 30524,
            "max_position_embeddings": 512,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "bos_token_id": 30522,
        },
        shape={"pool": "first"},
        prefixes=("", "text_encoder.", "text_model.", "bert."),
        layers="encoder.layer",
        layer=_BERT_LAYER,
        tables=_BERT_TABLES,
        parts={"norm": "embeddings.LayerNorm"},
    ),
    "clip_text_model": Family(
        defaults={
            **_SIZES,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_attention_heads": 8,
            "vocab_size": 49408,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "eos_token_id": 49407,
        },
        shape={"norm": "pre", "causal": True, "pool": "last"},
        prefixes=("text_model.", ""),
        layers="encoder.layers",
        layer=_CLIP_LAYER,
        tables=_CLIP_TABLES,
        parts={"readout.norm": "final_layer_norm"},
    ),
    "siglip_text_model": Family(
        defaults={
            **_BASE,
            "vocab_size": 32000,
            "max_position_embeddings": 64,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "pad_token_id": 1,
        },
        shape={"norm": "pre", "pool": "last"},
        prefixes=("text_model.", ""),
        layers="encoder.layers",
        layer=_CLIP_LAYER,
        tables=_CLIP_TABLES,
        parts={"readout.norm": "final_layer_norm", "readout.head": "head"},
    ),
}

IMAGE_FAMILIES = {
    "vit": Family(
        defaults={
            **_BASE,
            "image_size": 224,
            "patch_size": 16,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
        },
        shape={"class_token": True, "pool": "first", **_HALF_PIXELS},
        prefixes=("", "vit."),
        layers="encoder.layer",
        layer=_VIT_LAYER,
        tables={
            "class_C": "embeddings.cls_token",
            "positions": "embeddings.position_embeddings",
        },
        parts={"patches": "embeddings.patch_embeddings.projection", "norm": "layernorm"},
    ),
    "clip_vision_model": Family(
        defaults={
            **_BASE,
            "image_size": 224,
            "patch_size": 32,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        shape={"class_token": True, "input_norm": True, "pool": "first", **_OPENAI_PIXELS},
        prefixes=("vision_model.", ""),
        layers="encoder.layers",
        layer=_CLIP_LAYER,
        tables={
            "class_C": "embeddings.class_embedding",
            "positions": "embeddings.position_embedding.weight",
        },
        parts={
            "patches": "embeddings.patch_embedding",
            # Misspelt in every CLIP checkpoint.
            "input_norm": "pre_layrnorm",
            "norm": "post_layernorm",
        },
        without_bias=("patches",),
    ),
    "siglip_vision_model": Family(
        defaults={
            **_BASE,
            "image_size": 224,
            "patch_size": 16,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        },
        shape={"pool": "attention", **_HALF_PIXELS},
        prefixes=("vision_model.", ""),
        layers="encoder.layers",
        layer=_CLIP_LAYER,
        tables={
            "positions": "embeddings.position_embedding.weight",
            "attention_pool.probe_C": "head.probe",
            "attention_pool.qkv.weight": "head.attention.in_proj_weight",
            "attention_pool.qkv.bias": "head.attention.in_proj_bias",
        },
        parts={
            "patches": "embeddings.patch_embedding",
            "norm": "post_layernorm",
            "attention_pool.out": "head.attention.out_proj",
            "attention_pool.norm": "head.layernorm",
            "attention_pool.up": "head.mlp.fc1",
            "attention_pool.down": "head.mlp.fc2",
        },
    ),
    "blip_vision_model": Family(
        defaults={
            **_BASE,
            "image_size": 384,
            "patch_size": 16,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
        },
        shape={"class_token": True, "pool": "first", **_OPENAI_PIXELS},
        prefixes=("vision_model.", ""),
        layers="encoder.layers",
        layer=_BLIP_LAYER,
        tables={
            "class_C": "embeddings.class_embedding",
            "positions": "embeddings.position_embedding",
        },
        parts={"patches": "embeddings.patch_embedding", "norm": "post_layernorm"},
    ),
}

WHOLE = ("clip", "siglip", "blip")
"""Model types whose checkpoints hold a text and an image encoder."""

ONLY = {
    "position_embedding_type": "absolute",
    "qkv_bias": True,
    "num_channels": 3,
    "vision_use_head": True,
}
"""Settings that we read with this value alone."""
