"""Semantic ids: product vectors turned into sparse features that similar products share.

A vector is cut into a few codes by residual k-means: the first names the nearest of K centroids,
the next the nearest to what is left, and so on. Each prefix of the codes is one more id with a
table of its own: coarse ones generalise to products never shown, fine ones memorise.

Shape letters: P products, L levels, K centroids a level, D size of the vectors, N impressions.

Source: Rajput et al. 2023 (TIGER), arXiv:2305.05065, section 3.1, with k-means for the learned
quantiser; Singh et al. 2023, arXiv:2306.08121, section 4, prefixes as features of a ranking model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from features.embedding_join import Vectors
from features.examples import Examples

LARGEST_TABLE = 1 << 20
"""Prefixes that the last level may have."""

_LLOYD_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class ResidualCodebook:
    """Centroids of each level, fitted on a catalogue's vectors."""

    centroid_LKD: NDArray[np.float32]

    @classmethod
    def fit(cls, vectors: Vectors, *, levels: int, codes: int, seed: int) -> ResidualCodebook:
        """Fit the centroids of one level after the other.

        Args:
            vectors: Of the catalogue; products without one do not count.
            levels: L, at least 1.
            codes: K, at least 2.
            seed: Of the first centroids.

        Raises:
            ValueError: If the catalogue has fewer distinct vectors than ``codes``, or the last
                level would have more than ``LARGEST_TABLE`` prefixes.
        """
        # Only fitting needs scikit-learn; a saved model scores without it.
        from sklearn.cluster import KMeans

        if codes**levels > LARGEST_TABLE:
            raise ValueError(
                f"{levels} levels of {codes} codes make {codes**levels:,} prefixes, at most "
                f"{LARGEST_TABLE:,} are allowed; take fewer levels or codes"
            )
        left_PD = vectors.product_PD[vectors.product_present_P].astype(np.float64)
        distinct = len(np.unique(left_PD, axis=0))
        if distinct < codes:
            raise ValueError(
                f"the catalogue has {distinct} distinct product vectors, fewer than the {codes} "
                "codes of a level; take fewer codes"
            )
        centroids = []
        for level in range(levels):
            # Products that are equal in all but the code before may leave fewer residuals.
            count = min(codes, len(np.unique(left_PD, axis=0)))
            fitted = KMeans(count, n_init="auto", max_iter=_LLOYD_STEPS, random_state=seed + level)
            centroid_KD = fitted.fit(left_PD).cluster_centers_.astype(np.float32)
            # A centroid far away from everything takes the place of one that is not there.
            absent = np.full((codes - count, left_PD.shape[1]), 1e6, np.float32)
            centroids.append(np.concatenate([centroid_KD, absent]))
            left_PD = left_PD - centroids[-1][_nearest(left_PD, centroids[-1])]
        return cls(centroid_LKD=np.stack(centroids))

    @property
    def names(self) -> tuple[str, ...]:
        """What the features are called."""
        return tuple(f"semantic_id.{level}" for level in range(len(self.centroid_LKD)))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each feature's table: its prefixes, and 0 for products without a vector."""
        levels, codes, _ = self.centroid_LKD.shape
        return tuple(codes ** (level + 1) + 1 for level in range(levels))

    def codes(self, vector_PD: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return the codes of some vectors, each 0 to K - 1, shape (P, L)."""
        left_PD = np.asarray(vector_PD, np.float64)
        levels = []
        for centroid_KD in self.centroid_LKD:
            levels.append(_nearest(left_PD, centroid_KD))
            left_PD = left_PD - centroid_KD[levels[-1]]
        return np.stack(levels, axis=1)

    def ids(self, vectors: Vectors) -> NDArray[np.int32]:
        """Return each product's prefixes as table rows, and zeros for row -1, shape (P + 1, L)."""
        code_PL = self.codes(vectors.product_PD)
        prefix_PL = np.zeros_like(code_PL)
        number_P = np.zeros(len(code_PL), np.int64)
        for level in range(code_PL.shape[1]):
            number_P = number_P * self.centroid_LKD.shape[1] + code_PL[:, level]
            prefix_PL[:, level] = number_P + 1
        prefix_PL[~vectors.product_present_P] = 0
        unknown = np.zeros((1, code_PL.shape[1]), np.int64)
        return np.concatenate([prefix_PL, unknown]).astype(np.int32)


def with_semantic_ids(examples: Examples, vectors: Vectors, codebook: ResidualCodebook) -> Examples:
    """Return the examples with the product's semantic ids after their sparse features."""
    id_NL = codebook.ids(vectors)[examples.product_N]
    return replace(
        examples,
        sparse_names=(*examples.sparse_names, *codebook.names),
        sparse_NF=np.concatenate([examples.sparse_NF, id_NL], axis=1),
        vocabulary_sizes=(*examples.vocabulary_sizes, *codebook.sizes),
    )


def _nearest(left_PD: NDArray[np.float64], centroid_KD: NDArray[np.float32]) -> NDArray[np.int64]:
    """The nearest centroid of each row, in float64: an exported graph finds the same."""
    centre_KD = centroid_KD.astype(np.float64)
    return np.argmin((centre_KD**2).sum(1) - 2 * left_PD @ centre_KD.T, axis=1)
