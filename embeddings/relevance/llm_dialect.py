"""Which parts of the chat protocol an endpoint understands.

All endpoints take messages; not all take a JSON schema, log-probabilities, a temperature, or the
newer name of the token limit. The first call finds out: a part that is refused with status 400 is
given up, weakest need first, and what is left is recorded and kept for all later calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from embeddings.relevance.llm_answer import answer_schema
from embeddings.relevance.prompt import Messages
from embeddings.relevance.rubric import Rubric


class Dialect(BaseModel):
    """The form in which one model at one endpoint is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal["json_schema", "json_object", "text"] = "json_schema"
    """How the answer is constrained; whichever it is, it is read with the same strictness."""
    logprobs: bool = True
    """Whether log-probabilities are asked for; without them there are no soft labels."""
    temperature: bool = True
    """Whether temperature 0 is sent; some models take none."""
    limit_name: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"

    def parameters(self, rubric: Rubric, *, model: str, max_tokens: int) -> dict[str, Any]:
        """Return what a request says beside its messages."""
        asked: dict[str, Any] = {"model": model, self.limit_name: max_tokens}
        if self.temperature:
            asked["temperature"] = 0
        if self.logprobs:
            # Five show every value of a facet, and no endpoint allows fewer.
            asked |= {"logprobs": True, "top_logprobs": 5}
        if self.form == "json_schema":
            schema = {"name": "facets", "strict": True, "schema": answer_schema(rubric)}
            asked["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self.form == "json_object":
            asked["response_format"] = {"type": "json_object"}
        return asked

    def without_refused(self, message: str) -> Dialect | None:
        """Return the next form to try after status 400, or None if there is none.

        Args:
            message: What the endpoint said. The part that it names is given up; if it names none,
                the constraint of the answer is loosened first.
        """
        said = message.lower()
        for words, weaker in self._weaker():
            if any(word in said for word in words):
                return weaker
        for _, weaker in self._weaker():
            return weaker
        return None

    def _weaker(self) -> Iterator[tuple[tuple[str, ...], Dialect]]:
        if self.form != "text":
            form = "json_object" if self.form == "json_schema" else "text"
            yield (
                ("response_format", "json_schema", "json_object", "schema", "structured"),
                self.model_copy(update={"form": form}),
            )
        if self.logprobs:
            yield ("logprob",), self.model_copy(update={"logprobs": False})
        if self.limit_name == "max_completion_tokens":
            yield ("max_completion_tokens",), self.model_copy(update={"limit_name": "max_tokens"})
        if self.temperature:
            yield ("temperature",), self.model_copy(update={"temperature": False})


def chat_request(parameters: dict[str, Any], messages: Messages) -> dict[str, Any]:
    """Return the body of a request, which is also what a cached answer is filed under."""
    return {**parameters, "messages": messages}
