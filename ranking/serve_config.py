"""Where a server listens and what it refuses; needs none of the packages that serve."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class ServeConfig(BaseModel):
    """Where a server listens and what it refuses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    """Address to listen on; this machine alone by default."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes a free one."""
    name: str = Field(default="adtower", pattern=r"^[A-Za-z0-9_.-]+$")
    """What the model is called in URLs."""
    max_body_bytes: int = Field(default=4 << 20, ge=1)
    """Larger bodies are refused before they are read to the end."""
    max_candidates: int = Field(default=1000, ge=1)
    """Of one request."""
    max_purchases: int = Field(default=1000, ge=0)
    """Of one request."""
    max_text_chars: int = Field(default=1000, ge=1)
    """Of a query's text."""
    body_seconds: float = Field(default=10.0, gt=0)
    """How long a body may take to arrive."""
    max_connections: int = Field(default=1024, ge=1)
    """Further ones are answered 503 at once."""
    threads: int = Field(default=1, ge=1)
    """Of onnxruntime."""
    watch_seconds: float = Field(default=2.0, ge=0)
    """How often to look for a new bundle; 0 leaves it to SIGHUP."""
    grace_seconds: int = Field(default=30, ge=1)
    """How long requests under way may take to finish when the server is told to stop."""
    log: Path | None = None
    """JSON lines of what was answered, for `adtower skew`."""
    log_every: int = Field(default=1, ge=1)
    """Log one request in this many."""
