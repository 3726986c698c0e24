"""Requests of the dialect ``responses`` as requests of ``chat``.

Items and tools that have no counterpart (searches, code interpreters, ...) stay as they are: an
upstream of ``chat`` refuses them, and nothing is lost silently. What would change the meaning of a
request without anybody noticing (``background``, ``conversation``, ``prompt``) is refused here.
"""

from __future__ import annotations

from typing import Any

from crossroads.gateway.call import Body
from crossroads.gateway.dialects.reading import (
    as_list,
    as_object,
    as_text,
    parts_of,
    wrong,
)
from crossroads.gateway.errors import ApiError

_ONLY_RESPONSES = frozenset(
    {
        *("background", "context_management", "include", "input", "instructions"),
        *("max_output_tokens", "max_tool_calls", "moderation", "previous_response_id"),
        *("reasoning", "store", "stream_options", "text", "tool_choice", "tools", "truncation"),
    }
)
_REFUSED = ("conversation", "prompt")
_LOGPROBS = "message.output_text.logprobs"
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}


def input_items(body: Body) -> list[Body]:
    """Return the request's own input as a list of items. Raises ApiError 400."""
    given = body.get("input")
    if isinstance(given, str) and given:
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise wrong("input", "a text or a list of at least one item", given)
    return [as_object(item, f"input[{number}]") for number, item in enumerate(given)]


def from_responses_request(body: Body, items: list[Body]) -> Body:
    """Translate a ``responses`` request whose conversation so far is ``items``.

    The bound on output becomes ``max_tokens``, which every server of ``chat`` knows.
    Raises ApiError 400.
    """
    if body.get("background") is True:
        raise ApiError(
            "'background' must be false: answers are not kept running here.", param="background"
        )
    for name in _REFUSED:
        if body.get(name) is not None:
            raise ApiError(f"{name!r} is not supported; send the input itself.", param=name)
    request = {name: value for name, value in body.items() if name not in _ONLY_RESPONSES}
    messages = _messages(items)
    instructions = body.get("instructions")
    if instructions is not None:
        text = as_text(instructions, "instructions")
        messages.insert(0, {"role": "system", "content": text})
    request["messages"] = messages
    if body.get("max_output_tokens") is not None:
        request["max_tokens"] = body["max_output_tokens"]
    _add_reasoning(request, body)
    _add_text(request, body)
    _add_logprobs(request, body)
    if body.get("tools"):
        request["tools"] = [
            _tool(as_object(tool, f"tools[{number}]"), f"tools[{number}]")
            for number, tool in enumerate(as_list(body["tools"], "tools"))
        ]
    if body.get("tool_choice") is not None:
        request["tool_choice"] = _tool_choice(body["tool_choice"])
    return request


def _add_reasoning(request: Body, body: Body) -> None:
    reasoning = body.get("reasoning")
    if reasoning is not None:
        effort = as_object(reasoning, "reasoning").get("effort")
        if effort is not None:
            request["reasoning_effort"] = effort


def _add_text(request: Body, body: Body) -> None:
    text = body.get("text")
    if text is None:
        return
    text = as_object(text, "text")
    if text.get("verbosity") is not None:
        request["verbosity"] = text["verbosity"]
    form = text.get("format")
    if form is None:
        return
    form = as_object(form, "text.format")
    if form.get("type") == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type"}
        request["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif form.get("type") != "text":
        request["response_format"] = form


def _add_logprobs(request: Body, body: Body) -> None:
    include = body.get("include")
    if body.get("top_logprobs") or (isinstance(include, list) and _LOGPROBS in include):
        request["logprobs"] = True


def _tool(tool: Body, param: str) -> Body:
    if tool.get("type") != "function":
        return tool
    function = {name: value for name, value in tool.items() if name != "type" and value is not None}
    as_text(function.get("name"), f"{param}.name")
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, dict) and choice.get("type") == "function" and "name" in choice:
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice


def _messages(items: list[Body]) -> list[Body]:
    """Return the items as messages; calls side by side belong to one message."""
    messages: list[Body] = []
    for number, item in enumerate(items):
        param = f"input[{number}]"
        kind = item.get("type", "message")
        if kind == "message":
            messages.append(_message(item, param))
        elif kind == "function_call":
            _add_call(messages, item, param)
        elif kind == "function_call_output":
            messages.append(_tool_message(item, param))
        elif kind == "item_reference":
            raise ApiError(f"{param!r} refers to an item; send the item itself.", param=param)
        elif kind != "reasoning":  # thoughts of earlier turns are not sent again in chat
            messages.append(item)
    return messages


def _message(item: Body, param: str) -> Body:
    given = item.get("role")
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise ApiError(
            f"'{param}.role' must be user, assistant, system or developer.", param=f"{param}.role"
        )
    content = item.get("content")
    if isinstance(content, str):
        return {"role": role, "content": content}
    parts = parts_of(content, f"{param}.content")
    translated = [_part(part, f"{param}.content[{n}]") for n, part in enumerate(parts)]
    return {"role": role, "content": _simplest(translated)}


def _simplest(parts: list[Body]) -> Any:
    if len(parts) == 1 and parts[0].get("type") == "text":
        return parts[0]["text"]
    return parts


def _part(part: Body, param: str) -> Body:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": as_text(part.get("text"), f"{param}.text")}
    if kind == "refusal":
        return {"type": "text", "text": as_text(part.get("refusal"), f"{param}.refusal")}
    if kind == "input_image" and part.get("image_url") is not None:
        image: Body = {"url": as_text(part["image_url"], f"{param}.image_url")}
        if part.get("detail") is not None:
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    if kind == "input_file":
        names = ("file_id", "file_data", "filename")
        return {"type": "file", "file": {name: part[name] for name in names if name in part}}
    return part


def _add_call(messages: list[Body], item: Body, param: str) -> None:
    function = {
        "name": as_text(item.get("name"), f"{param}.name"),
        "arguments": as_text(item.get("arguments"), f"{param}.arguments"),
    }
    call_id = as_text(item.get("call_id"), f"{param}.call_id")
    call = {"id": call_id, "type": "function", "function": function}
    last = messages[-1] if messages else {}
    if last.get("role") == "assistant":
        last.setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _tool_message(item: Body, param: str) -> Body:
    output = item.get("output")
    if not isinstance(output, str):
        parts = parts_of(output, f"{param}.output")
        output = _simplest([_part(p, f"{param}.output[{n}]") for n, p in enumerate(parts)])
    call_id = as_text(item.get("call_id"), f"{param}.call_id")
    return {"role": "tool", "tool_call_id": call_id, "content": output}
