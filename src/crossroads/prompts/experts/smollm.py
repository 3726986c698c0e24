"""SmolLM2-135M-Instruct in this process: a small language model that needs no key and no network.

``xllamacpp`` runs the weights of ``crossroads.models.smollm2``. What this module arranges around
it:

- one thread and passive waiting: the library's threads spin at every barrier, and two of them on a
  busy machine are a hundred times slower than one;
- a system prompt where the caller gives none, without which the model answers in tongues;
- a bound on the answer's length where the caller gives none;
- the loopback port the library opens is closed to everybody by a random key;
- one model per process, one request at a time, in a thread of its own, so that the event loop
  stays free; cancelling a request stops it at the next token.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from crossroads.core.errors import MissingExtraError
from crossroads.models.smollm2 import smollm2_path
from crossroads.prompts.experts.base import (
    Chunk,
    Completion,
    ExpertError,
    Request,
    assemble,
    new_completion_id,
    wants_usage,
)

SYSTEM_PROMPT = "Answer the question with a short, direct answer."


class _Model:
    """The loaded model and the one thread that may use it."""

    def __init__(self, *, context: int, num_threads: int) -> None:
        # Read by the library when it is first imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
        try:
            import xllamacpp
        except ImportError as error:
            raise MissingExtraError("xllamacpp", extra="local") from error
        params = xllamacpp.CommonParams()
        params.model.path = str(smollm2_path())
        params.n_ctx = context
        params.n_parallel = 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = num_threads
        params.warmup = False
        params.verbosity = -1
        params.api_keys = [secrets.token_hex(32)]
        params.ui = params.endpoint_slots = params.endpoint_props = False
        self._server = xllamacpp.Server(params)
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="smollm2")

    def run(self, request: dict[str, Any], take: Callable[[Chunk], bool]) -> None:
        """Generate; every chunk is handed to ``take``, which returns True to stop."""
        self._server.handle_chat_completions(request, take)


_models: dict[tuple[int, int], _Model] = {}
_loading = threading.Lock()


def _shared_model(context: int, num_threads: int) -> _Model:
    with _loading:
        key = (context, num_threads)
        if key not in _models:
            _models[key] = _Model(context=context, num_threads=num_threads)
        return _models[key]


@dataclass(kw_only=True)
class SmolLM:
    """The model as an expert.

    Parameters
    ----------
    name : the model's name in the pool
    context : tokens of prompt and answer together
    num_threads : see the module's text before raising it
    max_tokens : bound on an answer where the request sets none
    system_prompt : sent first where the request holds no system message
    """

    name: str
    context: int = 2048
    num_threads: int = 1
    max_tokens: int = 256
    system_prompt: str = SYSTEM_PROMPT

    _model: _Model | None = field(default=None, init=False, repr=False)

    async def start(self) -> None:
        self._model = await asyncio.to_thread(_shared_model, self.context, self.num_threads)

    async def close(self) -> None:
        self._model = None  # stays loaded: another pool of this process may use it

    async def complete(self, request: Request) -> Completion:
        chunks = [chunk async for chunk in self._generate(request)]
        return assemble(chunks, model=self.name)

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        include_usage = wants_usage(request)
        identity = {"id": new_completion_id(), "model": self.name}
        async for chunk in self._generate(request):
            if chunk["choices"] or include_usage:
                usage = {"usage": chunk.get("usage")} if include_usage else {}
                plain = {key: chunk[key] for key in ("object", "created", "choices")}
                yield {**plain, **identity, **usage}

    async def _generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Yield the library's chunks, whose last one counts tokens; raises ExpertError."""
        model = self._model
        assert model is not None, "start() first"
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue()
        stopped = threading.Event()

        def hand_over(item: Chunk | Exception | None) -> None:
            if not stopped.is_set():
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        def take(chunk: Chunk) -> bool:
            hand_over(chunk)
            return stopped.is_set()

        def work() -> None:
            try:
                model.run(self._prepared(request), take)
            except Exception as error:  # noqa: BLE001 - handed to the caller below
                hand_over(error)
            else:
                hand_over(None)

        waiting = model.thread.submit(work)
        try:
            while (item := await arrived.get()) is not None:
                if isinstance(item, Exception):
                    raise self._refused(str(item)) from item
                if "error" in item:
                    raise self._reported(item["error"])
                yield _with_text(item)
        finally:
            stopped.set()
            waiting.cancel()

    def _prepared(self, request: Request) -> dict[str, Any]:
        """Return the request with our defaults, as a stream that ends with token counts."""
        messages = request.get("messages")
        if not isinstance(messages, list) or not messages:
            raise ValueError("'messages' must be a list of at least one message")
        first = messages[0]
        if not isinstance(first, Mapping) or first.get("role") not in {"system", "developer"}:
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        limit = request.get("max_completion_tokens") or request.get("max_tokens")
        return {
            **request,
            "messages": messages,
            "max_tokens": limit or self.max_tokens,
            "model": self.name,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def _reported(self, error: Mapping[str, Any]) -> ExpertError:
        message = str(error.get("message") or "generation failed")
        if error.get("type") == "exceed_context_size_error":
            return self._refused(
                f"the prompt has {error.get('n_prompt_tokens')} tokens, the context "
                f"{self.context}; shorten the prompt",
                code="context_length_exceeded",
            )
        if str(error.get("code", "")).startswith("4"):
            return self._refused(message)
        return ExpertError(f"model {self.name!r}: {' '.join(message.split())}", status=500)

    def _refused(self, message: str, *, code: str | None = None) -> ExpertError:
        return ExpertError(
            f"model {self.name!r}: {' '.join(message.split())}",
            status=400,
            type="invalid_request_error",
            code=code,
        )


def _with_text(chunk: Chunk) -> Chunk:
    """The first delta of a stream has the role and, by convention, an empty text."""
    for choice in chunk["choices"]:
        delta = choice["delta"]
        if "role" in delta and delta.get("content") is None:
            delta["content"] = ""
    return chunk
