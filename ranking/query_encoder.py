"""Query texts to vectors, where scoring has onnxruntime and no torch.

A bundle's ``query_encoder/`` holds the encoder as ``model.onnx`` (token ids to unit vectors),
``tokenizer.json``, ``settings.json`` and, where the dataset had texts, ``queries.parquet``: the ids
of the texts that training knew. ``ranking.query_export`` writes it.

Shape letters: Q texts, L tokens of a text, D size of a vector.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

QUERY_ENCODER = "query_encoder"
"""Its folder in a bundle."""
ENCODER_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "settings.json"
QUERIES_FILE = "queries.parquet"

INPUT_NAME = "ids"
OUTPUT_NAME = "vector"

Precision = Literal["fp32", "int8"]
"""Of an exported encoder's weights."""

# Texts of one length share a batch; more of them gain nothing on one core.
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class QueryEncoderSettings:
    """What ``settings.json`` says of an exported query encoder.

    Raises:
        ValueError: If a field has a value that is not allowed.
    """

    encoder_fingerprint: str
    """Names the model; it must be the one that made the bundle's query vectors."""
    dim: int
    """Size D of the vectors, from 1."""
    max_tokens: int
    """Longer texts keep their first tokens and the closing one, as in training; from 2."""
    precision: Precision
    """Of the weights. int8 is written only where its gate passed."""
    checked_texts: int
    """Texts that the figures below were taken over, from 1."""
    max_difference: float
    """Largest distance of a coordinate to the torch encoder in float32."""
    min_cosine: float
    """Lowest cosine to the torch encoder's vector of the same text."""
    top10_overlap: float | None
    """Mean share of a text's ten closest products that both name; None without products."""

    def __post_init__(self) -> None:
        for name, least in (("dim", 1), ("max_tokens", 2), ("checked_texts", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} is {value!r}; must be a whole number from {least}")
        for name in ("max_difference", "min_cosine", "top10_overlap"):
            value = getattr(self, name)
            absent = value is None and name == "top10_overlap"
            if not absent and type(value) not in (int, float):
                raise ValueError(f"{name} is {value!r}; must be a number")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision is {self.precision!r}; must be one of fp32, int8")
        if not isinstance(self.encoder_fingerprint, str):
            raise ValueError(f"encoder_fingerprint is {self.encoder_fingerprint!r}; must be text")

    def to_json(self) -> str:
        """Return the text of ``settings.json``."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> QueryEncoderSettings:
        """Return the settings that ``to_json`` wrote.

        Raises:
            ValueError: If the text is not JSON, or a field is missing, unknown or has a value that
                is not allowed.
        """
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"the fields are not those of a query encoder: {error}") from error


class OnnxQueryEncoder:
    """A loaded query encoder with a cache of the texts asked last. Safe to share among threads.

    Args:
        folder: What ``ranking.query_export`` wrote, verified by whoever opened the bundle.
        threads: Of onnxruntime.
        cache_size: Texts whose vectors are kept; 10,000 of 384 dimensions take 15 MB.

    Raises:
        ValueError: If a file is missing or says something that cannot be.
    """

    def __init__(self, folder: Path, *, threads: int = 1, cache_size: int = 10_000) -> None:
        # Imported here, because a bundle of trees without an encoder must load without it.
        import onnxruntime

        if cache_size < 1:
            raise ValueError(f"cache_size is {cache_size}; must be at least 1")
        missing = [n for n in (ENCODER_FILE, TOKENIZER_FILE, SETTINGS_FILE)
                   if not (folder / n).is_file()]  # fmt: skip
        if missing:
            raise ValueError(f"{folder} is no query encoder: {', '.join(missing)} missing")
        text = (folder / SETTINGS_FILE).read_text(encoding="utf-8")
        try:
            self.settings = QueryEncoderSettings.from_json(text)
        except ValueError as error:
            raise ValueError(f"{folder / SETTINGS_FILE}: {error}") from error
        # Read now and parsed with the first text, when the folder may be gone or another's.
        self._tokenizer_json = (folder / TOKENIZER_FILE).read_text(encoding="utf-8")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            folder / ENCODER_FILE, options, providers=["CPUExecutionProvider"]
        )
        self._id_of_text = _known_texts(folder / QUERIES_FILE)
        self._cache: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._cache_size = cache_size
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path, *, threads: int = 1, cache_size: int = 10_000) -> Self:
        """Read an encoder; see the class."""
        return cls(Path(folder), threads=threads, cache_size=cache_size)

    def load_tokenizer(self) -> None:
        """Parse the tokenizer now, so that a server's first new text does not wait for it.

        Raises:
            ValueError: If the package ``tokenizers`` is not installed.
        """
        _ = self._tokenizer

    def known_id(self, text: str) -> str | None:
        """Return the query id that training knew this very text by, or None."""
        return self._id_of_text.get(text)

    def cached(self, text: str) -> bool:
        """Whether the vector of this text is in the cache now."""
        with self._lock:
            return text in self._cache

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors of query texts, shape (Q, D).

        In int8 every text is encoded alone, because its scales depend on what shares the batch:
        the same text always gives the same bits. In fp32 it does to 1e-6.

        Raises:
            ValueError: If a text has no token, or the package ``tokenizers`` is not installed.
        """
        found: dict[str, NDArray[np.float32]] = {}
        with self._lock:
            for text in texts:
                if text in self._cache:
                    self._cache.move_to_end(text)
                    found[text] = self._cache[text]
        wanted = [text for text in dict.fromkeys(texts) if text not in found]
        for batch in self._batches(wanted):
            ids_QL = np.array([ids for _, ids in batch], np.int64)
            vector_QD = self._session.run([OUTPUT_NAME], {INPUT_NAME: ids_QL})[0]
            for (text, _), vector_D in zip(batch, np.asarray(vector_QD), strict=True):
                found[text] = vector_D
        with self._lock:
            for text in wanted:
                self._cache[text] = found[text]
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        if not found:
            return np.zeros((0, self.settings.dim), np.float32)
        return np.stack([found[text] for text in texts])

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        # Imported here, because texts that training knew are scored without it.
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError as error:
            raise ValueError(
                "the package 'tokenizers' is not installed; query texts that training did not know "
                "need it. Install it, or leave the column 'query' out"
            ) from error
        tokenizer = Tokenizer.from_str(self._tokenizer_json)
        tokenizer.enable_truncation(self.settings.max_tokens)
        return tokenizer

    def _batches(self, texts: list[str]) -> list[list[tuple[str, list[int]]]]:
        """Texts with their token ids, those of one length together, so that none is padded."""
        by_length: dict[int, list[tuple[str, list[int]]]] = {}
        for text, encoding in zip(texts, self._tokenizer.encode_batch(texts), strict=True):
            if not encoding.ids:
                raise ValueError(
                    f"the query text {text[:40]!r} has no token that its encoder knows"
                )
            by_length.setdefault(len(encoding.ids), []).append((text, encoding.ids))
        size = 1 if self.settings.precision == "int8" else _BATCH
        return [
            same[start : start + size]
            for same in by_length.values()
            for start in range(0, len(same), size)
        ]


def _known_texts(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    queries = pl.read_parquet(path, columns=["query_id", "query"])
    # Backwards, so that of two ids with one text the first stays.
    return dict(zip(queries["query"].reverse(), queries["query_id"].reverse(), strict=True))
