"""Requests between the dialects ``chat`` and ``messages``.

What has no counterpart on the other side is left out (``seed``, ``logit_bias``, penalties, ...)
where the answer stays an answer to what was asked, and refused where it would not (``n`` > 1,
audio). Fields neither side knows pass through.
"""

from __future__ import annotations

from typing import Any

from crossroads.gateway.call import GATEWAY_FIELDS, Body
from crossroads.gateway.dialects.messages_content import (
    answer_blocks,
    chat_messages,
    user_blocks,
)
from crossroads.gateway.dialects.reading import (
    as_list,
    as_object,
    as_text,
    parts_of,
    wrong,
)
from crossroads.gateway.errors import ApiError

DEFAULT_MAX_TOKENS = 4096  # the API demands a bound; clients of ``chat`` need not give one

_ONLY_CHAT = GATEWAY_FIELDS | {
    *("audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs"),
    *("max_completion_tokens", "max_tokens", "messages", "metadata", "modalities", "n"),
    *("parallel_tool_calls", "prediction", "presence_penalty", "prompt_cache_key"),
    *("reasoning_effort", "response_format", "safety_identifier", "seed", "service_tier", "stop"),
    *("store", "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "user"),
    *("verbosity", "web_search_options"),
}
_ONLY_MESSAGES = frozenset(
    {
        *("container", "context_management", "inference_geo", "mcp_servers", "messages"),
        *("metadata", "output_config", "service_tier", "speed", "stop_sequences", "stream"),
        *("system", "thinking", "tool_choice", "tools"),
    }
)
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh"}
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}


def to_messages_request(body: Body) -> Body:
    """Translate a ``chat`` request into a ``messages`` request.

    Raises ApiError 400 for what the API cannot be asked.
    """
    if body.get("n") not in (None, 1):
        raise wrong("n", "1 for this model", body["n"])
    if body.get("functions"):
        raise ApiError("'functions' must be given as 'tools' for this model.", param="functions")
    request = {name: value for name, value in body.items() if name not in _ONLY_CHAT}
    system, messages = _conversation(as_list(body.get("messages"), "messages"))
    request["messages"] = messages
    if system:
        request["system"] = system
    request["max_tokens"] = (
        body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_MAX_TOKENS
    )
    temperature = body.get("temperature")
    if isinstance(temperature, int | float):
        request["temperature"] = min(temperature, 1)  # the API's range ends there
    stop = body.get("stop")
    if stop:
        request["stop_sequences"] = [stop] if isinstance(stop, str) else as_list(stop, "stop")
    _add_tools(request, body)
    _add_output(request, body)
    user = _user(body)
    if user is not None:
        request["metadata"] = {"user_id": user}
    return request


def _user(body: Body) -> str | None:
    metadata = body.get("metadata")
    named = metadata.get("user_id") if isinstance(metadata, dict) else None
    for user in (named, body.get("user"), body.get("safety_identifier")):
        if isinstance(user, str) and user:
            return user
    return None


def _add_output(request: Body, body: Body) -> None:
    """Add effort and schema, which both are ``output_config`` there."""
    output: Body = {}
    effort = body.get("reasoning_effort")
    if isinstance(effort, str) and effort in _EFFORTS:
        output["effort"] = _EFFORTS[effort]
    form = body.get("response_format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        schema = as_object(form.get("json_schema"), "response_format.json_schema")
        output["format"] = {"type": "json_schema", "schema": schema.get("schema") or {}}
    if output:
        given = request.get("output_config")
        request["output_config"] = {**output, **(given if isinstance(given, dict) else {})}


def _add_tools(request: Body, body: Body) -> None:
    tools = body.get("tools")
    if tools:
        request["tools"] = [
            _tool(as_object(tool, f"tools[{number}]"), f"tools[{number}]")
            for number, tool in enumerate(as_list(tools, "tools"))
        ]
    choice = _tool_choice(body.get("tool_choice"))
    if tools and body.get("parallel_tool_calls") is False:
        choice = choice or {"type": "auto"}
        if choice["type"] != "none":
            choice["disable_parallel_tool_use"] = True
    if choice:
        request["tool_choice"] = choice


def _tool(tool: Body, param: str) -> Body:
    if "function" not in tool:  # a tool of the other API, by a client that knows it
        return tool
    function = as_object(tool["function"], f"{param}.function")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    translated = {"name": function.get("name"), "input_schema": parameters}
    for name in ("description", "strict"):
        if function.get(name) is not None:
            translated[name] = function[name]
    if "cache_control" in tool:
        translated["cache_control"] = tool["cache_control"]
    return translated


def _tool_choice(choice: Any) -> Body | None:
    if choice is None:
        return None
    if isinstance(choice, str) and choice in _CHOICES:
        return {"type": _CHOICES[choice]}
    if isinstance(choice, dict):
        function = choice.get("function")
        if choice.get("type") == "function" and isinstance(function, dict):
            return {"type": "tool", "name": as_text(function.get("name"), "tool_choice")}
    raise ApiError(
        "'tool_choice' must be 'auto', 'required', 'none' or a function for this model.",
        param="tool_choice",
    )


def _conversation(messages: list[Any]) -> tuple[list[Body], list[Body]]:
    """Return the system blocks and the turns: neighbours of one role are one turn there."""
    system: list[Body] = []
    turns: list[Body] = []
    for number, entry in enumerate(messages):
        param = f"messages[{number}]"
        message = as_object(entry, param)
        role = message.get("role")
        if role in ("system", "developer"):
            system += _texts(message.get("content"), f"{param}.content")
            continue
        if role == "assistant":
            blocks = answer_blocks(message, param)
        elif role in ("user", "tool", "function"):
            role, blocks = "user", user_blocks(message, param)
        else:
            raise ApiError(
                f"'{param}.role' must be system, developer, user, assistant or tool.",
                param=f"{param}.role",
            )
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    _trim_prefill(turns)
    return system, turns


def _trim_prefill(turns: list[Body]) -> None:
    """Drop white space at the end of an answer to be continued: the API refuses it there."""
    if not turns or turns[-1]["role"] != "assistant":
        return
    content = turns[-1]["content"]
    while content and content[-1].get("type") == "text":
        last = content.pop()
        text = last["text"].rstrip()
        if text:
            content.append({**last, "text": text})
            return
    if not content:
        turns.pop()


def _texts(content: Any, param: str) -> list[Body]:
    blocks = []
    for part in parts_of(content, param):
        text = as_text(part.get("text"), param)
        if text:  # the API refuses empty ones
            blocks.append({**part, "type": "text", "text": text})
    return blocks


def from_messages_request(body: Body) -> Body:
    """Translate a ``messages`` request into a ``chat`` request.

    ``thinking`` and tools that run at the vendor have no counterpart: the first is left out, the
    second are refused. Raises ApiError 400.
    """
    request = {name: value for name, value in body.items() if name not in _ONLY_MESSAGES}
    system = _texts(body.get("system"), "system")
    messages: list[Body] = []
    if system:
        plain = all(block.keys() == {"type", "text"} for block in system)
        content: Any = "\n\n".join(block["text"] for block in system) if plain else system
        messages.append({"role": "system", "content": content})
    for number, entry in enumerate(as_list(body.get("messages"), "messages")):
        param = f"messages[{number}]"
        messages += chat_messages(as_object(entry, param), param)
    request["messages"] = messages
    if body.get("stream") is not None:
        request["stream"] = body["stream"]
    if body.get("stop_sequences"):
        request["stop"] = as_list(body["stop_sequences"], "stop_sequences")
    _add_functions(request, body)
    _add_format(request, body)
    metadata = body.get("metadata")
    if metadata is not None:
        metadata = as_object(metadata, "metadata")
        request["metadata"] = metadata
        if isinstance(metadata.get("user_id"), str):
            request["user"] = metadata["user_id"]
    return request


def _add_functions(request: Body, body: Body) -> None:
    tools = body.get("tools")
    if tools:
        request["tools"] = [
            _function(as_object(tool, f"tools[{number}]"), f"tools[{number}]")
            for number, tool in enumerate(as_list(tools, "tools"))
        ]
    given = body.get("tool_choice")
    if given is None:
        return
    choice = as_object(given, "tool_choice")
    back = {there: here for here, there in _CHOICES.items()}
    name = choice.get("type")
    if name == "tool":
        called = as_text(choice.get("name"), "tool_choice.name")
        request["tool_choice"] = {"type": "function", "function": {"name": called}}
    elif isinstance(name, str) and name in back:
        request["tool_choice"] = back[name]
    else:
        raise ApiError(
            "'tool_choice.type' must be auto, any, none or tool.", param="tool_choice.type"
        )
    if choice.get("disable_parallel_tool_use") is True:
        request["parallel_tool_calls"] = False


def _function(tool: Body, param: str) -> Body:
    if tool.get("type", "custom") not in ("custom", None) and "input_schema" not in tool:
        return tool  # runs at the vendor: only an upstream of that API can
    function = {
        "name": as_text(tool.get("name"), f"{param}.name"),
        "parameters": tool.get("input_schema") or {"type": "object", "properties": {}},
    }
    for name in ("description", "strict"):
        if tool.get(name) is not None:
            function[name] = tool[name]
    return {"type": "function", "function": function}


def _add_format(request: Body, body: Body) -> None:
    output = body.get("output_config")
    if output is None:
        return
    output = as_object(output, "output_config")
    effort = output.get("effort")
    if isinstance(effort, str):
        request["reasoning_effort"] = "xhigh" if effort == "max" else effort
    form = output.get("format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        schema = {"name": "answer", "schema": form.get("schema") or {}, "strict": True}
        request["response_format"] = {"type": "json_schema", "json_schema": schema}


__all__ = ["DEFAULT_MAX_TOKENS", "from_messages_request", "to_messages_request"]
