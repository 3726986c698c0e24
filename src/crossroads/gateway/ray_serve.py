"""Replicas of one model on a Ray cluster, behind OpenAI's chat API.

An ``Expert`` (a local language model, say) becomes a Ray Serve deployment with as many replicas as
asked for; the gateway reaches it as any other upstream::

    from ray import serve
    from crossroads.gateway.ray_serve import expert_app

    serve.run(expert_app(lambda: build_expert(card), replicas=2), route_prefix="/small")
    # pool.yaml: endpoint: http://127.0.0.1:8000/small/v1

Ray is an optional extra and adds milliseconds per hop: it is for models, not for the gateway.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import orjson

from crossroads.core.errors import MissingExtraError
from crossroads.gateway.errors import ApiError, from_expert
from crossroads.prompts.experts.base import Chunk, Expert, ExpertError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_LONGEST_BODY = 8 << 20  # bytes


class ChatReplica:
    """One replica: starts its expert at the first request and answers in OpenAI's form.

    Parameters
    ----------
    make : returns a new expert; called in the replica, so that nothing but the recipe travels
    """

    def __init__(self, make: Callable[[], Expert]) -> None:
        self._expert = make()
        self._is_started = False

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request."""
        from starlette.responses import Response

        try:
            return await self._answer(request)
        except ApiError as error:
            body, status = error.body, error.status
        except ExpertError as failure:
            told = from_expert(failure)
            body, status = told.body, told.status
        return Response(body, status_code=status, media_type="application/json")

    async def check_health(self) -> None:
        """Tell Ray that this replica works. Raises what the expert raises when it cannot start."""
        await self._start()

    async def _start(self) -> None:
        if not self._is_started:
            await self._expert.start()
            self._is_started = True

    async def _answer(self, request: Request) -> Response:
        from starlette.responses import Response, StreamingResponse

        path = request.url.path.rstrip("/")
        if path.endswith("/models"):
            card = {"id": self._expert.name, "object": "model", "owned_by": "crossroads"}
            return Response(
                orjson.dumps({"object": "list", "data": [card]}), media_type="application/json"
            )
        if not path.endswith("/chat/completions") or request.method != "POST":
            raise ApiError("This replica has POST /v1/chat/completions and GET /v1/models.",
                           status=404, code="unknown_url")  # fmt: skip
        asked = _read(await request.body())
        await self._start()
        if not asked.get("stream"):
            answer = await self._expert.complete(asked)
            return Response(orjson.dumps(answer), media_type="application/json")
        chunks = self._expert.stream(asked)
        first = await anext(chunks, None)  # a failure at once has a status of its own
        return StreamingResponse(
            _events(first, chunks),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )


def expert_app(make: Callable[[], Expert], *, replicas: int = 1, cpus: float = 1.0) -> Any:
    """Return a Ray Serve application of ``replicas`` experts for ``ray.serve.run``.

    Raises MissingExtraError without Ray Serve.

    Parameters
    ----------
    make : returns a new expert; it is called once in each replica
    replicas : processes, each with an expert of its own
    cpus : that Ray sets aside for each
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own, of libraries it has not followed yet
            from ray import serve
    except ImportError as error:
        raise MissingExtraError("Ray Serve", extra="ray") from error
    deployment = serve.deployment(
        ChatReplica, num_replicas=replicas, ray_actor_options={"num_cpus": cpus}
    )
    return deployment.bind(make)


def _read(body: bytes) -> Mapping[str, Any]:
    if len(body) > _LONGEST_BODY:
        raise ApiError(f"The request is larger than {_LONGEST_BODY} bytes.", status=413)
    try:
        asked = orjson.loads(body)
    except json.JSONDecodeError as error:
        raise ApiError(f"The request is not valid JSON: {error}") from error
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        raise ApiError("Expected an object with a list 'messages'.", param="messages")
    return asked


async def _events(
    first: Chunk | None, chunks: AsyncGenerator[Chunk, None]
) -> AsyncGenerator[bytes, None]:
    """Write a stream; without ``[DONE]`` where the expert failed on the way."""
    async with aclosing(chunks):
        try:
            if first is not None:
                yield b"data: " + orjson.dumps(first) + b"\n\n"
            async for chunk in chunks:
                yield b"data: " + orjson.dumps(chunk) + b"\n\n"
        except ExpertError as failure:
            yield b"data: " + from_expert(failure).body + b"\n\n"
            return
    yield b"data: [DONE]\n\n"
