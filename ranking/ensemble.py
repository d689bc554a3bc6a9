"""Several fitted models that score as one.

Shape letters: N impressions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from features.embedding_join import Vectors
from features.examples import Examples
from ranking.bundle import Average
from ranking.contract import ClickModel, InputSignature
from ranking.predictor import average


class Ensemble:
    """The mean of fitted models, of their logits or of their probabilities.

    The mean of logits is the geometric mean of the odds: one member that is sure counts more. The
    mean of probabilities keeps the members' mean click rate, and with it their calibration.

    Args:
        members: Two or more fitted models over the same features. Those that use vectors must use
            the same ones; others may use none.
        of: What is averaged.

    Raises:
        ValueError: If there are fewer than two members, or their inputs differ.
    """

    name = "ensemble"

    def __init__(self, members: list[ClickModel], *, of: Average = "logit") -> None:
        if len(members) < 2:
            raise ValueError(f"an ensemble of {len(members)} models; it needs two or more")
        self.members = list(members)
        self.of: Average = of
        signatures = [signature_of(member) for member in members]
        self.signature_ = next(
            (s for s in signatures if s.vectors_fingerprint is not None), signatures[0]
        )
        for member, signature in zip(members, signatures, strict=True):
            if signature.vectors_fingerprint is None:
                signature = replace(
                    signature,
                    vectors_fingerprint=self.signature_.vectors_fingerprint,
                    vectors_dim=self.signature_.vectors_dim,
                )
            if signature != self.signature_:
                raise ValueError(
                    f"member {member.name!r} was fitted with other features or vectors than "
                    f"{members[0].name!r}; an ensemble is fed once for all its members"
                )

    @property
    def uses_vectors(self) -> bool:
        """Whether any member does."""
        return any(member.uses_vectors for member in self.members)

    def predict_proba(self, examples: Examples, vectors: Vectors | None) -> NDArray[np.float64]:
        """Return P(click) of every row, shape (N,).

        Raises:
            ValueError: As each member's ``predict_proba``.
        """
        p_MN = np.stack([member.predict_proba(examples, vectors) for member in self.members])
        return average(p_MN, self.of)


def signature_of(model: ClickModel | Ensemble) -> InputSignature:
    """Return the features and vectors that a model was fitted with.

    Raises:
        ValueError: If it was not fitted.
    """
    signature = getattr(model, "signature_", None)
    if not isinstance(signature, InputSignature):
        raise ValueError(f"the {model.name!r} model has no signature_; was it fitted?")
    return signature
