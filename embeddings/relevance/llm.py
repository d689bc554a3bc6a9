"""The annotator: asks a language model about pairs, and labels or queues each of them.

For each distinct question: texts that give orders go to people unasked; answers in the cache are
read; only what is left is sent. Every answer is stored before it is read. An answer becomes a label
or a reason for the queue; whatever a run did not come to is left open, and the same run repeated
asks for no more than that.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embeddings.relevance.llm_answer import answer_schema
from embeddings.relevance.llm_cache import AnswerCache
from embeddings.relevance.llm_config import AnnotatorConfig
from embeddings.relevance.llm_dialect import Dialect
from embeddings.relevance.llm_ledger import likely_tokens, most_tokens
from embeddings.relevance.llm_pairs import Question
from embeddings.relevance.llm_run import AnnotatorRun, Report
from embeddings.relevance.llm_verdict import Verdict
from embeddings.relevance.rubric import SHOP_RUBRIC, Rubric


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What came of a run."""

    verdict_by_number: Mapping[str, Verdict]
    """By the question's number; questions that the run did not come to are missing."""
    dialect: Dialect
    """In which form the endpoint was asked."""
    stopped: str | None
    """Why the run ended early, and how to go on; None if it did not."""
    calls: int
    """Calls that this run sent, failed ones included."""
    cost: float
    """The most that all runs on the cache have cost together."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run would send and cost, found without any call."""

    questions: int
    """Distinct questions."""
    suspicious: int
    """Of them, those that go to people unasked."""
    settled: int
    """Of them, those that need no call: answered before, or without a text."""
    calls: int
    """Calls if each is answered in form at once."""
    likely_prompt_tokens: int
    likely_completion_tokens: int
    likely_cost: float
    """For English texts, about."""
    most_prompt_tokens: int
    most_completion_tokens: int
    most_cost: float
    """If every answer is of full length and every question is repeated as often as malformed
    answers allow. Answers lost on their way come on top; a budget bounds all."""


def annotate(
    questions: Sequence[Question],
    config: AnnotatorConfig,
    cache: AnswerCache,
    *,
    rubric: Rubric = SHOP_RUBRIC,
    seed: int = 0,
    report: Report | None = None,
) -> Annotation:
    """Label or queue every question, paying for each answer once.

    Args:
        questions: Distinct questions (``llm_pairs.questions_of``).
        config: Settings.
        cache: Where answers are kept; a repeated run goes on from it.
        rubric: What is asked.
        seed: Draws the jitter of waits.
        report: Told of progress.

    Raises:
        ValueError: If the extra ``llm`` is not installed or the key is not set.
    """
    run = AnnotatorRun(config, cache, rubric, seed=seed)
    asyncio.run(run.settle(questions, report))
    return Annotation(
        verdict_by_number=run.verdicts,
        dialect=run.dialect,
        stopped=run.stopped,
        calls=run.calls,
        cost=run.cost,
    )


def estimate(
    questions: Sequence[Question],
    config: AnnotatorConfig,
    cache: AnswerCache,
    *,
    rubric: Rubric = SHOP_RUBRIC,
) -> Estimate:
    """Say how many calls a run would send and what they would cost at most; nothing is sent."""
    run = AnnotatorRun(config, cache, rubric)
    requests = [run.request(question) for question in questions if run.settled(question) is None]
    suspicious = sum(question.order is not None for question in questions)
    answer = dict.fromkeys(answer_schema(rubric)["properties"], "0" * 16)
    most = [most_tokens(request) for request in requests]
    likely = [likely_tokens(request, len(json.dumps(answer))) for request in requests]
    repeats = 1 + config.malformed_retries
    return Estimate(
        questions=len(questions),
        suspicious=suspicious,
        settled=len(questions) - suspicious - len(requests),
        calls=len(requests),
        likely_prompt_tokens=sum(usage.prompt_tokens for usage in likely),
        likely_completion_tokens=sum(usage.completion_tokens for usage in likely),
        likely_cost=sum(map(config.prices.cost, likely)),
        most_prompt_tokens=repeats * sum(usage.prompt_tokens for usage in most),
        most_completion_tokens=repeats * sum(usage.completion_tokens for usage in most),
        most_cost=repeats * sum(map(config.prices.cost, most)),
    )
