"""A chat server on loopback whose answers a function of the request decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

from tests.gateway.fake_upstream import FakeUpstream, whole_answer

Reply = Callable[[dict[str, Any]], "str | web.Response"]


class Replies(FakeUpstream):
    """``reply`` maps a request to the answer's text, or to a whole response.

    Attributes
    ----------
    delay : seconds before each answer
    usage : token counts of each answer, None to leave them out
    """

    def __init__(self, reply: Reply, *, delay: float = 0.0) -> None:
        super().__init__()
        self.reply, self.delay = reply, delay
        self.usage: dict[str, int] | None = {"prompt_tokens": 100, "completion_tokens": 10}

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append((dict(request.headers), body))
        await asyncio.sleep(self.delay)
        reply = self.reply(body)
        if isinstance(reply, web.Response):
            return reply
        answer = {**whole_answer(), "usage": self.usage}
        answer["choices"][0]["message"]["content"] = reply
        return web.json_response(answer)

    def asked(self, model: str) -> list[dict[str, Any]]:
        """Return the requests to a model, in order."""
        return [body for _, body in self.requests if body["model"] == model]
