"""What a scorer is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from crossroads.core.errors import InputError

Scorer = Callable[[str, Sequence[str]], float]  # (answer, references) -> score in [0, 1]


class ScoringError(InputError):
    """An answer could not be scored; its cell stays without a score, which is not a score of 0."""
