"""One run of the annotator: a few callers at once, until all questions are settled or it stops.

A run that must stop (budget, endpoint down, key refused) begins no further call, and takes in the
answers that are under way: they are paid for.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from embeddings.relevance.llm_answer import Answer, read_answer
from embeddings.relevance.llm_backoff import Pause, wait_s
from embeddings.relevance.llm_cache import AnswerCache, cache_key
from embeddings.relevance.llm_config import AnnotatorConfig
from embeddings.relevance.llm_dialect import Dialect, chat_request
from embeddings.relevance.llm_endpoint import Answered, ChatClient, Failed
from embeddings.relevance.llm_ledger import BudgetError, Ledger
from embeddings.relevance.llm_pairs import Question
from embeddings.relevance.llm_verdict import Queued, Verdict, verdict_of
from embeddings.relevance.prompt import messages
from embeddings.relevance.rubric import Rubric

Report = Callable[[int, int, str], None]
"""Called with questions settled, questions in all, and a line on rate, cost and time left."""

CONTENT_WORDS = ("content_filter", "content policy", "content management", "context length",
                 "maximum context")  # fmt: skip
"""In a refusal: it is about these texts, and not about the form of the request."""


class _StopError(Exception):
    """The run cannot go on; the message says why, and how to."""


class AnnotatorRun:
    """Settles questions from the cache and from calls."""

    def __init__(
        self, config: AnnotatorConfig, cache: AnswerCache, rubric: Rubric, *, seed: int = 0
    ) -> None:
        """Begin where the cache stands; nothing is sent."""
        self.verdicts: dict[str, Verdict] = {}
        """By the question's number; what the run has not come to is missing."""
        self.dialect = cache.dialect(config.endpoint.model) or Dialect()
        self.stopped: str | None = None
        """Why the run ended early, and how to go on; None if it did not."""
        self.calls = 0
        """Calls sent, failed ones included."""
        self._config, self._endpoint = config, config.endpoint
        self._cache, self._rubric = cache, rubric
        self._ledger = Ledger(cache, config.prices, config.budget)
        self._pause = Pause()
        self._rng = random.Random(seed)
        # Questions given up since the last answer: many in a row mean an endpoint that is down.
        self._given_up = 0
        self._answered = 0
        self._under_way: set[asyncio.Future[None]] = set()

    def request(self, question: Question) -> dict[str, Any]:
        """Return the request that asks a question."""
        parameters = self.dialect.parameters(
            self._rubric, model=self._endpoint.model, max_tokens=self._config.max_tokens
        )
        return chat_request(parameters, messages(self._rubric, question.query, question.product))

    def key(self, question: Question) -> str:
        """Return what the answers to a question are filed under."""
        return cache_key(self._rubric.version, self.request(question))

    def settled(self, question: Question) -> Verdict | None:
        """Return the verdict on a question that needs no call; None if one is needed."""
        if question.order is not None:
            return Queued(reason="suspicious", detail=question.order)
        if not question.query or not question.product:
            empty = "product" if question.query else "query"
            return Queued(reason="cannot tell", detail=f"the {empty} has no text")
        malformed = []
        for body in self._cache.answers(self.key(question)):
            answer = read_answer(body, self._rubric, question.number)
            if isinstance(answer, Answer):
                return verdict_of(answer, self._rubric, self._config.caution)
            if answer.reason == "refused":
                return Queued(reason="refused", detail=answer.detail)
            malformed.append(answer.detail)
        if len(malformed) > self._config.malformed_retries:
            return Queued(reason="malformed", detail="; ".join(malformed))
        return None

    async def settle(self, questions: Sequence[Question], report: Report | None) -> None:
        """Settle what needs no call, find the dialect by the first call, then call together."""
        left: list[Question] = []
        for question in questions:
            if verdict := self.settled(question):
                self.verdicts[question.number] = verdict
            else:
                left.append(question)
        if not left:
            return
        tell = _teller(self, len(questions), report)
        async with ChatClient(self._endpoint) as client:
            queue = iter(left)
            await self._until_stopped(self._find_dialect(client, queue, tell))
            async with asyncio.TaskGroup() as callers:
                for _ in range(min(self._endpoint.concurrency, len(left))):
                    work = self._settle_from(client, queue, tell)
                    callers.create_task(self._until_stopped(work))

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except _StopError as stop:
            self.stopped = self.stopped or str(stop)

    async def _settle_from(
        self, client: ChatClient, queue: Iterator[Question], tell: Callable[[], None]
    ) -> None:
        # A caller that stops leaves the queue to the others, who stop before their next call.
        for question in queue:
            self._keep(question, await self._ask(client, question))
            tell()

    async def _find_dialect(
        self, client: ChatClient, queue: Iterator[Question], tell: Callable[[], None]
    ) -> None:
        """Settle questions one by one, in ever weaker dialects, until one is answered."""
        for question in queue:
            verdict = await self._ask(client, question)
            while isinstance(verdict, Queued) and verdict.reason == "rejected":
                if any(words in verdict.detail.lower() for words in CONTENT_WORDS):
                    break
                weaker = self.dialect.without_refused(verdict.detail)
                if weaker is None:
                    raise _StopError(
                        f"{self._endpoint.base_url} refuses every form of request; it last said: "
                        f"{verdict.detail}"
                    )
                self.dialect = weaker
                verdict = self.settled(question) or await self._ask(client, question)
            self._keep(question, verdict)
            tell()
            if self._cache.answers(self.key(question)):
                self._cache.record_dialect(self._endpoint.model, self.dialect)
                return

    def _keep(self, question: Question, verdict: Verdict) -> None:
        self.verdicts[question.number] = verdict
        if not (isinstance(verdict, Queued) and verdict.reason == "no answer"):
            self._given_up = 0
            return
        self._given_up += 1
        if self._given_up >= max(3, self._endpoint.concurrency):
            raise _StopError(
                f"{self._endpoint.base_url} gave no answer to {self._given_up} questions in a row, "
                f"each tried {self._endpoint.attempts} times; the last failure was: "
                f"{verdict.detail}. Repeat the command when it is up again"
            )

    async def _ask(self, client: ChatClient, question: Question) -> Verdict:
        """Call until there is a verdict: an answer, or a reason to call no more."""
        request, key = self.request(question), self.key(question)
        failures, answered = 0, self._answered
        while True:
            outcome = await self._call(client, key, request)
            if isinstance(outcome, Answered):
                self._answered += 1
                if verdict := self.settled(question):
                    return verdict
                failures = 0
                continue
            if outcome.kind == "busy":
                # A rate limit that lets others through is no failure, however often it is met. Who
                # was let through may still wait for the answer.
                if failures + 1 >= self._endpoint.attempts and self._under_way:
                    await asyncio.wait(set(self._under_way))
                if self._answered > answered:
                    failures, answered = 0, self._answered
            if outcome.kind == "fatal":
                raise _StopError(f"{self._endpoint.base_url} takes no request: {outcome.detail}")
            if not outcome.worth_repeating:
                return Queued(reason="rejected", detail=outcome.detail)
            failures += 1
            if failures >= self._endpoint.attempts:
                return Queued(reason="no answer", detail=outcome.detail)
            await self._wait(failures, outcome)

    async def _call(self, client: ChatClient, key: str, request: dict) -> Answered | Failed:
        """Send one call, and have it in the ledger whatever becomes of it."""
        await self._pause.over()
        if self.stopped:
            raise _StopError(self.stopped)
        try:
            call = await self._ledger.begin(key, request)
        except BudgetError as reached:
            raise _StopError(
                f"the budget is reached: {reached}. Repeat the command with a larger budget to go "
                "on; nothing that is paid is asked again"
            ) from None
        self.calls += 1
        # A call that is interrupted may still be billed.
        outcome: Answered | Failed = Failed(kind="lost", detail="interrupted")
        ended = asyncio.get_running_loop().create_future()
        self._under_way.add(ended)
        try:
            outcome = await client.send(request)
        finally:
            self._under_way.discard(ended)
            ended.set_result(None)
            if isinstance(outcome, Answered):
                self._ledger.answered(call, outcome.body)
            else:
                self._ledger.failed(call, outcome)
        return outcome

    async def _wait(self, failures: int, failure: Failed) -> None:
        asked_s, longest_s = failure.retry_after_s, self._endpoint.longest_wait_s
        if asked_s is not None and asked_s > longest_s:
            raise _StopError(
                f"{self._endpoint.base_url} asks to be left alone for {asked_s:.0f} s, longer than "
                f"longest_wait_s = {longest_s:g}; repeat the command after that"
            )
        if asked_s is not None:
            self._pause.extend(asked_s)
        drawn_s = wait_s(
            failures, first_s=self._endpoint.backoff_s, longest_s=longest_s, rng=self._rng
        )
        await asyncio.sleep(drawn_s)

    @property
    def cost(self) -> float:
        """The most that has been spent on the cache, calls under way included."""
        return self._ledger.committed


def _teller(run: AnnotatorRun, total: int, report: Report | None) -> Callable[[], None]:
    """What tells the report how far a run is; its rate is over what needed calls."""
    before, began_s = len(run.verdicts), time.monotonic()

    def tell() -> None:
        if report is None:
            return
        done, seconds = len(run.verdicts), max(time.monotonic() - began_s, 1e-9)
        rate = (done - before) / seconds
        left_s = (total - done) / rate
        text = f"{rate:.1f} a second, cost {run.cost:.4f}, {left_s / 60:.1f} minutes left"
        report(done, total, text)

    return tell
