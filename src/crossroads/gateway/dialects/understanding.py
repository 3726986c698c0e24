"""Upstreams answer what they like: what cannot be read as an answer is the upstream's failure."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from crossroads.gateway.vocabulary import SpentError

_P = ParamSpec("_P")
_T = TypeVar("_T")
# What plain code raises when it meets a text where an object should be, and the like. Checking
# every field of every event instead would cost more than all the rest of a stream.
_MISREAD = (AttributeError, TypeError, KeyError, IndexError, ValueError)


def reads_answers(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make a function that reads answers raise SpentError 502 for what is no answer."""

    @wraps(function)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except _MISREAD as error:
            raise SpentError(
                f"The upstream's answer is malformed ({type(error).__name__}: {error}).",
                status=502,
                code="upstream_invalid",
            ) from error

    return guarded
