"""A shop of paints, and a real HTTP server that speaks the chat completions protocol.

The server goes wrong as it is told. Its model reads the query and the product between the marks of
the prompt and compares words, so the right label of each pair is known. It counts what it bills.
"""

import hashlib
import json
import math
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars as pl
import pytest

THINGS = ("paint", "brush", "ladder", "tape")
COLOURS = ("red", "blue", "green", "white", "black")
FACETS = ("product_type", "attributes", "brand", "constraint")
SURE = {"all": 0.97, "same": 0.97, "different": 0.97, "some": 0.9}


@dataclass
class Shop:
    """Queries ask for "COLOUR THING"; a product is "COLOUR THING, N oz"."""

    queries: pl.DataFrame
    products: pl.DataFrame
    pairs: pl.DataFrame
    label_by_pair: dict[tuple[str, str], int]


def make_shop(pairs: int, size: int = 0) -> Shop:
    """A shop with so many distinct pairs; sizes in ounces make titles distinct."""
    queries = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    products = -(-pairs // len(queries)) + size
    titles = [
        f"{COLOURS[i % 5]} {THINGS[(i // 5) % 4]}, {24 + i} oz. (pack of 2)"
        for i in range(products)
    ]
    rows = [(f"q{i % len(queries)}", f"p{i // len(queries)}") for i in range(pairs)]
    label = {}
    for query_id, product_id in rows:
        colour, thing = queries[int(query_id[1:])].split()
        title = titles[int(product_id[1:])]
        label[query_id, product_id] = 0 if thing not in title else 2 if colour in title else 1
    return Shop(
        queries=pl.DataFrame({"query_id": [f"q{i}" for i in range(20)], "query": queries}),
        products=pl.DataFrame({"product_id": [f"p{i}" for i in range(products)], "title": titles}),
        pairs=pl.DataFrame(rows, schema=["query_id", "product_id"], orient="row"),
        label_by_pair=label,
    )


@dataclass
class ChatServer:
    """Answers POST /v1/chat/completions; a context manager.

    ``fault_of(number, time)`` names what goes wrong when a pair is asked for the ``time``-th time,
    from 0: "busy", "down", "cut", "slow", "gateway", "refused", "filtered", None, or a text that is
    given as the message instead of an answer.
    """

    fault_of: object = None
    key: str = "secret-of-the-test"
    forms: tuple = ("json_schema", "json_object", "text")
    gives_logprobs: bool = True
    refuses_logprobs: bool = False
    gives_usage: bool = True
    retry_after: str | None = None
    one_at_a_time: bool = False
    """Whether requests that come while an answer is made meet status 429."""
    slow_s: float = 3.0
    answer_s: float = 0.0
    limit_name: str = "max_completion_tokens"
    asked: Counter = field(default_factory=Counter)
    """Requests by pair number."""
    usable: Counter = field(default_factory=Counter)
    """Whole, sound answers sent, by pair number: what must never be two."""
    paid: list = field(default_factory=list)
    """(prompt tokens, completion tokens) of every whole answer sent, sound or not."""
    statuses: Counter = field(default_factory=Counter)
    met: Counter = field(default_factory=Counter)
    """Faults made, by name."""
    requests: list = field(default_factory=list)
    arrived_s: list = field(default_factory=list)
    making: bool = False
    under_way: int = 0
    most_under_way: int = 0

    def __enter__(self):
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Without it each small answer waits for an acknowledgement of its headers.
            disable_nagle_algorithm = True

            def log_message(self, *args):
                pass

            def do_POST(self):
                try:
                    server.handle(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request, client_address):
                pass

        self.http = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    @property
    def base_url(self):
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def handle(self, http):
        body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        if http.path != "/v1/chat/completions":
            return self.send(http, 404, error("no such path"))
        if http.headers["Authorization"] != f"Bearer {self.key}":
            given = http.headers["Authorization"]
            return self.send(http, 401, error(f"Incorrect API key provided: {given}"))
        number = re.search(r'pair: "([0-9a-f]{16})"', body["messages"][1]["content"])[1]
        with self.lock:
            self.requests.append(body)
            self.arrived_s.append(time.monotonic())
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return self.respond(http, body, number)
        finally:
            with self.lock:
                self.under_way -= 1

    def respond(self, http, body, number):
        form = body.get("response_format", {"type": "text"})["type"]
        if form not in self.forms:
            return self.send(http, 400, error(f"response_format type {form} is not supported"))
        if self.refuses_logprobs and "logprobs" in body:
            return self.send(http, 400, error("this model does not support logprobs"))
        if self.limit_name not in body:
            return self.send(http, 400, error("Unrecognized argument: max_completion_tokens"))
        with self.lock:
            repeat = self.asked[number]
            self.asked[number] += 1
            fault = self.fault_of(number, repeat) if self.fault_of else None
            if self.one_at_a_time and self.making:
                fault = "busy"
            self.met[fault] += 1
            self.making |= fault != "busy"
        if fault != "busy":
            time.sleep(self.answer_s)
            self.making = False
        if fault == "busy":
            headers = {} if self.retry_after is None else {"Retry-After": self.retry_after}
            return self.send(http, 429, error("rate limit reached"), headers)
        if fault == "down":
            return self.send(http, 503, error("overloaded"))
        if fault == "filtered":
            return self.send(http, 400, error("flagged by our content policy", "content_filter"))
        if fault == "gateway":
            return self.send(http, 200, error("the provider is overloaded"))
        completion = self.completion(body, number, fault)
        if fault == "cut":
            content = json.dumps(completion).encode()
            http.send_response(200)
            http.send_header("Content-Type", "application/json")
            http.send_header("Content-Length", str(len(content)))
            http.end_headers()
            http.wfile.write(content[: len(content) // 2])
            http.close_connection = True
            return None
        if fault == "slow":
            time.sleep(self.slow_s)
        self.send(http, 200, completion)
        # Counted when it is out: who is gone by then was cut off.
        with self.lock:
            tokens = count(body["messages"]), 40
            if fault != "slow":
                self.paid.append(tokens)
            if fault is None:
                self.usable[number] += 1
        return None

    def completion(self, body, number, fault):
        facets = {"pair": number, **compare(body["messages"][1]["content"])}
        text, refusal, finish = json.dumps(facets), None, "stop"
        if fault == "refused":
            text, refusal = None, "I cannot help with that."
        elif fault == "too long":
            text, finish = text[:30], "length"
        elif fault not in (None, "cut", "slow"):
            text = fault
        message = {"role": "assistant", "content": text, "refusal": refusal}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        if body.get("logprobs") and self.gives_logprobs and text is not None:
            choice["logprobs"] = {"content": logprobs(text)}
        made = {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "paint-1",
            "choices": [choice],
        }  # fmt: skip
        if self.gives_usage:
            prompt = count(body["messages"])
            made["usage"] = {
                "prompt_tokens": prompt, "completion_tokens": 40, "total_tokens": prompt + 40
            }  # fmt: skip
        return made

    def send(self, http, status, value, headers=None):
        content = json.dumps(value).encode()
        http.send_response(status)
        http.send_header("Content-Type", "application/json")
        http.send_header("Content-Length", str(len(content)))
        for name, text in (headers or {}).items():
            http.send_header(name, text)
        http.end_headers()
        http.wfile.write(content)
        with self.lock:
            self.statuses[status] += 1


def compare(content):
    """The facets of a pair, by the words of its texts."""
    query = re.search(r"<query-\w+>\n(.*)\n</query", content)[1]
    product = re.search(r"<product-\w+>\n(.*?)\n</product", content, re.DOTALL)[1]
    colour, thing = query.split()
    return {
        "product_type": "cannot tell" if "mystery" in product
        else "same" if thing in product else "different",
        "attributes": "all" if colour in product else "some",
        "brand": "unasked",
        "constraint": "unasked",
    }  # fmt: skip


def count(messages):
    """Tokens of a prompt, a little fewer than its bytes in fours."""
    return sum(len(message["content"]) for message in messages) // 4


def error(message, code=None):
    return {"error": {"message": message, "type": "invalid_request_error", "code": code}}


def logprobs(text):
    """Tokens of a text; a word before a quotation mark is sure by ``SURE``, with one rival."""
    rivals = {"same": "related", "different": "related", "all": "some", "some": "all"}
    entries = []
    for token in re.findall(r'": "|", "|\w+|\W', text):
        p = SURE.get(token, 1.0)
        tops = {token: p}
        if token in rivals:
            tops[rivals[token][:3]] = 1 - p
        log = {name: math.log(q) for name, q in tops.items()}
        entries.append({
            "token": token, "logprob": log[token], "bytes": None,
            "top_logprobs": [{"token": n, "logprob": v, "bytes": None} for n, v in log.items()],
        })  # fmt: skip
    return entries


def share_of_faults(share, faults):
    """A rule by which that share of all requests meets one of the faults, drawn by their number."""

    def fault_of(number, repeat):
        digest = hashlib.sha256(f"{number}-{repeat}".encode()).digest()
        if int.from_bytes(digest[:4]) >= share * 2**32:
            return None
        return faults[digest[4] % len(faults)]

    return fault_of


@pytest.fixture
def chat_server(monkeypatch):
    """Starts servers that stop with the test; the key is in the environment."""
    monkeypatch.setenv("TEST_API_KEY", "secret-of-the-test")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    running = []

    def start(**settings):
        running.append(ChatServer(**settings).__enter__())
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


@pytest.fixture
def shop():
    return make_shop


@pytest.fixture
def faults():
    return share_of_faults
