"""The baseline that asks a language model which expert to take, shown the model cards.

The paper asked GPT-3.5 Turbo; here any expert that chats can be asked, for instance
``crossroads.prompts.experts.smollm.SmolLM`` (extra ``local``).
"""

from __future__ import annotations

import asyncio
import re
import string
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.core.progress import Progress
from crossroads.prompts.experts.base import Expert, content_text
from crossroads.prompts.pool import Pool

NO_ANSWER = -1
_INSTRUCTION = "Pick the model that suits a text best. Reply with its letter and nothing else."


def choose_by_asking(
    expert: Expert, pool: Pool, texts: Sequence[str], progress: Progress | None = None
) -> npt.NDArray[np.intp]:
    """Return the expert named for each text, shape (N,), ``NO_ANSWER`` where none can be read.

    Raises InputError for more than 26 experts, what the expert raises when it cannot start or
    answer.
    """
    if len(pool) > len(string.ascii_uppercase):
        raise InputError(
            f"asking for a letter works with up to 26 experts, the pool has {len(pool)}"
        )
    return asyncio.run(_ask(expert, pool, texts, progress))


async def _ask(
    expert: Expert, pool: Pool, texts: Sequence[str], progress: Progress | None
) -> npt.NDArray[np.intp]:
    await expert.start()
    try:
        choice_N = np.full(len(texts), NO_ANSWER, dtype=np.intp)
        for n, text in enumerate(texts):
            answer = await expert.complete(_request(pool, text))
            choice_N[n] = _read(content_text(answer["choices"][0]["message"].get("content")), pool)
            if progress:
                progress(n + 1, len(texts))
        return choice_N
    finally:
        await expert.close()


def _request(pool: Pool, text: str) -> dict[str, object]:
    lettered = zip(string.ascii_uppercase, pool, strict=False)
    cards = "\n".join(f"{letter}. {card.name}: {card.description}" for letter, card in lettered)
    question = f"Models:\n{cards}\n\nText:\n{text}\n\nLetter of the best model:"
    return {
        "messages": [
            {"role": "system", "content": _INSTRUCTION},
            {"role": "user", "content": question},
        ],
        "max_tokens": 8,
        "temperature": 0,
    }


def _read(answer: str, pool: Pool) -> int:
    """Return the expert of the first letter or name in the answer."""
    found = re.search(r"\b([A-Z])\b", answer)
    if found and (letter := string.ascii_uppercase.index(found.group(1))) < len(pool):
        return letter
    named = [(answer.find(name), k) for k, name in enumerate(pool.names) if name in answer]
    return min(named)[1] if named else NO_ANSWER
