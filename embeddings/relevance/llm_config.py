"""How a language model is asked about pairs, and how its answers are taken."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from embeddings.relevance.llm_endpoint import Endpoint
from embeddings.relevance.llm_ledger import Prices
from embeddings.relevance.llm_verdict import Caution


class AnnotatorConfig(BaseModel):
    """Settings of the annotator; refuses a budget that nothing can be held against."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: Endpoint
    """Where the model is and how hard it may be pressed."""
    prices: Prices = Prices()
    """What tokens cost."""
    budget: float | None = Field(default=None, gt=0)
    """The most that all runs on one cache may cost together, in the currency of the prices."""
    caution: Caution = Caution()
    """How sure an answer must be to become a label."""
    max_tokens: int = Field(default=300, ge=16)
    """Longest answer; a model that reasons first needs more."""
    malformed_retries: int = Field(default=1, ge=0)
    """How often a question is asked again, and paid again, after an answer out of form."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.budget is not None and self.prices == Prices():
            raise ValueError(
                f"budget is {self.budget} but both prices are 0, so that nothing would ever count "
                "against it; give prompt_price and completion_price for a million tokens"
            )
        return self
