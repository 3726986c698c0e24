"""The section ``ledger`` of the gateway's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from crossroads.gateway.ledger.urls import check_url
from crossroads.gateway.settings import Section

Keep = Literal["text", "answers", "features"]


class LedgerSettings(Section):
    """Where calls are remembered, how soon, and what of their content is kept.

    ``ledger: null`` keeps none. Prompts, answers and embeddings are stored only where ``keep``
    names them.
    """

    url: str = Field(
        default="sqlite:crossroads-ledger.db",
        description="sqlite:PATH or postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
    )
    flush_ms: int = Field(
        default=200,
        ge=1,
        le=60_000,
        description="milliseconds between commits; what a crash may lose",
    )
    batch: int = Field(default=500, ge=1, le=10_000, description="most rows of one commit")
    keep: tuple[Keep, ...] = Field(
        default=(), description="contents to store: text, answers, features"
    )
    retention_days: float | None = Field(
        default=None, gt=0, description="rows older than this many days are deleted; null keeps all"
    )
    queue: int = Field(
        default=100_000, ge=1, description="most rows waiting in memory; more are counted as lost"
    )
    journal: Path | None = Field(
        default=None,
        description="folder for rows that the database does not take; beside the SQLite file, or "
        "in the user's state folder",
    )
    timeout_s: float = Field(
        default=5.0,
        gt=0,
        le=60,
        description="seconds to wait for the database before rows are journalled",
    )

    @field_validator("url")
    @classmethod
    def _known_url(cls, url: str) -> str:
        return check_url(url)
