"""What an endpoint's answer says: the facets, or why it cannot be used.

Nothing is searched for in the text. The content must be one JSON object with exactly the keys of
the schema, the pair's own number and one allowed value a facet; anything else is unusable. There is
no default, so an answer that is not understood never becomes a label, and no digit is ever read as
one (umbrela does both).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from embeddings.relevance.llm_probabilities import TokenAlternatives, facet_probabilities
from embeddings.relevance.prompt import PAIR_KEY
from embeddings.relevance.rubric import Rubric


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Facets of one pair as the model gave them."""

    facets: Mapping[str, str]
    """One allowed value a facet."""
    p_by_facet: Mapping[str, Mapping[str, float]] | None
    """Probability of each value of each facet; None where the endpoint gave none."""


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """An answer that says nothing that can be relied on."""

    reason: Literal["malformed", "refused"]
    detail: str


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens that an answer was billed for."""

    prompt_tokens: int
    completion_tokens: int


def answer_schema(rubric: Rubric) -> dict[str, Any]:
    """Return the JSON schema of an answer; it has no place for a label."""
    properties: dict[str, Any] = {PAIR_KEY: {"type": "string"}}
    for facet in rubric.facets:
        properties[facet.name] = {"type": "string", "enum": list(facet.answers)}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def read_answer(body: str, rubric: Rubric, number: str) -> Answer | Unusable:
    """Read the body of a chat completion.

    Args:
        body: The HTTP body, whole.
        rubric: What was asked.
        number: The pair's number (``prompt.pair_number``), which the answer must echo.
    """
    try:
        choice = json.loads(body)["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Unusable(reason="malformed", detail="the body is no chat completion")
    if refusal or finish == "content_filter":
        return Unusable(reason="refused", detail=str(refusal or "content filter")[:200])
    if finish == "length":
        return Unusable(reason="malformed", detail="cut off at max_tokens")
    if not isinstance(content, str):
        return Unusable(reason="malformed", detail="the message has no text")
    facets = _read_content(content, rubric, number)
    if isinstance(facets, Unusable):
        return facets
    tokens = _tokens(choice.get("logprobs"))
    p_by_facet = None if tokens is None else facet_probabilities(rubric, facets, content, tokens)
    return Answer(facets=facets, p_by_facet=p_by_facet)


def usage_of(body: str) -> Usage | None:
    """Return the tokens that a body says it was billed for; None if it does not say."""
    try:
        usage = json.loads(body)["usage"]
        counts = (usage["prompt_tokens"], usage["completion_tokens"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not all(type(count) is int and count >= 0 for count in counts):
        return None
    return Usage(prompt_tokens=counts[0], completion_tokens=counts[1])


def model_of(body: str) -> str | None:
    """Return the model that a body says it comes from; None if it does not say."""
    try:
        model = json.loads(body)["model"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return model if isinstance(model, str) else None


_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)


def _read_content(content: str, rubric: Rubric, number: str) -> dict[str, str] | Unusable:
    # Models without constrained output like to put the object in a Markdown fence. It may stand
    # there alone; text around it makes the answer malformed.
    fenced = _FENCED.fullmatch(content)
    try:
        given = json.loads(fenced[1] if fenced else content, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        return Unusable(reason="malformed", detail=f"no JSON object: {error}"[:200])
    if not isinstance(given, dict):
        return Unusable(reason="malformed", detail=f"{type(given).__name__} instead of an object")
    wanted = [PAIR_KEY, *(facet.name for facet in rubric.facets)]
    if set(given) != set(wanted):
        return Unusable(reason="malformed", detail=f"keys are {', '.join(given)}"[:200])
    if given[PAIR_KEY] != number:
        return Unusable(reason="malformed", detail="the answer is for another pair")
    facets: dict[str, str] = {}
    for facet in rubric.facets:
        value = given[facet.name]
        if value not in facet.answers:
            return Unusable(reason="malformed", detail=f"{facet.name} is {value!r}"[:200])
        facets[facet.name] = value
    return facets


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    given = dict(pairs)
    if len(given) < len(pairs):
        raise ValueError("a key is given twice")
    return given


def _tokens(logprobs: Any) -> list[TokenAlternatives] | None:
    """The tokens of the content with their alternatives; None if the endpoint gave none."""
    try:
        tokens = []
        for entry in logprobs["content"]:
            p_by_text = {top["token"]: _p(top["logprob"]) for top in entry["top_logprobs"]}
            p_by_text.setdefault(entry["token"], _p(entry["logprob"]))
            tokens.append(TokenAlternatives(text=entry["token"], p_by_text=p_by_text))
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    return tokens or None


def _p(logprob: Any) -> float:
    p = math.exp(logprob)
    # A little above 1 is rounding; more is no log-probability.
    if not p <= 1.001:
        raise ValueError(f"log-probability {logprob}")
    return min(p, 1.0)
