"""What is told of a stream that broke and was continued."""

from __future__ import annotations

import asyncio
import json

from crossroads.gateway.call import Call
from crossroads.gateway.contracts import Choice, Record
from crossroads.gateway.exchange import Message
from crossroads.gateway.policies import PoliciesSettings, compile_policies
from crossroads.prompts.pool import ModelCard, Pool
from tests.gateway.engine.scripted import TEXT, Scripted, Step, cut
from tests.gateway.serving import gateway_of


class Rows:
    """A ledger in memory."""

    def __init__(self) -> None:
        self.found: list[Record] = []

    def append(self, record: Record) -> None:
        self.found.append(record)


class Falling:
    """A policy that has ``a`` asked, and ``b`` where that fails."""

    def __init__(self) -> None:
        pool = Pool(models=(ModelCard(name="a"), ModelCard(name="b")))
        self._policies = compile_policies(PoliciesSettings(), pool)
        self.names = self._policies.names

    async def choose(self, call: Call, *, cost_price: float = 0.0) -> Choice:
        return Choice(model="a", fallbacks=("b",), policy="p", labels={"canary": "base"})


def asked(*upstreams: Scripted) -> tuple[Record, dict[bytes, bytes], bytes]:
    """Stream one answer; return the record, the response's headers, and its body."""
    rows, sent = Rows(), []
    gateway = gateway_of({one.name: one for one in upstreams}, ledger=rows)
    gateway.services.policies = Falling()
    messages = [{"role": "user", "content": "?"}]
    body = json.dumps({"model": "p", "messages": messages, "stream": True}).encode()
    path = "/v1/chat/completions"
    scope = {"type": "http", "method": "POST", "path": path, "headers": []}

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(gateway(scope, receive, send))
    (record,) = rows.found
    return record, dict(sent[0]["headers"]), b"".join(part["body"] for part in sent[1:])


def test_the_record_names_who_ended_a_continued_stream_and_all_who_wrote_it() -> None:
    record, headers, body = asked(Scripted("a", cut(1)), Scripted("b"))
    assert (record.chosen, record.model, record.is_complete) == ("a", "b", True)
    assert record.labels == {"canary": "base", "continued": "a, b"}
    assert headers[b"x-crossroads-model"] == b"a"
    chunks = [json.loads(line[6:]) for line in body.split(b"\n\n") if line.startswith(b"data: {")]
    assert {chunk["model"] for chunk in chunks} == {"a"}
    said = (c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert "".join(said) == TEXT and body.endswith(b"data: [DONE]\n\n")


def test_a_stream_in_one_piece_has_no_such_label() -> None:
    record, _, _ = asked(Scripted("a", Step()), Scripted("b"))
    assert (record.model, record.labels) == ("a", {"canary": "base"})
