"""Write text with a routed model, a token at a time, with its cache.

Routers that need a first pass of the base model (X-LoRA) read all tokens at every step instead.

Axes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossroads.adapters.base_models import BaseModel
from crossroads.adapters.calls import calling
from crossroads.adapters.contract import Router
from crossroads.core.errors import InputError

_UNFINISHED = "\ufffd"  # what a tokenizer writes for the first bytes of a letter


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Attributes
    ----------
    temperature : 0 = the likeliest token
    top_p : only the likeliest tokens that make up this probability are drawn from
    seed : of the draws; None = another one every time
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise InputError(f"temperature: expected a number in [0, 2], got {self.temperature!r}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p: expected a number in (0, 1], got {self.top_p!r}")


def generate(
    base: BaseModel,
    router: Router,
    ids: Sequence[int],
    *,
    most: int,
    sampling: Sampling | None = None,
    facts: Mapping[str, Any] | None = None,
    ends: Set[int] | None = None,
) -> Iterator[int]:
    """Yield the tokens that follow ``ids``, at most ``most``, without one that ends the answer.

    Raises InputError for a prompt without tokens, or one that fills the model's context.

    Parameters
    ----------
    base : its model has ``router`` and the experts in it
    facts : arguments of ``calling`` about the one sequence
    ends : tokens that end an answer; None = the model's own
    """
    if not ids:
        raise InputError("the prompt has no tokens; give some text")
    if len(ids) >= base.context:
        raise InputError(
            f"the prompt has {len(ids)} tokens, the model reads {base.context}; shorten it"
        )
    sampling = sampling or Sampling()
    ends = base.ends if ends is None else ends
    draw = torch.Generator()
    draw.manual_seed(torch.seed() if sampling.seed is None else sampling.seed)
    uses_cache = not router.looks_ahead
    read, cache = list(ids), None
    new = read
    model: Any = base.model
    for _ in range(min(most, base.context - len(ids))):
        with torch.inference_mode(), calling(**(facts or {})):
            out = model(
                input_ids=torch.tensor([new if uses_cache else read]),
                past_key_values=cache,
                use_cache=uses_cache,
                logits_to_keep=1,
            )
            token = _next(out.logits[0, -1], sampling, draw)
        if token in ends:
            return
        cache = out.past_key_values if uses_cache else None
        new = [token]
        read.append(token)
        yield token


def _next(logits_V: Tensor, sampling: Sampling, draw: torch.Generator) -> int:
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    p_V = torch.softmax(logits_V.float() / sampling.temperature, -1)
    sorted_V, order_V = p_V.sort(descending=True, stable=True)
    is_beyond_V = sorted_V.cumsum(-1) - sorted_V >= sampling.top_p
    sorted_V = sorted_V.masked_fill(is_beyond_V, 0.0)
    return int(order_V[torch.multinomial(sorted_V, 1, generator=draw)])


class TextStream:
    """Tokens in, text out, as soon as it cannot change any more.

    Letters of several tokens come whole, and nothing comes that could be the beginning of a text in
    ``stops``; ``is_stopped`` once one of them was written, which is left out.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stop for stop in stops if stop)
        self._ids: list[int] = []
        self._start = self._read = 0  # what was decoded before: context for spaces between words
        self._held = ""
        self.is_stopped = False

    def add(self, token: int) -> str:
        """Return the text that a token makes certain."""
        self._ids.append(token)
        before = self._tokenizer.decode(self._ids[self._start : self._read])
        text = self._tokenizer.decode(self._ids[self._start :])
        if text.endswith(_UNFINISHED) or len(text) <= len(before):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._certain(text[len(before) :])

    def finish(self) -> str:
        """Return what was held back, at the end."""
        rest = "" if self.is_stopped else self._held
        self._held = ""
        return rest

    def _certain(self, text: str) -> str:
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            said, self._held, self.is_stopped = self._held[: min(found)], "", True
            return said
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        said, self._held = self._held[:cut], self._held[cut:]
        return said


def _overlap(text: str, stop: str) -> int:
    """Return how many of the last letters of ``text`` are the first of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
