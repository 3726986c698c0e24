"""What of a request of ``messages`` reaches servers that are not Anthropic's."""

from __future__ import annotations

import asyncio
from typing import Any

from crossroads.gateway.contracts import Choice, Tally
from crossroads.gateway.dialects import from_messages_request
from crossroads.gateway.engine.foreign import without_foreign
from tests.gateway.engine.running import an_engine
from tests.gateway.engine.scripted import Scripted, a_call, failing

CACHED = {"cache_control": {"type": "ephemeral"}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QQ=="}}
ASKED: dict[str, Any] = {
    "model": "m",
    "max_tokens": 10,
    "top_k": 5,
    "metadata": {"user_id": "u"},
    "system": [{"type": "text", "text": "s", **CACHED}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "look", **CACHED}, IMAGE]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "sig"},
                {"type": "text", "text": "hi"},
            ],
        },
        {"role": "user", "content": [{"type": "text", "text": "go on", **CACHED}]},
    ],
}


def test_what_only_anthropics_servers_take_is_left_out() -> None:
    translated = from_messages_request(ASKED)
    plain = without_foreign(translated)
    said = str(plain)
    assert not any(word in said for word in ("cache_control", "thinking_blocks", "metadata"))
    assert (plain["user"], plain["top_k"]) == ("u", 5)
    system, look, hi, go_on = plain["messages"]
    assert system == {"role": "system", "content": "s"}
    assert [part["type"] for part in look["content"]] == ["text", "image_url"]
    assert hi == {"role": "assistant", "content": "hi"}
    assert go_on == {"role": "user", "content": "go on"}
    assert translated == from_messages_request(ASKED), "others still get all of it"


def test_each_model_gets_what_its_server_takes() -> None:
    others = Scripted("a", failing(500))
    own = Scripted("b", failing(500), speaks=("chat", "messages"))
    engine, _ = an_engine(others, own, Scripted("c"), retries=0)
    call = a_call("messages")
    call.body, call.native = from_messages_request(ASKED), ASKED
    asyncio.run(engine.complete(call, Choice(model="a", fallbacks=("b", "c")), Tally()))
    assert others.orders[0].body == without_foreign(call.body)
    assert own.orders[0].body == ASKED
    assert call.body == from_messages_request(ASKED)
