"""The gateway's API as an OpenAPI 3.1 document.

Requests list the fields that the gateway itself relies on; all others pass through to the model, so
no schema forbids them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crossroads import __version__

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": ["boolean", "null"]}
_OBJECT: Schema = {"type": "object"}
_MESSAGES: Schema = {"type": "array", "minItems": 1, "items": {"type": "object"}}
_OPENAI_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ANTHROPIC_ERROR: Schema = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": _TEXT, "message": _TEXT},
        },
        "request_id": _TEXT,
    },
}
_ERRORS = {
    "400": "a field is wrong, or no eligible model is left",
    "401": "no key, or a wrong one",
    "403": "the key may not ask for this",
    "404": "no such model, policy or path",
    "405": "another method is due",
    "408": "the request came too slowly",
    "409": "a first request with this Idempotency-Key still runs",
    "413": "the body is too large",
    "422": "the Idempotency-Key was used with another request",
    "429": "a limit or a budget is used up; see retry-after",
    "500": "a defect of the gateway",
    "502": "every model that was tried failed",
    "503": "no model can be reached, or all are busy",
    "504": "no model answered in time",
    "529": "Anthropic's word for 503",
}


def document(names: Sequence[str]) -> Schema:
    """Return the document; ``names`` are the models and policies that can be asked for."""
    model: Schema = {"type": "string", "minLength": 1, "examples": list(names)[:3]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "crossroads gateway",
            "version": __version__,
            "description": "Routes requests to models, behind the APIs of OpenAI and Anthropic.",
        },
        "security": [{"bearer": []}, {"key": []}],
        "paths": {
            "/v1/chat/completions": _prompted(
                "Answer a chat", {"model": model, "messages": _MESSAGES}, "chat.completion"
            ),
            "/v1/completions": _prompted(
                "Continue a text",
                {"model": model, "prompt": {"type": ["string", "array"]}},
                "text_completion",
            ),
            "/v1/responses": _prompted(
                "Create a response",
                {"model": model, "input": {"type": ["string", "array"]}},
                "response",
            ),
            "/v1/embeddings": _prompted(
                "Embed texts", {"model": model, "input": {"type": ["string", "array"]}}, "list"
            ),
            "/v1/messages": _prompted(
                "Answer messages", {"model": model, "messages": _MESSAGES}, "", _ANTHROPIC_ERROR
            ),
            "/v1/messages/count_tokens": _post(
                "Estimate the tokens of messages",
                {"model": model, "messages": _MESSAGES},
                {
                    "type": "object",
                    "required": ["input_tokens"],
                    "properties": {"input_tokens": {"type": "integer", "minimum": 0}},
                },
                error=_ANTHROPIC_ERROR,
            ),
            "/v1/responses/{id}": {
                "get": _operation("A stored response", _OBJECT, parameters=[_path("id")]),
                "delete": _operation("Forget a stored response", _OBJECT, parameters=[_path("id")]),
            },
            "/v1/responses/{id}/input_items": {
                "get": _operation("What it answered", _listed(), parameters=[_path("id")])
            },
            "/v1/models": {"get": _operation("Models and policies", _listed())},
            "/v1/models/{id}": {
                "get": _operation("One of them", _OBJECT, parameters=[_path("id")])
            },
            "/v1/feedback": _post(
                "Judge an answer by its decision id",
                {
                    "decision_id": _TEXT,
                    "score": {"type": "number", "minimum": 0, "maximum": 1},
                    "source": _TEXT,
                    "comment": _TEXT,
                },
                _OBJECT,
                required=["decision_id"],
            ),
            "/v1/decisions/{id}": {
                "get": _operation("The record of one's own call", _OBJECT, parameters=[_path("id")])
            },
            "/health": {"get": _operation("This process lives", _OBJECT, is_open=True)},
            "/health/ready": {
                "get": _operation("It can serve, and how its parts are", _OBJECT, is_open=True)
            },
            "/version": {"get": _operation("The version of crossroads", _OBJECT, is_open=True)},
            "/metrics": {"get": _operation("Prometheus metrics", _TEXT, media="text/plain")},
        },
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            }
        },
    }


def _prompted(
    summary: str, properties: Schema, object_name: str, error: Schema = _OPENAI_ERROR
) -> Schema:
    """Return a path that answers JSON or, where asked so, a stream of events."""
    answer: Schema = {"type": "object"}
    if object_name:
        answer["properties"] = {"object": {"const": object_name}}
    required = list(properties)
    path = _post(summary, {**properties, "stream": _FLAG}, answer, required=required, error=error)
    content = path["post"]["responses"]["200"]["content"]
    content["text/event-stream"] = {"schema": {}}
    return path


def _post(
    summary: str,
    properties: Schema,
    answer: Schema,
    *,
    required: Sequence[str] | None = None,
    error: Schema = _OPENAI_ERROR,
) -> Schema:
    body = {
        "type": "object",
        "required": list(properties) if required is None else list(required),
        "properties": properties,
    }
    operation = _operation(summary, answer, error=error)
    operation["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": body}},
    }
    return {"post": operation}


def _operation(
    summary: str,
    answer: Schema,
    *,
    parameters: Sequence[Schema] = (),
    is_open: bool = False,
    media: str = "application/json",
    error: Schema = _OPENAI_ERROR,
) -> Schema:
    failures = {
        status: {
            "description": text,
            "content": {"application/json": {"schema": error}},
        }
        for status, text in _ERRORS.items()
    }
    operation: Schema = {
        "summary": summary,
        "parameters": list(parameters),
        "responses": {
            "200": {"description": "done", "content": {media: {"schema": answer}}},
            **failures,
        },
    }
    if is_open:
        operation["security"] = []
    return operation


def _path(name: str) -> Schema:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
    }


def _listed() -> Schema:
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "array", "items": {"type": "object"}}},
    }
