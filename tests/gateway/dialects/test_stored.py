from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from crossroads.gateway.call import Client
from crossroads.gateway.dialects import MemoryStore, Stored, StoredResponses
from crossroads.gateway.errors import ApiError

ME, OTHER = Client(key_id="me"), Client(key_id="other")
ITEMS: list[dict[str, Any]] = [
    {"type": "message", "role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"type": "function_call_output", "call_id": "c", "output": "three"},
]


@pytest.fixture
def stored() -> StoredResponses:
    store = MemoryStore(max_bytes=10_000, ttl_s=60)
    store.put("me", Stored({"id": "resp_1", "status": "completed"}, ITEMS))
    return StoredResponses(store)


def ask(
    stored: StoredResponses,
    path: str,
    method: str = "GET",
    query: bytes = b"",
    client: Client = ME,
) -> dict[str, Any]:
    answer: dict[str, Any] = orjson.loads(asyncio.run(stored.answer(method, path, query, client)))
    return answer


def test_a_response_is_fetched_and_deleted(stored: StoredResponses) -> None:
    assert ask(stored, "resp_1") == {"id": "resp_1", "status": "completed"}
    gone = ask(stored, "resp_1", "DELETE")
    assert gone == {"id": "resp_1", "object": "response", "deleted": True}
    with pytest.raises(ApiError) as raised:
        ask(stored, "resp_1")
    assert raised.value.status == 404


@pytest.mark.parametrize(
    ("request_line", "client", "status"),
    [
        ("GET resp_2", ME, 404),
        ("DELETE resp_2", ME, 404),
        ("GET resp_1", OTHER, 404),
        ("DELETE resp_1", OTHER, 404),
        ("GET resp_1/input_items", OTHER, 404),
        ("POST resp_1/cancel", OTHER, 404),
        ("POST resp_1/cancel", ME, 400),
        ("POST resp_1", ME, 405),
        ("GET resp_1/cancel", ME, 405),
        ("GET resp_1/else", ME, 404),
        ("GET resp_1?stream=true", ME, 400),
        ("GET resp_1/input_items?limit=0", ME, 400),
        ("GET resp_1/input_items?limit=101", ME, 400),
        ("GET resp_1/input_items?limit=%C2%B2", ME, 400),
        ("GET resp_1/input_items?order=up", ME, 400),
        ("GET resp_1/input_items?after=nobody", ME, 400),
        ("GET ", ME, 404),
    ],
)
def test_what_is_wrong_has_its_status(
    stored: StoredResponses, request_line: str, client: Client, status: int
) -> None:
    method, _, target = request_line.partition(" ")
    path, _, query = target.partition("?")
    with pytest.raises(ApiError) as raised:
        ask(stored, path, method, query.encode(), client)
    assert raised.value.status == status


def test_input_items_come_in_pages_newest_first(stored: StoredResponses) -> None:
    first = ask(stored, "resp_1/input_items", query=b"limit=2")
    assert [item["type"] for item in first["data"]] == ["function_call_output", "message"]
    assert first["has_more"] and first["first_id"] == first["data"][0]["id"]
    rest = ask(stored, "resp_1/input_items", query=f"after={first['last_id']}".encode())
    assert not rest["has_more"]
    assert rest["data"][0]["content"] == [{"type": "input_text", "text": "one"}]


def test_the_order_may_be_turned(stored: StoredResponses) -> None:
    page = ask(stored, "resp_1/input_items", query=b"order=asc")
    kinds = [item["type"] for item in page["data"]]
    assert kinds == ["message", "message", "function_call_output"]
    assert page["data"][1]["content"][0]["type"] == "output_text"


def test_without_a_store_nothing_is_found() -> None:
    with pytest.raises(ApiError) as raised:
        ask(StoredResponses(None), "resp_1")
    assert raised.value.status == 404
