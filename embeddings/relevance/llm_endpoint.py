"""One call to a chat completions endpoint, through the official client, and what came of it.

The client's own retries are off: each attempt is one entry in the ledger, so whoever counts money
decides whether there is another.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Endpoint(BaseModel):
    """Where the model is and how hard it may be pressed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str = "https://api.openai.com/v1"
    """Of any server that answers POST BASE_URL/chat/completions."""
    model: str = Field(min_length=1)
    """The model's name there; give one that names fixed weights, since answers are kept by it."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the API key; empty for a server that asks for none."""
    concurrency: int = Field(default=8, ge=1, le=512)
    """Calls under way at once."""
    timeout_s: float = Field(default=60.0, gt=0)
    """A call without its whole answer after this long is given up."""
    attempts: int = Field(default=8, ge=1)
    """Calls for one answer at most, the first included, while the endpoint is busy or failing."""
    backoff_s: float = Field(default=1.0, ge=0)
    """Longest wait before the second attempt; it doubles with each further one."""
    longest_wait_s: float = Field(default=120.0, gt=0)
    """Longest wait between attempts. An endpoint that asks for a longer one ends the run."""

    @field_validator("base_url")
    @classmethod
    def _check(cls, base_url: str) -> str:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url is {base_url!r}; it must begin with http:// or https://")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "base_url holds a user, password or query, which would be written into the "
                "manifest; put the key into the environment variable that api_key_env names"
            )
        return base_url.rstrip("/")

    def api_key(self) -> str:
        """Return the key from the environment.

        Raises:
            ValueError: If the variable is not set.
        """
        if not self.api_key_env:
            return "none"
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ValueError(
                f"the environment variable {self.api_key_env} is not set; it must hold the API key "
                f"of {self.base_url}. For a server without keys set api_key_env to an empty string"
            )
        return key


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Status 200 and a whole body. It is paid for."""

    body: str


@dataclass(frozen=True, kw_only=True)
class Failed:
    """No answer. Nothing is paid for, unless the answer was lost on its way."""

    kind: Literal["busy", "server", "connect", "lost", "rejected", "fatal"]
    """busy: status 429; server: 5xx; connect: never reached; lost: sent, but cut off or too slow;
    rejected: another 4xx, this request's own fault; fatal: no request can succeed."""
    detail: str
    retry_after_s: float | None = None
    """How long the endpoint asks to be left alone."""

    @property
    def perhaps_paid(self) -> bool:
        """Whether the endpoint may have made, and billed, an answer."""
        return self.kind == "lost"

    @property
    def worth_repeating(self) -> bool:
        """Whether the same request can succeed later."""
        return self.kind in ("busy", "server", "connect", "lost")


class ChatClient:
    """Sends chat requests; an asynchronous context manager."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Prepare a client; nothing is sent.

        Raises:
            ValueError: If the package openai is not installed or the key is not set.
        """
        try:
            import openai
        except ModuleNotFoundError as error:
            raise ValueError(
                f"the package {error.name!r} is not installed; annotating by a language model "
                "needs the extra: pip install 'adtower[llm]'"
            ) from error
        self._openai = openai
        self._key = endpoint.api_key()
        self._timeout_s = endpoint.timeout_s
        self._client = openai.AsyncOpenAI(
            api_key=self._key,
            base_url=endpoint.base_url,
            timeout=endpoint.timeout_s,
            max_retries=0,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._client.close()

    async def send(self, request: Mapping[str, Any]) -> Answered | Failed:
        """Send one request once."""
        openai = self._openai
        try:
            # The client's timeout is for each read; a server that drips would never meet it.
            async with asyncio.timeout(self._timeout_s):
                raw = await self._client.chat.completions.with_raw_response.create(**request)
            return self._answer(raw.text)
        except openai.APIStatusError as error:
            return self._refusal(error)
        except (TimeoutError, openai.APITimeoutError):
            return Failed(kind="lost", detail=f"no whole answer within {self._timeout_s:g} s")
        except openai.APIConnectionError as error:
            # A connection that was never made carried no request.
            name = type(error.__cause__).__name__
            kind = "connect" if name in ("ConnectError", "ConnectTimeout") else "lost"
            return Failed(kind=kind, detail=self._safe(f"{name}: {error.__cause__ or error}"))

    def _answer(self, body: str) -> Answered | Failed:
        # Gateways report what went wrong behind them with status 200; whether it was billed, they
        # do not say.
        try:
            parsed = json.loads(body)
        except (ValueError, RecursionError):
            return Answered(body=body)
        if isinstance(parsed, dict) and parsed.get("error") and not parsed.get("choices"):
            return Failed(kind="lost", detail=self._safe(f"status 200: {parsed['error']}"))
        return Answered(body=body)

    def _refusal(self, error: Any) -> Failed:
        status, code = error.status_code, error.code or ""
        detail = self._safe(f"status {status}: {_said(error)}")
        if status == 429 and code != "insufficient_quota":
            wait_s = retry_after_s(error.response.headers, now_s=time.time())
            return Failed(kind="busy", detail=detail, retry_after_s=wait_s)
        if status >= 500 or status in (408, 409):
            wait_s = retry_after_s(error.response.headers, now_s=time.time())
            return Failed(kind="server", detail=detail, retry_after_s=wait_s)
        fatal = status in (401, 402, 403, 404, 405, 429)
        return Failed(kind="fatal" if fatal else "rejected", detail=detail)

    def _safe(self, text: str) -> str:
        """A text for records: short, and without the key, which endpoints like to quote."""
        return text.replace(self._key, "***")[:300]


def _said(error: Any) -> str:
    """What the endpoint said, without the client's own words around it."""
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return said if isinstance(said, str) else error.message


def retry_after_s(headers: Mapping[str, str], *, now_s: float) -> float | None:
    """Return how many seconds a response asks to wait, or None if it does not say.

    ``Retry-After`` is a number of seconds or an HTTP date (RFC 9110, section 10.2.3);
    ``retry-after-ms``, which some endpoints send, is more exact and wins.
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait_s = float(headers[name]) * scale
        except (KeyError, ValueError):
            continue
        return wait_s if math.isfinite(wait_s) and wait_s >= 0 else None
    try:
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return max(date.timestamp() - now_s, 0.0)
