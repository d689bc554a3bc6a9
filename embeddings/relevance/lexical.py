"""How query and product text overlap, in numbers: what sub-word tokens hide from a small encoder.

"5/8 in. x 4 ft" and "5/8 in. x 8 ft" are nearly one text to an encoder and two products to a
shopper. The judge reads these columns beside its encoder's states.

Shape letters: N pairs, W buckets of hashed words, C dense columns.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import HashingVectorizer

COLUMNS = (
    "query_words",
    "product_words",
    "shared",
    "shared_by_rarity",
    "similar",
    "least_similar",
    "last_similar",
    "first_similar",
    "last_to_head",
    "bigrams",
    "numbers",
    "numbers_shared",
    "numbers_missing",
    "first_place",
    "inside",
    "word_cosine",
    "character_cosine",
)
"""Names of the C columns, in order."""

BUCKETS = 1 << 16
"""Words share a bucket by chance; at 50,000 distinct words about half do, mostly rare ones."""

CHARACTER_GRAMS = (3, 5)
WORD = re.compile(r"\d+(?:[./-]\d+)*|[^\W\d_]+")
UNITS = {
    "inches": "in",
    "inch": "in",
    '"': "in",
    "feet": "ft",
    "foot": "ft",
    "pounds": "lb",
    "pound": "lb",
    "lbs": "lb",
    "ounces": "oz",
    "ounce": "oz",
    "gallons": "gal",
    "gallon": "gal",
    "millimeters": "mm",
    "centimeters": "cm",
    "volts": "volt",
    "v": "volt",
    "watts": "watt",
    "w": "watt",
    "amps": "amp",
}
ENDS_HEAD = frozenset(("with", "in", "for", "of", "and", "w", "to", "by"))
"""The words before one of these end with what the product is: "cordless drill with case"."""


class LexicalFeatures:
    """Overlap of texts, with the rarity of words learned from a catalogue.

    Args:
        idf_W: Inverse document frequency of each bucket of words.
    """

    def __init__(self, idf_W: NDArray[np.float32]) -> None:
        self.idf_W = idf_W

    @classmethod
    def fit(cls, texts: Sequence[str]) -> LexicalFeatures:
        """Count in how many of a catalogue's texts each word occurs."""
        count_W = np.zeros(BUCKETS)
        for text in texts:
            for bucket in {bucket_of(word) for word in words_of(text)}:
                count_W[bucket] += 1
        return cls(np.log((1 + len(texts)) / (1 + count_W)).astype(np.float32))

    def compute(
        self,
        queries: Sequence[str],
        products: Sequence[str],
        query_N: NDArray[np.int64],
        product_N: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Compare the texts of pairs.

        Args:
            queries: Distinct query texts.
            products: Distinct product texts.
            query_N: Row in ``queries`` of each pair.
            product_N: Row in ``products`` of each pair.

        Returns:
            Shape (N, C), finite, each column of the order of 1.
        """
        query_words = [words_of(text) for text in queries]
        product_words = [words_of(text) for text in products]
        out_NC = np.zeros((len(query_N), len(COLUMNS)), np.float32)
        for row, (q, p) in enumerate(zip(query_N.tolist(), product_N.tolist(), strict=True)):
            out_NC[row, :-2] = self._overlap(query_words[q], product_words[p])
        out_NC[:, -2] = self._word_cosine(query_words, product_words, query_N, product_N)
        out_NC[:, -1] = _character_cosine(queries, products, query_N, product_N)
        return out_NC

    def _overlap(self, query: list[str], product: list[str]) -> list[float]:
        """All columns but the cosines."""
        if not query or not product:
            return [np.log1p(len(query)), np.log1p(len(product)) / 2] + [0.0] * (len(COLUMNS) - 4)
        within = set(product)
        found = [word in within for word in query]
        idf = [float(self.idf_W[bucket_of(word)]) for word in query]
        similar = [
            1.0 if hit else max(word_similarity(word, other) for other in product)
            for word, hit in zip(query, found, strict=True)
        ]
        numbers = [hit for word, hit in zip(query, found, strict=True) if word[0].isdigit()]
        product_pairs = set(pairwise(product))
        query_pairs = list(pairwise(query))
        bigrams = sum(pair in product_pairs for pair in query_pairs) / max(1, len(query_pairs))
        first = next((product.index(w) for w, hit in zip(query, found, strict=True) if hit), None)
        return [
            np.log1p(len(query)),
            np.log1p(len(product)) / 2,
            sum(found) / len(found),
            sum(w for w, hit in zip(idf, found, strict=True) if hit) / max(1e-6, sum(idf)),
            sum(similar) / len(similar),
            min(similar),
            similar[-1],
            similar[0],
            word_similarity(query[-1], head_of(product)),
            bigrams,
            float(len(numbers) > 0),
            sum(numbers) / len(numbers) if numbers else 0.5,
            np.log1p(len(numbers) - sum(numbers)),
            1.0 if first is None else first / len(product),
            float("".join(query) in "".join(product)),
        ]

    def _word_cosine(
        self,
        query_words: list[list[str]],
        product_words: list[list[str]],
        query_N: NDArray[np.int64],
        product_N: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        return _row_cosine(
            self._weights(query_words)[query_N], self._weights(product_words)[product_N]
        )

    def _weights(self, texts: list[list[str]]) -> csr_array:
        """TF-IDF of texts by bucket."""
        bucket_T = np.array([bucket_of(word) for words in texts for word in words], np.int64)
        start_P = np.cumsum([0, *(len(words) for words in texts)])
        counts = csr_array(
            (self.idf_W[bucket_T], bucket_T, start_P), shape=(len(texts), len(self.idf_W))
        )
        counts.sum_duplicates()
        return counts


def words_of(text: str) -> list[str]:
    """Words and numbers in lower case, plurals cut, units under one name.

    "5/8 In. Screws" gives ``["5/8", "in", "screw"]``; "2x4" gives ``["2", "x", "4"]``.
    """
    lowered = text.lower().replace('"', " in ")
    return [_stem(UNITS.get(word, word)) for word in WORD.findall(lowered)]


def head_of(words: Sequence[str]) -> str:
    """The word that most likely says what a product is: the last before "with", "in" or the like.

    Numbers do not count: "Hammer 16 oz" is not an ounce, but "oz" still is taken for a word.
    """
    head = words[0]
    for word in words[1:]:
        if word in ENDS_HEAD and not head[0].isdigit():
            break
        if not word[0].isdigit():
            head = word
    return head


@lru_cache(maxsize=1 << 18)
def word_similarity(a: str, b: str) -> float:
    """Dice coefficient of the letter pairs of two words, their ends marked; 1.0 if equal.

    "shovel" and "shovle" score 0.57; numbers are alike only if equal.
    """
    if a == b:
        return 1.0
    if a[0].isdigit() or b[0].isdigit():
        return 0.0
    pairs_a, pairs_b = _letter_pairs(a), _letter_pairs(b)
    return 2 * len(pairs_a & pairs_b) / (len(pairs_a) + len(pairs_b))


@lru_cache(maxsize=1 << 18)
def bucket_of(word: str) -> int:
    """Bucket of a word, the same in every process."""
    return zlib.crc32(word.encode()) % BUCKETS


@lru_cache(maxsize=1 << 18)
def _letter_pairs(word: str) -> frozenset[str]:
    marked = f"^{word}$"
    return frozenset(marked[i : i + 2] for i in range(len(marked) - 1))


@lru_cache(maxsize=1 << 18)
def _stem(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _character_cosine(
    queries: Sequence[str],
    products: Sequence[str],
    query_N: NDArray[np.int64],
    product_N: NDArray[np.int64],
) -> NDArray[np.float32]:
    vectorizer = HashingVectorizer(
        analyzer="char_wb", ngram_range=CHARACTER_GRAMS, n_features=1 << 18, alternate_sign=False
    )
    query_QV = csr_array(vectorizer.transform(queries))
    product_PV = csr_array(vectorizer.transform(products))
    return _row_cosine(query_QV[query_N], product_PV[product_N])


def _row_cosine(a_NV: csr_array, b_NV: csr_array) -> NDArray[np.float32]:
    """Cosine of each row with the row beside it; 0 where one is empty."""
    product_N = np.asarray((a_NV * b_NV).sum(axis=1), np.float64).ravel()
    square_N = [np.asarray((m * m).sum(axis=1), np.float64).ravel() for m in (a_NV, b_NV)]
    length_N = np.sqrt(square_N[0] * square_N[1])
    return np.where(length_N > 0, product_N / np.maximum(length_N, 1e-12), 0).astype(np.float32)
