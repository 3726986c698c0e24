"""Endpoints that speak OpenAI's API: vLLM, llama.cpp, Ollama, TGI, vendors."""

from __future__ import annotations

from crossroads.gateway.upstreams.http import Api
from crossroads.prompts.experts.headers import bearer

OPENAI = Api(
    paths={
        "chat": "chat/completions",
        "completions": "completions",
        "embeddings": "embeddings",
        "responses": "responses",
        "messages": "messages",  # several of these servers have Anthropic's API beside OpenAI's
    },
    usual=frozenset({"chat", "completions", "embeddings"}),
    foreign=frozenset({b"anthropic-version", b"anthropic-beta"}),
    key_header=bearer,
    defaults={},
)
"""Asked at ``{endpoint}/chat/completions`` and so on, with a bearer token."""
