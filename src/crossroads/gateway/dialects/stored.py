"""The paths below ``/v1/responses/{id}``: fetch, delete, list the input, cancel."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import orjson

from crossroads.gateway.call import Body, Client
from crossroads.gateway.dialects.responses_store import ResponsesStore, Stored
from crossroads.gateway.errors import ApiError

_DEFAULT_PAGE, _LARGEST_PAGE = 20, 100


class StoredResponses:
    """Answers requests about responses given before; every client sees its own only.

    =============================  =========================================================
    GET    {id}                    the response
    DELETE {id}                    forget it
    GET    {id}/input_items        what it answered; ``limit``, ``order`` and ``after``
    POST   {id}/cancel             400: nothing runs in the background here
    =============================  =========================================================

    Parameters
    ----------
    store : where they are; None where none are kept
    """

    def __init__(self, store: ResponsesStore | None) -> None:
        self._store = store

    async def answer(self, method: str, path: str, query: bytes, client: Client) -> bytes:
        """Return the JSON for ``path``, which is what follows ``/v1/responses/``.

        Raises ApiError: 404 for what is not there, 405, 400 for a query that is wrong.
        """
        id, _, rest = path.partition("/")
        allowed = {"": ("GET", "DELETE"), "input_items": ("GET",), "cancel": ("POST",)}.get(rest)
        if allowed is None:
            raise ApiError(f"Unknown path /v1/responses/{path}.", status=404, code="unknown_url")
        if method not in allowed:
            raise ApiError(
                f"/v1/responses/{path} takes {' or '.join(allowed)}, got {method}.",
                status=405,
                code="method_not_allowed",
                headers=[(b"allow", ", ".join(allowed).encode())],
            )
        if method == "DELETE":
            return await self._delete(id, client)
        stored = await self._find(id, client)
        if rest == "cancel":
            raise ApiError(
                "Only responses created with 'background' can be cancelled.",
                code="cannot_cancel",
                param="response_id",
            )
        given = parse_qs(query.decode("latin-1"))
        if rest == "input_items":
            return orjson.dumps(_page(stored, given))
        if given.get("stream", ["false"])[-1].lower() == "true":
            raise ApiError("A stored response cannot be streamed again.", param="stream")
        return orjson.dumps(stored.response)

    async def _find(self, id: str, client: Client) -> Stored:
        stored = None if self._store is None else await self._store.get(client.key_id, id)
        if stored is None:
            raise _not_found(id)
        return stored

    async def _delete(self, id: str, client: Client) -> bytes:
        if self._store is None or not await self._store.delete(client.key_id, id):
            raise _not_found(id)
        return orjson.dumps({"id": id, "object": "response", "deleted": True})


def _not_found(id: str) -> ApiError:
    return ApiError(
        f"Response with id {id[:100]!r} not found.",
        status=404,
        code="response_not_found",
        param="response_id",
    )


def _page(stored: Stored, query: dict[str, list[str]]) -> Body:
    """Return a page of the input, the newest item first unless ``order`` says ``asc``."""
    tag = str(stored.response.get("id", ""))[-16:]
    items = [_listed(item, f"{tag}{number}") for number, item in enumerate(stored.items)]
    order = query.get("order", ["desc"])[-1]
    if order not in ("asc", "desc"):
        raise ApiError("'order' must be 'asc' or 'desc'.", param="order")
    if order == "desc":
        items.reverse()
    after = query.get("after", [""])[-1]
    if after:
        places = [number for number, item in enumerate(items) if item["id"] == after]
        if not places:
            raise ApiError(f"'after': no item {after[:100]!r}.", param="after")
        items = items[places[0] + 1 :]
    limit = query.get("limit", [str(_DEFAULT_PAGE)])[-1]
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= _LARGEST_PAGE):
        raise ApiError(f"'limit' must be a number from 1 to {_LARGEST_PAGE}.", param="limit")
    page = items[: int(limit)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > len(page),
    }


def _listed(item: Body, tag: str) -> Body:
    """Return an item with an id, and its text as a list of parts, as the API lists it."""
    listed: dict[str, Any] = {"type": "message", **item}
    prefix = "msg" if listed["type"] == "message" else "item"
    listed.setdefault("id", f"{prefix}_{tag}")
    content = listed.get("content")
    if listed["type"] == "message" and isinstance(content, str):
        kind = "output_text" if listed.get("role") == "assistant" else "input_text"
        listed["content"] = [{"type": kind, "text": content}]
    return listed
