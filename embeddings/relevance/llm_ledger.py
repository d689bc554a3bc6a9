"""What calls cost, and the stop before a budget is passed.

A call is begun only if everything spent, the most that all calls under way can cost, and the most
that it can cost itself stay within the budget together. An answer then costs what it says it used;
a call whose answer was lost keeps its most, since the endpoint may bill it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from embeddings.relevance.llm_answer import Usage, usage_of
from embeddings.relevance.llm_cache import AnswerCache
from embeddings.relevance.llm_endpoint import Failed

PER_MESSAGE_TOKENS = 16
"""More than any chat template puts around a message."""
BYTES_PER_TOKEN = 4
"""Of English text, about; for estimates alone."""


class Prices(BaseModel):
    """What a million tokens cost, in any one currency."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_price: float = Field(default=0.0, ge=0)
    """A million tokens of prompt."""
    completion_price: float = Field(default=0.0, ge=0)
    """A million tokens of answer."""

    def cost(self, usage: Usage) -> float:
        """Return what tokens cost."""
        return (
            usage.prompt_tokens * self.prompt_price
            + usage.completion_tokens * self.completion_price
        ) / 1e6


class BudgetError(Exception):
    """The next call could pass the budget."""

    def __init__(self, spent: float, needed: float, budget: float) -> None:
        super().__init__(
            f"{spent:.6f} of the budget of {budget:.6f} may be spent, and the next call can cost "
            f"{needed:.6f}"
        )


class Ledger:
    """Begins and settles calls, and keeps the sum within the budget."""

    def __init__(self, cache: AnswerCache, prices: Prices, budget: float | None) -> None:
        """Start from what the cache's calls have cost.

        Args:
            cache: Where calls are recorded.
            prices: Of tokens.
            budget: The most that all calls in the cache may cost, of all runs; None is no limit.
        """
        self._cache = cache
        self._prices = prices
        self._budget = budget
        self._reserved_by_call: dict[int, float] = {}
        self._settled = asyncio.Event()
        self.committed = cache.cost()
        """Spent, and the most that calls under way can cost."""

    async def begin(self, key: str, request: Mapping[str, Any]) -> int:
        """Set aside the most that a call can cost and return its number.

        Waits for calls under way where they hold what is left of the budget.

        Raises:
            BudgetError: If none is under way and the budget does not allow another.
        """
        worst = most_tokens(request)
        cost = self._prices.cost(worst)
        while self._budget is not None and self.committed + cost > self._budget:
            if not self._reserved_by_call:
                raise BudgetError(self.committed, cost, self._budget)
            self._settled.clear()
            await self._settled.wait()
        call = self._cache.begin(key, worst, cost)
        self._reserved_by_call[call] = cost
        self.committed += cost
        return call

    def answered(self, call: int, body: str) -> None:
        """Store the answer of a call, then count what it cost."""
        usage = usage_of(body)
        cost = self._reserved_by_call[call] if usage is None else self._prices.cost(usage)
        self._cache.record_answer(call, body, usage, cost)
        self._settle_(call, cost)

    def failed(self, call: int, failure: Failed) -> None:
        """Count a call that brought no answer."""
        paid = failure.perhaps_paid
        self._cache.record_failure(call, failure.kind, failure.detail, perhaps_paid=paid)
        self._settle_(call, self._reserved_by_call[call] if paid else 0.0)

    def _settle_(self, call: int, cost: float) -> None:
        self.committed += cost - self._reserved_by_call.pop(call)
        self._settled.set()


def most_tokens(request: Mapping[str, Any]) -> Usage:
    """Return the most tokens that a request can use.

    A token is at least one byte of text, so the bytes of messages and schema bound the prompt;
    the request itself bounds the answer.
    """
    content = sum(len(m["content"].encode()) + PER_MESSAGE_TOKENS for m in request["messages"])
    schema = len(json.dumps(request.get("response_format", {})))
    limit = request.get("max_completion_tokens", request.get("max_tokens"))
    assert limit is not None
    return Usage(prompt_tokens=content + schema, completion_tokens=limit)


def likely_tokens(request: Mapping[str, Any], answer_chars: int) -> Usage:
    """Return about how many tokens a request uses, for English texts.

    Args:
        request: The request's body.
        answer_chars: Length of a usual answer.
    """
    content = sum(len(m["content"].encode()) for m in request["messages"])
    return Usage(
        prompt_tokens=-(-content // BYTES_PER_TOKEN),
        completion_tokens=-(-answer_chars // BYTES_PER_TOKEN),
    )
