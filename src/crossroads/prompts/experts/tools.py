"""Tools as experts: a function from a question to an answer, or to nothing where it is not its
trade. A tool answers every question, politely declining most of them, as a language model would."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from crossroads.prompts.experts.base import (
    Chunk,
    Completion,
    Request,
    chunks_of,
    completion,
    last_user_text,
    wants_usage,
)


@dataclass(frozen=True, kw_only=True)
class ToolExpert:
    """Answers with a function. Tools have no tokens: their usage is 0.

    Attributes
    ----------
    name : the model's name in the pool
    answer : from the last user message to the answer, None to decline
    refusal : what is answered instead of None
    """

    name: str
    answer: Callable[[str], str | None]
    refusal: str

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def complete(self, request: Request) -> Completion:
        text = self.answer(last_user_text(request.get("messages")))
        return completion(text or self.refusal, model=self.name)

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        answer = await self.complete(request)
        for chunk in chunks_of(answer, include_usage=wants_usage(request)):
            yield chunk
