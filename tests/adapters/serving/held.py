"""A tokenizer that keeps an answer from being written on, until it is let go."""

from __future__ import annotations

import threading
from typing import Any


class Held:
    """Waits for ``go_on`` before it decodes the second token; ``has_begun`` once it waits."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.encode = inner, inner.encode
        self.decoded, self.has_begun, self.go_on = 0, threading.Event(), threading.Event()

    def decode(self, ids: list[int]) -> str:
        if len(ids) > 1:
            self.decoded += 1
            self.has_begun.set()
            assert self.go_on.wait(60)
        said: str = self._inner.decode(ids)
        return said
