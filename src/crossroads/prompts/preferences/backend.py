"""What chooses a policy: three back ends behind one method.

``matcher``  cosine between the latest intent and the policies' texts
``scorer``   SmolLM2-135M as published, names scored by their likelihood
``tuned``    the same with a low-rank adapter, ``adapter=PATH`` (none ships: none was worth it)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from crossroads.core.errors import UsageError, unknown_name
from crossroads.prompts.preferences.conversation import Turn
from crossroads.prompts.preferences.policies import Policy


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteChoice:
    """A policy's name or ``other``, and what it was chosen by.

    ``scores`` holds every policy and ``other``; higher is better, the scale is the back end's own.
    """

    route: str
    scores: Mapping[str, float]

    @property
    def margin(self) -> float:
        """Lead of the chosen route over the best of the rest, never negative."""
        rest = [score for name, score in self.scores.items() if name != self.route]
        return max(self.scores[self.route] - max(rest), 0.0) if rest else 0.0


class Backend(Protocol):
    """Chooses among policies it has never seen; nothing is fitted to a route set."""

    name: str
    version: str

    def choose(self, policies: Sequence[Policy], turns: Sequence[Turn]) -> RouteChoice: ...


def _matcher() -> Callable[..., Backend]:
    from crossroads.prompts.preferences.matcher import PolicyMatcher

    return PolicyMatcher


def _scorer() -> Callable[..., Backend]:
    from crossroads.prompts.preferences.scorer import load_scorer

    return load_scorer


def _tuned() -> Callable[..., Backend]:
    from crossroads.prompts.preferences.scorer import load_tuned

    return load_tuned


_BACKENDS: dict[str, Callable[[], Callable[..., Backend]]] = {
    "matcher": _matcher,
    "scorer": _scorer,
    "tuned": _tuned,
}


def get_backend(name: str = "matcher", **settings: Any) -> Backend:
    """Return a back end under its settings.

    Raises UsageError for an unknown name or setting, MissingExtraError and UnavailableError where
    what it needs is not installed.
    """
    if name not in _BACKENDS:
        raise unknown_name("preference back end", name, _BACKENDS)
    make = _BACKENDS[name]()
    _check_options(name, make, settings)
    try:
        return make(**settings)
    except TypeError as error:
        raise UsageError(f"preference back end {name!r}: {error}") from None


def _check_options(name: str, make: Callable[..., Backend], settings: Mapping[str, Any]) -> None:
    known = inspect.signature(make).parameters
    for option in settings:
        if option not in known:
            raise UsageError(
                f"option {option!r} is not one of {name}; it takes {', '.join(sorted(known))}; "
                "remove it from preferences.options"
            )
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in settings:
            raise UsageError(
                f"preference back end {name!r} needs option {option!r}; "
                "add it to preferences.options"
            )
