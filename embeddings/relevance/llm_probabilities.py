"""Soft labels from the probabilities of tokens.

The rule, in two steps:

1. Each value of a facet begins with another letter, so the first token of the value given decides
   which value it is. The probability of a value is the sum over that token's alternatives that
   begin it, divided by the sum over all values of the facet. Where the alternatives shown hold less
   than half of the probability, or tokens and text disagree, there is none.
2. Facets are taken as independent given the pair: p(label) is the sum over all combinations of
   values that fold to it of the product of their probabilities. Combinations that leave the label
   open ("cannot tell") are set aside as ``p_open``; p0, p1, p2 are the shares of the rest.

Shape letters: F facets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embeddings.relevance.rubric import LABELS, Rubric

LEAST_SEEN = 0.5
"""The alternatives of a token must hold this much probability to speak for the facet."""


@dataclass(frozen=True, kw_only=True)
class TokenAlternatives:
    """One token of an answer, and the probability of each token shown for its place."""

    text: str
    p_by_text: Mapping[str, float]
    """Itself included."""


@dataclass(frozen=True, kw_only=True)
class SoftLabel:
    """How probable each label is."""

    p_by_label: tuple[float, float, float]
    """Of labels 0, 1, 2; they sum to 1."""
    p_open: float
    """Probability of answers that leave the label open."""

    @property
    def margin(self) -> float:
        """How far the most probable label is ahead of the second; 1 is certain, 0 a tie."""
        *_, second, first = sorted(self.p_by_label)
        return first - second


def facet_probabilities(
    rubric: Rubric, facets: Mapping[str, str], content: str, tokens: Sequence[TokenAlternatives]
) -> dict[str, dict[str, float]] | None:
    """Return the probability of each value of each facet, or None where tokens do not give it.

    Args:
        rubric: What was asked.
        facets: What was answered.
        content: The answer's text: one JSON object with those facets, perhaps in a fence.
        tokens: The tokens of the text, in order.
    """
    if "".join(token.text for token in tokens) != content:
        return None
    ends = list(itertools.accumulate(len(token.text) for token in tokens))
    p_by_facet: dict[str, dict[str, float]] = {}
    for facet in rubric.facets:
        start = _value_start(content, facet.name, facets[facet.name])
        if start is None:
            return None
        place = next(i for i, end in enumerate(ends) if end > start)
        lead = content[ends[place] - len(tokens[place].text) : start]
        mass = dict.fromkeys(facet.answers, 0.0)
        for text, p in tokens[place].p_by_text.items():
            for value in facet.answers:
                if _begins(text, lead, value):
                    mass[value] += p
        total = sum(mass.values())
        if total < LEAST_SEEN:
            return None
        p_by_facet[facet.name] = {value: p / total for value, p in mass.items()}
    return p_by_facet


def soft_label(rubric: Rubric, p_by_facet: Mapping[str, Mapping[str, float]]) -> SoftLabel | None:
    """Fold probabilities of values to probabilities of labels; None if all leave it open.

    Args:
        rubric: What was asked.
        p_by_facet: For each facet a probability for each of its answers, summing to 1.
    """
    names = [facet.name for facet in rubric.facets]
    mass: dict[int | None, float] = dict.fromkeys((*LABELS, None), 0.0)
    for values in itertools.product(*(facet.answers for facet in rubric.facets)):
        p = math.prod(p_by_facet[name][value] for name, value in zip(names, values, strict=True))
        if p > 0:
            mass[rubric.fold(dict(zip(names, values, strict=True)))] += p
    decided = sum(mass[label] for label in LABELS)
    if decided <= 0:
        return None
    p0, p1, p2 = (mass[label] / decided for label in LABELS)
    return SoftLabel(p_by_label=(p0, p1, p2), p_open=mass[None])


def _value_start(content: str, name: str, value: str) -> int | None:
    """Where a facet's value begins in the text; None if it is not written plainly."""
    key = content.find(f'"{name}"')
    if key < 0:
        return None
    start = content.find('"', key + len(name) + 2) + 1
    return start if start and content.startswith(f'{value}"', start) else None


def _begins(token: str, lead: str, value: str) -> bool:
    """Whether a token that stands where ``lead`` and a value begin makes it that value."""
    if not token.startswith(lead):
        return False
    rest = token[len(lead) :]
    return bool(rest) and (value.startswith(rest) or rest.startswith(f'{value}"') or rest == value)
