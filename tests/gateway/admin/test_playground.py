from __future__ import annotations

import asyncio
from typing import Any

from crossroads.gateway.admin import AdminSources, build_admin, in_process


async def echo(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    headers = dict(scope["headers"])
    sent = [(b"X-Seen", headers.get(b"authorization", b"nobody"))]
    await send({"type": "http.response.start", "status": 201, "headers": sent})
    await send({"type": "http.response.body", "body": message["body"][:3], "more_body": True})
    await send({"type": "http.response.body", "body": message["body"][3:]})


def test_it_sends_the_body_and_the_key_and_gives_back_the_whole_reply() -> None:
    reply = asyncio.run(in_process(echo)(b"question", "sk-1"))
    assert (reply.status, reply.body) == (201, b"question")
    assert reply.headers == {"x-seen": "Bearer sk-1"}


def test_without_a_key_none_is_sent() -> None:
    assert asyncio.run(in_process(echo)(b"", "")).headers == {"x-seen": "nobody"}


def test_the_asgi_application_it_drives_may_be_any() -> None:
    reply = asyncio.run(in_process(build_admin(AdminSources()))(b"{}", ""))
    assert reply.status == 421  # the admin server itself refuses the host it is asked by
