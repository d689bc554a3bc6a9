"""Write the query encoder of a bundle: torch to ONNX, proved on texts before it is kept.

Shape letters: B texts, L tokens, D size of a vector, S sample texts, P products.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from embeddings.model import DashClip
from embeddings.precision import MIN_COSINE
from embeddings.text import tokenize
from ranking.query_encoder import (
    ENCODER_FILE,
    INPUT_NAME,
    OUTPUT_NAME,
    QUERIES_FILE,
    SETTINGS_FILE,
    TOKENIZER_FILE,
    OnnxQueryEncoder,
    Precision,
    QueryEncoderSettings,
)

MAX_TOKENS = 64
"""Longer queries are refused: up to here attention is one path of plain matrix products, and a
graph has no branches."""

TOLERANCE = 1e-5
"""Largest distance of a coordinate between the exported and the torch encoder in float32."""

MIN_INT8_COSINE = 0.99
"""int8 is refused if any sample text's vector turns further than this from float32."""

MIN_INT8_OVERLAP = 0.9
"""int8 is refused if it keeps fewer of the ten closest products, in the mean over sample texts."""

EDGE_TEXTS = ("", " ", "a", "\N{SNOWMAN} \N{CJK UNIFIED IDEOGRAPH-4E2D}", "milk " * 200)
"""Texts that any sample is extended by: nothing, one letter, other scripts, far too long."""

_SAMPLE = 200
_OPSET = 20


def write_query_encoder(
    model: DashClip,
    folder: Path,
    queries: pl.DataFrame,
    *,
    precision: Precision = "fp32",
    product_PD: NDArray[np.floating] | None = None,
) -> QueryEncoderSettings:
    """Write ``query_encoder/`` of a bundle, after its vectors agreed with the torch encoder's.

    Args:
        model: Made the bundle's query vectors.
        folder: A new folder.
        queries: query_id and query; they become the known texts, and up to 200 of them, evenly
            spaced, with ``EDGE_TEXTS`` the sample that the encoder is proved on.
        precision: "int8" quantises the weights of the matrix products and must pass
            ``MIN_INT8_COSINE`` and ``MIN_INT8_OVERLAP``; on one core with VNNI it takes a quarter
            of the time of fp32.
        product_PD: Product vectors in the same space, for the int8 gate.

    Raises:
        ValueError: If queries may be longer than ``MAX_TOKENS`` tokens, the exported encoder
            does not agree with the torch one, or int8 does not pass its gate.
    """
    max_tokens = model.architecture.max_query_tokens
    if max_tokens > MAX_TOKENS:
        raise ValueError(
            f"max_query_tokens={max_tokens}, but a query encoder is exported for at most "
            f"{MAX_TOKENS} tokens; train with a lower max_query_tokens, or export without a query "
            "encoder"
        )
    if precision == "int8" and (product_PD is None or len(product_PD) == 0):
        raise ValueError("precision='int8' needs product_PD, the products its ranks are judged on")
    folder.mkdir(parents=True)
    graph = QueryGraph(model).eval()
    _write_onnx(graph, folder / ENCODER_FILE, max_tokens)
    (folder / TOKENIZER_FILE).write_text(model.tokenizer.to_str(), encoding="utf-8")
    queries.select(
        pl.col("query_id").cast(pl.String), pl.col("query").cast(pl.String)
    ).write_parquet(folder / QUERIES_FILE)
    sample = _sample_of(queries, model)
    expected_SD = graph.embed(sample)
    _same_as_model(model, sample, expected_SD)
    settings = _measured(
        folder, model, sample, expected_SD, product_PD=product_PD, precision="fp32"
    )
    if not settings.max_difference <= TOLERANCE:
        raise ValueError(
            f"the exported query encoder differs from the torch one by {settings.max_difference:g} "
            f"over {len(sample)} texts, more than {TOLERANCE:g}"
        )
    if precision == "int8":
        _quantise_(folder / ENCODER_FILE)
        settings = _measured(
            folder, model, sample, expected_SD, product_PD=product_PD, precision="int8"
        )
        _gate_int8(settings)
    return settings


class QueryGraph(nn.Module):
    """A DashCLIP model from the token ids of queries, unpadded, to unit vectors, in float32."""

    def __init__(self, model: DashClip) -> None:
        super().__init__()
        self.model = model

    def forward(self, id_BL: Tensor) -> Tensor:
        """Return unit vectors, shape (B, D)."""
        model = self.model
        attend_BL = torch.ones_like(id_BL, dtype=torch.bool)
        state_BLD = model.query_states(id_BL, attend_BL)
        if model.query_encoder is None:
            vector_BD = model.itc_text(model.text.pool(state_BLD, attend_BL))
        else:
            pooled_BD = model.query_encoder.pooled(state_BLD, attend_BL)
            vector_BD = model.query_encoder.projection(pooled_BD)
        return functional.normalize(vector_BD, dim=1)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts, one at a time, shape (S, D)."""
        tokens = tokenize(self.model.tokenizer, texts, self.model.architecture.max_query_tokens)
        rows = [tokens.padded(torch.tensor([row]))[0] for row in range(len(texts))]
        return torch.cat([self(id_1L.to(self.model.device)) for id_1L in rows]).cpu().numpy()


def _write_onnx(graph: QueryGraph, path: Path, max_tokens: int) -> None:
    # More than one row and two tokens, because the exporter takes ones for constants.
    example_BL = torch.ones(3, min(7, max_tokens), dtype=torch.int64, device=graph.model.device)
    dynamic = {
        0: torch.export.Dim("batch", min=1),
        1: torch.export.Dim("length", min=2, max=MAX_TOKENS),
    }
    with warnings.catch_warnings():
        # The exporter warns of its own internals, which nobody here can mend.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            (example_BL,),
            dynamo=True,
            dynamic_shapes=(dynamic,),
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None
    program.save(path)


def _quantise_(path: Path) -> None:
    """Replace an encoder by its dynamically quantised self; embeddings stay in float32."""
    import logging

    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    exported = onnx.load(path)
    # The exporter notes shapes that onnx's own inference refuses; they are derived again.
    del exported.graph.value_info[:]
    advice, logging.root.disabled = logging.root.disabled, True
    try:
        with TemporaryDirectory() as temporary:
            plain = Path(temporary) / path.name
            onnx.save(exported, plain)
            quantize_dynamic(
                plain,
                path,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
    finally:
        logging.root.disabled = advice


def _sample_of(queries: pl.DataFrame, model: DashClip) -> list[str]:
    texts = queries["query"].cast(pl.String).drop_nulls().unique(maintain_order=True).to_list()
    stride = max(1, len(texts) // _SAMPLE)
    sample = dict.fromkeys([*texts[::stride][:_SAMPLE], *EDGE_TEXTS])
    # Some tokenizers add no marks of their own, and then nothing is not a text.
    return [text for text in sample if model.tokenizer.encode(text).ids]


def _same_as_model(model: DashClip, sample: list[str], graph_SD: NDArray[np.float32]) -> None:
    """The graph must be what ``embed_queries`` does, which may compute in bfloat16."""
    cosine_S = (model.embed_queries(sample) * graph_SD).sum(1)
    worst = int(np.argmin(cosine_S))
    if not cosine_S[worst] >= MIN_COSINE:
        raise ValueError(
            f"the vector of {sample[worst][:40]!r} has cosine {cosine_S[worst]:.5f} to that of "
            f"embed_queries, below {MIN_COSINE}; this encoder cannot be exported"
        )


def _measured(
    folder: Path,
    model: DashClip,
    sample: list[str],
    expected_SD: NDArray[np.float32],
    *,
    product_PD: NDArray[np.floating] | None,
    precision: Precision,
) -> QueryEncoderSettings:
    """Write the settings with what the encoder on disk measures, and return them."""
    settings = QueryEncoderSettings(
        encoder_fingerprint=model.fingerprint,
        dim=model.dim,
        max_tokens=model.architecture.max_query_tokens,
        precision=precision,
        checked_texts=len(sample),
        max_difference=0.0,
        min_cosine=1.0,
        top10_overlap=None,
    )
    path = folder / SETTINGS_FILE
    path.write_text(settings.to_json(), encoding="utf-8")
    found_SD = OnnxQueryEncoder.load(folder).encode(sample)
    settings = replace(
        settings,
        max_difference=float(np.abs(found_SD - expected_SD).max()),
        min_cosine=float((found_SD * expected_SD).sum(1).min()),
        top10_overlap=None
        if product_PD is None
        else top10_overlap(expected_SD, found_SD, product_PD),
    )
    path.write_text(settings.to_json(), encoding="utf-8")
    return settings


def top10_overlap(
    first_SD: NDArray[np.floating], second_SD: NDArray[np.floating], product_PD: NDArray
) -> float:
    """Return the mean share of each text's ten closest products that two sets of vectors name.

    1.0 is full agreement. With ten products or fewer it is always 1.0.
    """
    shares = []
    for first_D, second_D in zip(first_SD, second_SD, strict=True):
        best = [
            set(np.argsort(-(product_PD @ v_D), kind="stable")[:10]) for v_D in (first_D, second_D)
        ]
        shares.append(len(best[0] & best[1]) / len(best[0]))
    return float(np.mean(shares))


def _gate_int8(settings: QueryEncoderSettings) -> None:
    overlap = settings.top10_overlap
    if (
        settings.min_cosine >= MIN_INT8_COSINE
        and overlap is not None
        and overlap >= MIN_INT8_OVERLAP
    ):
        return
    raise ValueError(
        f"int8 does not pass its gate over {settings.checked_texts} texts: lowest cosine "
        f"{settings.min_cosine:.4f} (at least {MIN_INT8_COSINE}), top-10 overlap {overlap:.3f} "
        f"(at least {MIN_INT8_OVERLAP}); export with precision='fp32'"
    )
