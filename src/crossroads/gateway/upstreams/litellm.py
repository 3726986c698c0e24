"""Any provider that the library LiteLLM knows (``api: litellm``): slower, and optional.

The library is imported by ``start`` alone, told to fetch nothing and to report nothing. Its own
retries are off: the gateway has its own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from crossroads.core.errors import MissingExtraError
from crossroads.gateway.call import Body, Dialect, Event
from crossroads.gateway.contracts import Order
from crossroads.gateway.upstreams.failures import Failures
from crossroads.gateway.upstreams.progress import (
    Chunks,
    MalformedEventError,
    ReportedError,
    num_choices,
)
from crossroads.gateway.upstreams.settings import UpstreamSettings
from crossroads.gateway.upstreams.turns import Turns
from crossroads.gateway.vocabulary import usage_of
from crossroads.prompts.experts.base import ExpertError
from crossroads.prompts.experts.environment import expand
from crossroads.prompts.pool import ModelCard

if TYPE_CHECKING:
    from crossroads.core.http.timeouts import Timeouts

_CHAT: frozenset[Dialect] = frozenset({"chat"})
# Fields of a request that the library is given. It takes its own settings as fields, too: where to
# ask, with whose key, what to run afterwards. Those are the pool's to say, never a client's.
_FIELDS = frozenset(
    {
        *("messages", "temperature", "top_p", "top_k", "n", "stop", "seed", "user"),
        *("max_tokens", "max_completion_tokens", "presence_penalty", "frequency_penalty"),
        *("logit_bias", "logprobs", "top_logprobs", "response_format", "reasoning_effort"),
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
        *("modalities", "audio", "prediction", "service_tier", "store", "thinking", "verbosity"),
    }
)


class LitellmUpstream:
    """A model asked through ``litellm.acompletion``, in ``chat``.

    Parameters
    ----------
    card : the model; ``upstream_model`` as the library names it (``provider/model``), ``endpoint``
        becomes ``api_base`` where it is given
    timeouts : ``total`` applies to a call, ``first_byte`` and ``idle`` to a stream's chunks; those
        of the card go before
    settings : bounds of all upstreams
    """

    def __init__(self, card: ModelCard, *, timeouts: Timeouts, settings: UpstreamSettings) -> None:
        self._card = card
        self._timeouts = replace(timeouts, **card.timeouts) if card.timeouts else timeouts
        self._failures = Failures(f"model {card.name!r} by litellm")
        self._turns = Turns(
            card, total=self._timeouts.total, settings=settings, failures=self._failures
        )
        self.gate = self._turns.gate
        self._library: Any = None
        self._fixed: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return self._card.name

    @property
    def speaks(self) -> frozenset[Dialect]:
        return _CHAT

    def check(self) -> None:
        """Find what would keep it from starting, importing nothing.

        Raises MissingExtraError, and InputError for a missing key.
        """
        if not _is_installed():
            raise MissingExtraError("litellm", extra="litellm")
        self._read_card()

    async def start(self) -> None:
        """Import the library. Raises MissingExtraError, and InputError for a missing key."""
        self.check()
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches one
        try:
            self._library = await asyncio.to_thread(importlib.import_module, "litellm")
        except ImportError as error:
            raise MissingExtraError("litellm", extra="litellm") from error
        self._library.telemetry = False
        self._library.suppress_debug_info = True
        self._fixed, secrets = self._read_card()
        self._failures = Failures(f"model {self._card.name!r} by litellm", secrets)

    def _read_card(self) -> tuple[dict[str, Any], list[str]]:
        """Return the fields that are the same in every call, and the secrets among them."""
        card = self._card
        fixed: dict[str, Any] = {"model": card.upstream_model or card.name, "num_retries": 0}
        if card.endpoint is not None:
            fixed["api_base"] = card.endpoint
        secrets: list[str] = []
        if card.api_key is not None:
            fixed["api_key"] = expand(card.api_key, where=f"api_key of model {card.name!r}")
            secrets.append(fixed["api_key"])
        if card.headers:
            fixed["extra_headers"] = {
                name: expand(value, where=f"headers.{name} of model {card.name!r}")
                for name, value in card.headers.items()
            }
            secrets += fixed["extra_headers"].values()
        return fixed, secrets

    async def close(self) -> None:
        self._fixed = {}

    async def complete(self, order: Order) -> Body:
        """Return the whole answer. Raises ExpertError."""
        fields = self._fields(order)
        async with self._turns.take(order) as deadline:
            answer = await self._ask(fields, deadline)
        body = _plain(answer)
        if not isinstance(body.get("choices"), list):
            told = usage_of("chat", body.get("usage"))
            raise self._failures.invalid("an answer without choices", usage=told)
        return body

    async def stream(self, order: Order) -> AsyncGenerator[list[Event], None]:
        """Yield chunks one by one. Raises ExpertError."""
        fields = {**self._fields(order), "stream": True}
        if self._card.stream_usage:
            fields["stream_options"] = {"include_usage": True}
        async with self._turns.take(order) as deadline:
            source: Any = None
            try:
                first = time.monotonic() + self._timeouts.first_byte
                source = await self._ask(fields, min(first, deadline))
                progress = Chunks(num_choices(order.body))
                chunks = aiter(source)
                while (event := await self._next(chunks, deadline)) is not None:
                    try:
                        progress.note(event)
                    except ReportedError as report:
                        raise self._failures.reported(report.given) from report
                    except MalformedEventError as error:
                        raise self._failures.invalid(str(error)) from error
                    yield [event]
                if progress.num_events == 0:
                    raise self._failures.empty()
                if not progress.is_whole:
                    raise self._failures.cut()
            finally:
                close = getattr(source, "aclose", None)
                if close is not None:
                    await close()

    def _fields(self, order: Order) -> dict[str, Any]:
        """Return what the library is given. Raises ExpertError 400 for what it would fetch."""
        body = order.body
        for message in body.get("messages") or ():
            content = message.get("content") if isinstance(message, dict) else None
            if isinstance(content, list) and any(_is_remote(part) for part in content):
                raise self._failures.error(
                    "files behind a URL are not fetched; send them as a data: URL",
                    status=400,
                    type="invalid_request_error",
                    code="remote_file",
                    param="messages",
                )
        given = {name: value for name, value in body.items() if name in _FIELDS}
        return {**given, **self._fixed}

    async def _ask(self, fields: dict[str, Any], deadline: float) -> Any:
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await self._library.acompletion(**fields)
        except TimeoutError as error:
            raise self._failures.late() from error
        except Exception as error:  # the library has a class per provider's mood
            raise self._of_library(error) from error

    async def _next(self, chunks: Any, deadline: float) -> Event | None:
        seconds = min(self._timeouts.idle, deadline - time.monotonic())
        try:
            async with asyncio.timeout(seconds):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise self._failures.late() from error
        except Exception as error:
            raise self._of_library(error) from error
        return None if chunk is None else _plain(chunk)

    def _of_library(self, error: Exception) -> ExpertError:
        """Its errors carry the provider's status, or none where nothing was reached."""
        status = getattr(error, "status_code", None)
        if not isinstance(status, int) or status < 400:
            return self._failures.error(
                f"no answer ({error})", status=503, code="upstream_unavailable"
            )
        given = {"message": str(error), "code": getattr(error, "code", None)}
        return self._failures.of_error(status, given, None)


def _is_installed() -> bool:
    if "litellm" in sys.modules:
        return sys.modules["litellm"] is not None
    return importlib.util.find_spec("litellm") is not None


def _is_remote(part: Any) -> bool:
    """Whether a part of a message is a file for which the library might ask some host."""
    if not isinstance(part, dict) or part.get("type") == "text":
        return False
    found: list[Any] = list(part.values())
    while found:
        value = found.pop()
        if isinstance(value, dict):
            found.extend(value.values())
        elif isinstance(value, list):
            found.extend(value)
        elif isinstance(value, str) and "://" in value[:20]:
            return True
    return False


def _plain(answer: Any) -> dict[str, Any]:
    """The library answers with pydantic models."""
    plain: dict[str, Any] = answer.model_dump(exclude_unset=True)
    return plain
