"""The HTTP side: /v1/chat/completions, /v1/completions, /v1/models and /health.

Answers and errors have OpenAI's shapes. Beside them, ``crossroads`` tells the router ("named" for
an adapter asked for by name, null for the base model alone) and every adapter's share of the
routing weights over the prompt: in the body, in a stream in its last chunk with a choice; and the
first adapter in the header ``x-crossroads-adapter``.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from crossroads.adapters.serving.engine import Engine, Piece
from crossroads.adapters.serving.wishes import Kind, RefusedError, Wish, read_wish

MOST_BYTES = 4 << 20  # of a request's body
_LOG = logging.getLogger(__name__)
_TYPES: Mapping[Kind, tuple[str, str]] = {
    "chat": ("chat.completion", "chat.completion.chunk"),
    "text": ("text_completion", "text_completion"),
}


def build_app(engine: Engine) -> Starlette:
    """Return the ASGI application of an engine."""

    async def models(_: Request) -> Response:
        facts = {"object": "model", "created": 0, "owned_by": "crossroads"}
        return JSONResponse(
            {"object": "list", "data": [{"id": name, **facts} for name in engine.models]}
        )

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "router": engine.router.name})

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/health", health),
            Route("/v1/chat/completions", partial(_answer, engine, "chat"), methods=["POST"]),
            Route("/v1/completions", partial(_answer, engine, "text"), methods=["POST"]),
        ],
        exception_handlers={RefusedError: _refusal, 404: _no_such_path, Exception: _defect},
    )


async def _answer(engine: Engine, kind: Kind, request: Request) -> Response:
    wish = read_wish(await _body(request), kind)
    engine.check(wish)
    head = {
        "id": f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": wish.model,
    }
    if wish.stream:
        return StreamingResponse(_events(engine, wish, head), media_type="text/event-stream")
    pieces = [piece async for piece in engine.answer(wish)]
    last = pieces[-1]
    text = "".join(piece.text for piece in pieces)
    said: dict[str, Any] = (
        {"message": {"role": "assistant", "content": text}} if kind == "chat" else {"text": text}
    )
    body = {
        **head,
        "object": _TYPES[kind][0],
        "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": last.finish}],
        "usage": _usage(last),
        "crossroads": _routed(engine, wish, last),
    }
    first = next(iter(last.experts), None)
    return JSONResponse(body, headers=_header(first))


def _header(expert: str | None) -> dict[str, str]:
    is_plain = expert is not None and expert.isascii() and expert.isprintable()
    return {"x-crossroads-adapter": str(expert)} if is_plain else {}


async def _events(
    engine: Engine, wish: Wish, head: Mapping[str, Any]
) -> AsyncGenerator[bytes, None]:
    kind = {**head, "object": _TYPES[wish.kind][1]}

    def chunk(said: Mapping[str, Any], finish: str | None, **more: Any) -> bytes:
        usage = {"usage": None} if wish.include_usage else {}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        return _event({**kind, "choices": [choice], **usage, **more})

    def text(said: str) -> dict[str, Any]:
        return {"delta": {**role, "content": said}} if wish.kind == "chat" else {"text": said}

    # The role comes with the first text: what stands in front takes the first event for its time.
    role = {"role": "assistant"} if wish.kind == "chat" else {}
    try:
        async with aclosing(engine.answer(wish)) as pieces:
            async for piece in pieces:
                if piece.text:
                    yield chunk(text(piece.text), None)
                    role = {}
                if piece.finish is None:
                    continue
                end = {"delta": {}} if wish.kind == "chat" and not role else text("")
                yield chunk(end, piece.finish, crossroads=_routed(engine, wish, piece))
                if wish.include_usage:
                    yield _event({**kind, "choices": [], "usage": _usage(piece)})
    except RefusedError as error:
        yield _event(_error(error))
        return
    except Exception:  # noqa: BLE001 - the head is sent: nobody else can tell the client
        _LOG.exception("an answer broke off")
        yield _event(_error(RefusedError("the answer broke off", status=500)))
        return
    yield b"data: [DONE]\n\n"


async def _body(request: Request) -> Any:
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > MOST_BYTES:
                raise RefusedError(f"the body has more than {MOST_BYTES} bytes", status=413)
            parts.append(part)
    except ClientDisconnect as error:
        raise RefusedError("the client left") from error
    try:
        return json.loads(b"".join(parts))
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the body: no JSON: {error}") from error


def _routed(engine: Engine, wish: Wish, piece: Piece) -> dict[str, Any]:
    shares = {name: round(share, 4) for name, share in piece.experts.items()}
    return {"router": engine.router_of(wish.model), "adapters": shares}


def _usage(piece: Piece) -> dict[str, int]:
    return {
        "prompt_tokens": piece.prompt_tokens,
        "completion_tokens": piece.answer_tokens,
        "total_tokens": piece.prompt_tokens + piece.answer_tokens,
    }


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def _error(error: RefusedError) -> dict[str, Any]:
    kind = "invalid_request_error" if error.status < 500 else "api_error"
    return {
        "error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    }


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    headers = {"retry-after": "1"} if error.status == 503 else {}
    return JSONResponse(_error(error), status_code=error.status, headers=headers)


async def _no_such_path(request: Request, _: Exception) -> Response:
    error = RefusedError(f"{request.url.path}: no such path; see /v1/models", status=404)
    return JSONResponse(_error(error), status_code=404)


async def _defect(_: Request, error: Exception) -> Response:
    return JSONResponse(
        _error(RefusedError("the server failed; its log says why", status=500)), status_code=500
    )
