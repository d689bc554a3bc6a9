"""The judge: learns from human relevance labels, then labels the pairs nobody labelled.

A cross-encoder reads query and product together (``judge_network``). Its probabilities are
calibrated, and the cuts between its classes chosen, on training queries that it did not learn from.

Shape letters: N pairs, K = 3 classes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from embeddings import checkpoint
from embeddings.architecture import RANDOM_TEXT
from embeddings.encoders import TextShape
from embeddings.initial import load_fitting_tokenizer
from embeddings.precision import Precision, choose_precision
from embeddings.pretrained import read_text_shape
from embeddings.relevance.judge_calibration import Calibration, calibrate
from embeddings.relevance.judge_data import (
    LabelledPairs,
    for_calibration,
    human_pairs,
    labelled_pairs,
    rating_range,
)
from embeddings.relevance.judge_network import (
    CLASSES,
    JudgeNetwork,
    PairTokens,
    pair_tokens,
    refuse_unfit,
    start_network_,
)
from embeddings.relevance.judge_training import (
    JudgeConfig,
    Progress,
    fit_,
    judge_pairs,
)
from embeddings.relevance.lexical import COLUMNS, LexicalFeatures
from embeddings.relevance.pair_texts import PairTexts, pair_texts
from embeddings.stages import digest_of
from embeddings.text import product_texts
from embeddings.weights import find_text_weights

LAYOUT = "adtower-judge-1"


class JudgeRecord(BaseModel):
    """Everything about a judge but its tensors and its tokenizer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: JudgeConfig
    shape: TextShape
    calibration: Calibration
    rating_range: tuple[float, float] | None
    """Lowest and highest rating it learned from; None without ratings."""
    origin: str
    """Where the encoder's first weights came from."""
    run: dict[str, Any]
    """Seed, settings and digest of the data."""
    history: dict[str, list[float]]


class Judge:
    """A trained judge. ``train_judge`` makes one, ``Judge.load`` opens one."""

    def __init__(
        self,
        network: JudgeNetwork,
        tokenizer: Tokenizer,
        lexical: LexicalFeatures,
        record: JudgeRecord,
    ) -> None:
        self.network, self.tokenizer, self.lexical = network, tokenizer, lexical
        self.record = record
        self._precision: Precision | None = None

    @property
    def precision(self) -> Precision:
        """bfloat16 where it is fast and accurate; chosen when first needed."""
        if self._precision is None:
            self._precision = choose_precision(self.network.text, self.network.mean_C.device)
        return self._precision

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides a label."""
        decided = self.record.model_dump_json(include={"config", "calibration", "rating_range"})
        return checkpoint.fingerprint(self._tensors(), self.tokenizer.to_str(), decided)

    def label(
        self, products: pl.DataFrame, queries: pl.DataFrame, pairs: pl.DataFrame
    ) -> pl.DataFrame:
        """Label pairs.

        Args:
            products: product_id and text columns.
            queries: query_id, query.
            pairs: query_id, product_id; other columns are left out.

        Returns:
            One row a pair, in order: query_id, product_id, label, source ("judge"), p0, p1, p2, and
            rating if it learned from ratings. Where the product has no text or the query is blank
            there is nothing to read: label, probabilities and rating are null then.

        Raises:
            ValueError: If there is no pair, or one names an unknown query or product.
        """
        texts = pair_texts(products, queries, pairs, self.record.config.text_columns)
        p_NK, rating_N = self._judge(texts)
        columns: dict[str, NDArray] = {
            "label": self.record.calibration.labels(p_NK).astype(np.int8),
            **{f"p{k}": p_NK[:, k] for k in range(CLASSES)},
        }
        if rating_N is not None:
            columns["rating"] = rating_N
        readable = pl.Series("readable", texts.readable_N)
        return (
            pairs.select("query_id", "product_id")
            .with_columns(readable, source=pl.lit("judge"), **columns)
            .with_columns(pl.when("readable").then(pl.col(name)).alias(name) for name in columns)
            .select("query_id", "product_id", "label", "source", *list(columns)[1:])
        )

    def save_(self, folder: str | Path) -> Path:
        """Write the judge to a folder, whole or not at all.

        Raises:
            ValueError: If the folder holds something else.
        """
        record = self.record.model_dump(mode="json") | {"fingerprint": self.fingerprint}
        return checkpoint.write_(
            Path(folder), self._tensors(), self.tokenizer.to_str(), record, layout=LAYOUT
        )

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """Open a judge that ``save_`` wrote.

        Raises:
            ValueError: If there is none, a file was damaged, or it is another kind of model.
        """
        tensors, tokenizer, content = checkpoint.read(Path(folder), LAYOUT)
        fields = {name: content[name] for name in JudgeRecord.model_fields}
        record = JudgeRecord.model_validate(fields)
        lexical = LexicalFeatures(tensors.pop("lexical.idf_W").numpy())
        network = JudgeNetwork(record.shape, len(COLUMNS), record.config.hidden)
        network.load_state_dict(tensors)
        return cls(network.to(device).eval(), Tokenizer.from_str(tokenizer), lexical, record)

    def _judge(self, texts: PairTexts) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Calibrated probabilities (N, K), and ratings (N,) where it learned from them."""
        tokens = _tokens(self.tokenizer, texts, self.record.config)
        dense_NC = torch.from_numpy(self.lexical.compute(*texts.parts()))
        logit_NK, rating_logit_N = judge_pairs(self.network, tokens, dense_NC, self.precision)
        p_NK = self.record.calibration.probabilities(logit_NK.numpy())
        if self.record.rating_range is None:
            return p_NK, None
        low, high = self.record.rating_range
        return p_NK, (low + (high - low) * rating_logit_N.sigmoid()).numpy()

    def _tensors(self) -> dict[str, torch.Tensor]:
        state = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        return {**state, "lexical.idf_W": torch.from_numpy(self.lexical.idf_W)}


def train_judge(
    products: pl.DataFrame,
    queries: pl.DataFrame,
    relevance: pl.DataFrame,
    config: JudgeConfig | None = None,
    *,
    seed: int,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Judge:
    """Fine-tune a judge on human labels.

    Args:
        products: The catalogue: product_id and text columns. Words are rare or common by it.
        queries: query_id, query.
        relevance: query_id, product_id, label, [source], [rating]; training queries only. Rows of
            another source than "human" are left out. A pair that several people labelled has the
            shares of their labels as its target, and their mean rating.
        config: Settings; the defaults if None.
        seed: Decides first weights and batches.
        out: Folder of the judge. If it holds one of the same data, settings and seed, that one is
            returned and nothing is trained. While training, the state lies beside it, and the same
            call goes on from there to the same bits.
        device: A GPU if there is one, else the processor, if None.
        progress: Called after every step.

    Raises:
        ValueError: If no pair has a human label, all have one class, a pair names an unknown query
            or product, the checkpoint is no BERT, or ``out`` holds something else.
    """
    config = config or JudgeConfig()
    human = human_pairs(relevance)
    weights = find_text_weights(config.weights, require_pretrained=config.require_pretrained)
    shape = RANDOM_TEXT if weights.path is None else read_text_shape(weights.path)
    refuse_unfit(weights, shape, config.max_query_tokens + config.max_product_tokens - 1)
    tokenizer = load_fitting_tokenizer(weights.path, shape)
    texts = pair_texts(products, queries, human, config.text_columns)
    catalogue = product_texts(products, config.text_columns)
    run: dict[str, Any] = {
        "seed": seed,
        "config": config.model_dump(mode="json"),
        "weights": weights.sha256,
        "data": digest_of(
            catalogue, *texts.parts(), human["target"].to_list(), human["rating"].to_list()
        ),
    }
    folder = None if out is None else Path(out)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    finished = _finished(folder, run, device)
    if finished is not None:
        return finished
    lexical = LexicalFeatures.fit(catalogue)
    dense_NC = torch.from_numpy(lexical.compute(*texts.parts()))
    data = labelled_pairs(human, _tokens(tokenizer, texts, config), dense_NC)
    learned, held = _learned_and_held(data, texts)
    network = JudgeNetwork(shape, len(COLUMNS), config.hidden)
    start_network_(network, weights, torch.Generator().manual_seed(seed))
    network.set_scale_(learned.dense_NC)
    network.to(device)
    state = None if folder is None else folder.with_name(f".{folder.name}-training")
    history = fit_(
        network, learned, config, seed=seed, identity=run, state=state, progress=progress
    )
    precision = choose_precision(network.text, network.mean_C.device)
    logit_NK, _ = judge_pairs(network, held.tokens, held.dense_NC, precision)
    record = JudgeRecord(
        config=config,
        shape=shape,
        calibration=calibrate(logit_NK.numpy(), held.target_NK.numpy()),
        rating_range=rating_range(human),
        origin=weights.source,
        run=run,
        history=history,
    )
    judge = Judge(network.eval(), tokenizer, lexical, record)
    if folder is not None and state is not None:
        judge.save_(folder)
        shutil.rmtree(state, ignore_errors=True)
    return judge


def _learned_and_held(data: LabelledPairs, texts: PairTexts) -> tuple[LabelledPairs, LabelledPairs]:
    """The pairs to learn from, and those that calibrate; without the ones that lack a text."""
    readable_N, held_N = torch.from_numpy(texts.readable_N), for_calibration(texts)
    learned_N = readable_N & ~held_N
    if not bool(learned_N.any()):
        raise ValueError(
            f"none of the {len(held_N)} labelled pairs can be learned from: {int(held_N.sum())} "
            f"are of queries that calibrate, {int((~readable_N).sum())} have no text on one side"
        )
    return data.take(learned_N.nonzero()[:, 0]), data.take((readable_N & held_N).nonzero()[:, 0])


def _tokens(tokenizer: Tokenizer, texts: PairTexts, config: JudgeConfig) -> PairTokens:
    return pair_tokens(
        tokenizer,
        *texts.parts(),
        max_query_tokens=config.max_query_tokens,
        max_product_tokens=config.max_product_tokens,
    )


def _finished(folder: Path | None, run: dict[str, Any], device: str | torch.device) -> Judge | None:
    """The judge in a folder if the very same run made it, None if there is nothing."""
    record = None if folder is None else checkpoint.read_record(folder, LAYOUT)
    if folder is not None and record is None and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and holds no judge; name another folder")
    if folder is None or record is None:
        return None
    wanted = json.loads(json.dumps(run))
    differing = sorted(key for key in wanted if record["run"].get(key) != wanted[key])
    if differing:
        raise ValueError(
            f"{folder} holds the judge of another run (different: {', '.join(differing)}); name "
            "another folder, or remove it to train again"
        )
    return Judge.load(folder, device)
