"""From an answer to a label, or to the queue of pairs that people must look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from embeddings.relevance.llm_answer import Answer
from embeddings.relevance.llm_probabilities import SoftLabel, soft_label
from embeddings.relevance.rubric import CANNOT_TELL, Rubric

Reason = Literal[
    "suspicious", "cannot tell", "low margin", "malformed", "refused", "rejected", "no answer"
]
"""Why a pair is for people.

suspicious: its text gives orders; cannot tell: the facets leave the label open; low margin: the
probabilities do not clearly speak for the label; malformed, refused: answers that cannot be used;
rejected: the endpoint refuses the request itself; no answer: it failed or was busy each time.
"""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A pair with a label."""

    label: int
    soft: SoftLabel | None
    """None where the endpoint gives no log-probabilities."""
    facets: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A pair for people."""

    reason: Reason
    detail: str


Verdict = Labelled | Queued


class Caution(BaseModel):
    """How sure an answer must be to become a label, where probabilities are known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_margin: float = Field(default=0.2, ge=0, le=1)
    """The label's probability must lead the next one's by this much."""
    max_open: float = Field(default=0.3, ge=0, le=1)
    """Answers that leave the label open may have this much probability."""


def verdict_of(answer: Answer, rubric: Rubric, caution: Caution) -> Verdict:
    """Label a pair if its answer is clear, and queue it otherwise."""
    label = rubric.fold(answer.facets)
    if label is None:
        unclear = [name for name, value in answer.facets.items() if value == CANNOT_TELL]
        return Queued(reason="cannot tell", detail=", ".join(unclear))
    if answer.p_by_facet is None:
        return Labelled(label=label, soft=None, facets=answer.facets)
    soft = soft_label(rubric, answer.p_by_facet)
    if soft is None or soft.p_open > caution.max_open:
        p_open = 1.0 if soft is None else soft.p_open
        return Queued(reason="cannot tell", detail=f"p(open) = {p_open:.2f}")
    p = soft.p_by_label
    if soft.margin < caution.min_margin or p[label] < max(p):
        listed = ", ".join(f"p{k} = {p[k]:.2f}" for k in range(len(p)))
        return Queued(reason="low margin", detail=f"label {label}, {listed}")
    return Labelled(label=label, soft=soft, facets=answer.facets)
