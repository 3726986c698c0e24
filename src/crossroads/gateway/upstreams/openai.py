"""Endpoints that speak OpenAI's API: vLLM, llama.cpp, Ollama, TGI, vendors."""

from __future__ import annotations

from crossroads.gateway.upstreams.http import Api

OPENAI = Api(
    paths={
        "chat": "chat/completions",
        "completions": "completions",
        "embeddings": "embeddings",
        "responses": "responses",
        "messages": "messages",  # several of these servers have Anthropic's API beside OpenAI's
    },
    usual=frozenset({"chat", "completions", "embeddings"}),
    passed_on=frozenset(
        {
            *(b"traceparent", b"tracestate", b"idempotency-key", b"x-request-id"),
            *(b"openai-organization", b"openai-project", b"openai-beta"),
        }
    ),
    key_header=lambda key: ("authorization", f"Bearer {key}"),
    defaults={},
)
"""Asked at ``{endpoint}/chat/completions`` and so on, with a bearer token."""
