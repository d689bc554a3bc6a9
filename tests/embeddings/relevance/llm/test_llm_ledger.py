"""The file of calls and the purse."""

import asyncio
import random
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from embeddings.relevance.llm_answer import Usage
from embeddings.relevance.llm_backoff import Pause, wait_s
from embeddings.relevance.llm_cache import AnswerCache, cache_key
from embeddings.relevance.llm_config import AnnotatorConfig
from embeddings.relevance.llm_dialect import Dialect, chat_request
from embeddings.relevance.llm_endpoint import Endpoint, Failed, retry_after_s
from embeddings.relevance.llm_ledger import BudgetError, Ledger, Prices, most_tokens
from embeddings.relevance.prompt import messages
from embeddings.relevance.rubric import SHOP_RUBRIC

REQUEST = {"messages": [{"role": "user", "content": "x" * 84}], "max_tokens": 50}
"""At most 84 + 16 tokens of prompt, with the bytes of "{}" 102, and 50 of answer."""
PRICES = Prices(prompt_price=10_000.0, completion_price=20_000.0)
MOST = 102 * 0.01 + 50 * 0.02
BILLED = '{"usage": {"prompt_tokens": 30, "completion_tokens": 20}}'
COST = 30 * 0.01 + 20 * 0.02
PLAIN = Dialect()
LOST = Failed(kind="lost", detail="cut")


@pytest.fixture
def cache(tmp_path):
    with AnswerCache(tmp_path / "answers.sqlite") as opened:
        yield opened


def begin(ledger, key="k"):
    return asyncio.run(asyncio.wait_for(ledger.begin(key, REQUEST), 1))


def test_costs_by_hand(cache):
    ledger = Ledger(cache, PRICES, None)
    assert most_tokens(REQUEST) == Usage(prompt_tokens=102, completion_tokens=50)
    call = begin(ledger)
    assert ledger.committed == cache.cost() == pytest.approx(MOST)
    ledger.answered(call, BILLED)
    assert ledger.committed == cache.cost() == pytest.approx(COST)


@pytest.mark.parametrize(
    ("settle", "cost"),
    [
        (lambda ledger, call: ledger.answered(call, "24 oz"), MOST),
        (lambda ledger, call: ledger.answered(call, BILLED), COST),
        (lambda ledger, call: ledger.failed(call, LOST), MOST),
        (lambda ledger, call: ledger.failed(call, Failed(kind="busy", detail="")), 0.0),
        (lambda ledger, call: ledger.failed(call, Failed(kind="connect", detail="")), 0.0),
        (lambda ledger, call: None, MOST),
    ],
    ids=["nothing said", "said", "lost", "busy", "never reached", "killed"],
)
def test_what_may_have_been_billed_counts_and_is_found_again(tmp_path, settle, cost):
    path = tmp_path / "answers.sqlite"
    with AnswerCache(path) as cache:
        ledger = Ledger(cache, PRICES, None)
        settle(ledger, begin(ledger))
        assert ledger.committed == pytest.approx(cost)
    with AnswerCache(path) as cache:
        assert Ledger(cache, PRICES, None).committed == pytest.approx(cost)
        assert "begun" not in cache.totals()


def test_a_call_that_could_pass_the_budget_is_not_begun(cache):
    ledger = Ledger(cache, PRICES, budget=2 * MOST + 1e-9)
    first = begin(ledger)
    ledger.failed(first, LOST)
    ledger.answered(begin(ledger), BILLED)
    # Spent: MOST + COST. Another could cost MOST.
    with pytest.raises(BudgetError, match="of the budget of 4"):
        begin(ledger)
    assert cache.cost() == pytest.approx(MOST + COST)


def test_the_budget_counts_calls_under_way_at_their_most(cache):
    async def story():
        ledger = Ledger(cache, PRICES, budget=2 * MOST + 1e-9)
        first, _ = await ledger.begin("a", REQUEST), await ledger.begin("b", REQUEST)
        third = asyncio.create_task(ledger.begin("c", REQUEST))
        await asyncio.sleep(0.01)
        # It waits: what the others set aside may come back.
        assert not third.done()
        ledger.failed(first, Failed(kind="server", detail=""))
        await asyncio.wait_for(third, 1)
        return ledger.committed

    assert asyncio.run(story()) == pytest.approx(2 * MOST)


def test_the_most_is_never_less_than_what_a_byte_tokenizer_counts():
    text = "ölfarbe 漆 " * 20
    asked = Dialect().parameters(SHOP_RUBRIC, model="m", max_tokens=50)
    request = chat_request(asked, messages(SHOP_RUBRIC, text, {"title": text}))
    read = sum(len(message["content"].encode()) for message in request["messages"])
    assert most_tokens(request).prompt_tokens > read
    assert most_tokens(request).completion_tokens == 50


def test_a_budget_without_prices_is_refused():
    with pytest.raises(ValidationError, match="both prices are 0"):
        AnnotatorConfig(endpoint=Endpoint(model="m"), budget=1.0)


def test_everything_that_an_answer_depends_on_is_in_its_key():
    def key(rubric="r", model="m", query="q", title="t", dialect=PLAIN, limit=50):
        asked = dialect.parameters(SHOP_RUBRIC, model=model, max_tokens=limit)
        return cache_key(
            rubric, chat_request(asked, messages(SHOP_RUBRIC, query, {"title": title}))
        )

    keys = [
        key(),
        key(rubric="s"),
        key(model="n"),
        key(query="p"),
        key(title="u"),
        key(limit=51),
        *(key(dialect=Dialect(**{name: value})) for name, value in
          (("form", "text"), ("logprobs", False), ("temperature", False))),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key() == key()


def test_answers_come_back_as_they_came_in_order(tmp_path):
    bodies = ['{"a": "é漆"}', "", "x" * 100_000]
    path = tmp_path / "answers.sqlite"
    with AnswerCache(path) as cache:
        for body in bodies:
            call = cache.begin("k", Usage(prompt_tokens=1, completion_tokens=1), 0.0)
            cache.record_answer(call, body, None, 0.0)
        cache.record_dialect("m", Dialect(form="text"))
    with AnswerCache(path) as cache:
        assert cache.answers("k") == bodies
        assert cache.answers("other") == []
        assert cache.dialect("m") == Dialect(form="text")
        assert cache.dialect("n") is None
        assert cache.totals()["answered"]["calls"] == 3


def test_two_processes_cannot_write_one_cache(cache):
    code = (
        "import sys\nfrom embeddings.relevance.llm_cache import AnswerCache\n"
        "try:\n    AnswerCache(sys.argv[1])\n"
        "except ValueError as error:\n    sys.exit(0 if 'in use' in str(error) else 1)\n"
        "sys.exit(2)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(cache.path)]).returncode == 0


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"not a database, but long enough to be looked at" * 9)
    with pytest.raises(ValueError, match="is no cache of answers"):
        AnswerCache(path)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version=9")
    other.close()
    with pytest.raises(ValueError, match="its format is 9"):
        AnswerCache(path)


def test_waits_double_up_to_the_longest_and_are_drawn():
    rng = random.Random(0)
    for attempt, most_s in ((1, 1.0), (2, 2.0), (5, 16.0), (6, 20.0), (5000, 20.0)):
        drawn = [wait_s(attempt, first_s=1.0, longest_s=20.0, rng=rng) for _ in range(50)]
        assert most_s / 2 <= min(drawn) < max(drawn) <= most_s
        assert len(set(drawn)) == 50


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "9", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:27:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "-3"}, None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, seconds):
    now_s = datetime(2026, 10, 21, 7, 28, tzinfo=UTC).timestamp()
    assert retry_after_s(headers, now_s=now_s) == seconds


def test_a_pause_is_kept_through_its_extensions():
    async def story():
        pause, order = Pause(), []
        pause.extend(0.02)

        async def caller():
            await pause.over()
            order.append("called")

        waiting = asyncio.create_task(caller())
        await asyncio.sleep(0.01)
        pause.extend(0.03)
        pause.extend(0.001)
        await asyncio.sleep(0.02)
        order.append("later")
        await waiting
        return order

    assert asyncio.run(story()) == ["later", "called"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://me:pass@host/v1", "would be written into the manifest"),
        ("https://host/v1?key=abc", "would be written into the manifest"),
        ("host/v1", "must begin with http"),
    ],
)
def test_a_base_url_with_a_secret_or_without_a_scheme_is_refused(url, message):
    with pytest.raises(ValidationError, match=message):
        Endpoint(model="m", base_url=url)


def test_a_missing_key_is_named(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ValueError, match="variable SOME_KEY is not set"):
        Endpoint(model="m", api_key_env="SOME_KEY").api_key()


def test_a_dialect_gives_up_what_is_refused_and_ends():
    assert Dialect().without_refused("logprobs are not supported") == Dialect(logprobs=False)
    assert Dialect().without_refused("temperature must be 1") == Dialect(temperature=False)
    assert Dialect().without_refused("max_completion_tokens: unknown") == Dialect(
        limit_name="max_tokens"
    )
    dialect, seen = Dialect(), []
    while dialect is not None:
        seen.append(dialect)
        dialect = dialect.without_refused("bad request")
    assert [d.form for d in seen[:3]] == ["json_schema", "json_object", "text"]
    assert len(seen) == 6
    assert seen[-1] == Dialect(
        form="text", logprobs=False, temperature=False, limit_name="max_tokens"
    )
