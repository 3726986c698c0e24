"""Parts of messages between the dialects ``chat`` and ``messages``: text, media, tool calls."""

from __future__ import annotations

from typing import Any

import orjson

from crossroads.gateway.call import Body
from crossroads.gateway.dialects.reading import (
    as_list,
    as_object,
    as_text,
    json_object,
    parts_of,
    wrong,
)
from crossroads.gateway.errors import ApiError

_THINKING = ("thinking", "redacted_thinking")
_FAILED = "The tool failed: "


def user_blocks(message: Body, param: str) -> list[Body]:
    """Return the blocks of a ``chat`` message of a user or a tool. Raises ApiError 400."""
    if message.get("role") != "user":
        return [_tool_result(message, param)]
    return _blocks(message.get("content"), f"{param}.content")


def answer_blocks(message: Body, param: str) -> list[Body]:
    """Return the blocks of a ``chat`` message of the assistant.

    Thinking goes back only as it came, in ``thinking_blocks``: without its signature the API
    refuses it. Raises ApiError 400.
    """
    blocks: list[Body] = []
    thinking = message.get("thinking_blocks")
    if isinstance(thinking, list):
        blocks += [b for b in thinking if isinstance(b, dict) and b.get("type") in _THINKING]
    blocks += _blocks(message.get("content"), f"{param}.content")
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        blocks.append({"type": "text", "text": refusal})
    calls = as_list(message.get("tool_calls") or [], f"{param}.tool_calls")
    for number, call in enumerate(calls):
        where = f"{param}.tool_calls[{number}]"
        function = as_object(as_object(call, where).get("function"), f"{where}.function")
        blocks.append(
            {
                "type": "tool_use",
                "id": call.get("id"),
                "name": function.get("name"),
                "input": json_object(function.get("arguments") or "", f"{where}.arguments"),
            }
        )
    return blocks


def _tool_result(message: Body, param: str) -> Body:
    content = message.get("content")
    result: Body = {"type": "tool_result", "tool_use_id": message.get("tool_call_id")}
    result["content"] = (
        content if isinstance(content, str) else _blocks(content, f"{param}.content")
    )
    return result


def _blocks(content: Any, param: str) -> list[Body]:
    blocks = []
    for number, part in enumerate(parts_of(content, param)):
        block = _block(part, f"{param}[{number}]")
        if block.get("text") != "":  # the API refuses empty texts
            blocks.append(block)
    return blocks


def _block(part: Body, param: str) -> Body:
    kind = part.get("type", "text")
    if kind == "text":
        return {**part, "type": "text", "text": as_text(part.get("text"), f"{param}.text")}
    if kind == "refusal":
        return {"type": "text", "text": as_text(part.get("refusal"), f"{param}.refusal")}
    if kind == "image_url":
        image = part.get("image_url")
        url = image if isinstance(image, str) else as_object(image, f"{param}.image_url").get("url")
        return _with_cache({"type": "image", "source": _source(url, param)}, part)
    if kind == "file":
        return _with_cache(_document(as_object(part.get("file"), f"{param}.file"), param), part)
    if kind == "input_audio":
        raise ApiError(f"{param!r} is audio, which this model does not take.", param=param)
    return part  # of the other API, by a client that knows it


def _with_cache(block: Body, part: Body) -> Body:
    if "cache_control" in part:
        block["cache_control"] = part["cache_control"]
    return block


def _document(file: Body, param: str) -> Body:
    data = file.get("file_data")
    if data is None:
        source: Body = {"type": "file", "file_id": file.get("file_id")}
    else:
        source = _source(data, f"{param}.file_data")
    document: Body = {"type": "document", "source": source}
    if isinstance(file.get("filename"), str):
        document["title"] = file["filename"]
    return document


def _source(url: Any, param: str) -> Body:
    url = as_text(url, param)
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    head, comma, data = url.removeprefix("data:").partition(",")
    media, _, encoding = head.partition(";")
    if not comma or not media or not encoding.endswith("base64"):
        raise wrong(param, "an URL, or data:MEDIA/TYPE;base64,DATA", url)
    return {"type": "base64", "media_type": media, "data": data}


def chat_messages(message: Body, param: str) -> list[Body]:
    """Return the ``chat`` messages of one turn of ``messages``. Raises ApiError 400."""
    role = message.get("role")
    if role not in ("user", "assistant", "system"):
        raise ApiError(f"'{param}.role' must be user or assistant.", param=f"{param}.role")
    blocks = parts_of(message.get("content"), f"{param}.content")
    if role == "assistant":
        return [_assistant(blocks, f"{param}.content")]
    if role == "user":
        return _user(blocks, f"{param}.content")
    return [{"role": role, "content": [_part(b, f"{param}.content") for b in blocks]}]


def _user(blocks: list[Body], param: str) -> list[Body]:
    """Tool results become messages of their own, before the text that came with them."""
    messages: list[Body] = []
    parts: list[Body] = []
    for number, block in enumerate(blocks):
        where = f"{param}[{number}]"
        if block.get("type") == "tool_result":
            messages.append(_tool_message(block, where))
        else:
            parts.append(_part(block, where))
    if parts or not messages:
        messages.append({"role": "user", "content": _simplest(parts)})
    return messages


def _tool_message(block: Body, param: str) -> Body:
    parts = [_part(p, param) for p in parts_of(block.get("content"), f"{param}.content")]
    call = as_text(block.get("tool_use_id"), f"{param}.tool_use_id")
    if block.get("is_error") is True:  # chat has no field for it: the model is told in words
        parts = [{"type": "text", "text": _FAILED}, *parts]
        if all(part.keys() == {"type", "text"} and part["type"] == "text" for part in parts):
            parts = [{"type": "text", "text": "".join(part["text"] for part in parts)}]
    return {"role": "tool", "tool_call_id": call, "content": _simplest(parts)}


def _simplest(parts: list[Body]) -> Any:
    """Write one plain text as a string, as most clients of ``chat`` do."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"} and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts


def _assistant(blocks: list[Body], param: str) -> Body:
    parts: list[Body] = []
    calls: list[Body] = []
    thinking: list[Body] = []
    for number, block in enumerate(blocks):
        where = f"{param}[{number}]"
        kind = block.get("type")
        if kind == "tool_use":
            calls.append(tool_call(block, where))
        elif kind in _THINKING:
            thinking.append(block)
        else:
            parts.append(_part(block, where))
    message: Body = {"role": "assistant", "content": _simplest(parts) if parts else None}
    if calls:
        message["tool_calls"] = calls
    elif not parts:
        message["content"] = ""
    if thinking:
        message["thinking_blocks"] = thinking
    return message


def tool_call(block: Body, param: str) -> Body:
    """Return the ``chat`` tool call of a ``tool_use`` block. Raises ApiError 400."""
    given = block.get("input")
    called = as_object({} if given is None else given, f"{param}.input")
    try:
        arguments = orjson.dumps(called).decode()
    except orjson.JSONEncodeError:
        raise wrong(f"{param}.input", "an object nested less deeply", called) from None
    function = {"name": as_text(block.get("name"), f"{param}.name"), "arguments": arguments}
    return {"id": as_text(block.get("id"), f"{param}.id"), "type": "function", "function": function}


def _part(block: Body, param: str) -> Body:
    kind = block.get("type", "text")
    if kind == "text":
        as_text(block.get("text"), f"{param}.text")
        return block
    if kind == "image":
        url = data_url(as_object(block.get("source"), f"{param}.source"), param)
        return {"type": "image_url", "image_url": {"url": url}}
    if kind == "document":
        return _file(block, param)
    return block  # left to the upstream


def _file(block: Body, param: str) -> Body:
    source = as_object(block.get("source"), f"{param}.source")
    if source.get("type") == "text":
        return {"type": "text", "text": as_text(source.get("data"), f"{param}.source.data")}
    if source.get("type") == "file":
        return {"type": "file", "file": {"file_id": source.get("file_id")}}
    file: Body = {"file_data": data_url(source, param)}
    if isinstance(block.get("title"), str):
        file["filename"] = block["title"]
    return {"type": "file", "file": file}


def data_url(source: Body, param: str) -> str:
    """Return the URL that says the same as a ``source``. Raises ApiError 400."""
    if source.get("type") == "url":
        return as_text(source.get("url"), f"{param}.source.url")
    if source.get("type") != "base64":
        raise ApiError(f"'{param}.source.type' must be base64 or url.", param=param)
    media = as_text(source.get("media_type"), f"{param}.source.media_type")
    return f"data:{media};base64,{as_text(source.get('data'), f'{param}.source.data')}"
