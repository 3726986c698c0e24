"""What a failure asks for: the same model again, another one, or the client's own attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NoReturn

from crossroads.gateway.contracts import JUDGED, Attempt
from crossroads.prompts.experts.base import ExpertError

Remedy = Literal["retry", "fallback", "refuse"]
Side = Literal["model", "client", "gateway"]

_CLIENTS_FAULT = frozenset({400, 413, 415, 422})
_NOT_FOUND = 404
_QUEUE_FULL = "upstream_queue_full"  # our own bound on calls to the model
_NOT_MENDED_BY_TIME = frozenset({"upstream_refused", _QUEUE_FULL})
_OVERFLOW = ("context length", "context_length", "context window", "context size", "too long")


def remedy(error: ExpertError) -> Remedy:
    """Return what may help: ``retry`` the same model, ``fallback`` to another, or ``refuse``.

    Refused is what is wrong with the request itself. A model that is unknown upstream, or a key
    that is refused there, is the upstream's own trouble: waiting does not mend it, another model
    may. Where our own queue is full, whoever waited in it would only make it longer.
    """
    if error.status in _CLIENTS_FAULT:
        return "refuse"
    if error.can_be_retried and error.code not in _NOT_MENDED_BY_TIME:
        return "retry"
    return "fallback"


def blame(error: ExpertError) -> Side:
    """Return whom the failure speaks against; only the ``model`` pays for it with its breaker."""
    if error.status in _CLIENTS_FAULT:
        return "client"
    return "gateway" if error.code == _QUEUE_FULL else "model"


def lacks_api(error: ExpertError) -> bool:
    """Whether the server may not have the API it was asked in: its path, or that model on it."""
    return error.status == _NOT_FOUND and error.code != "model_not_found"


def is_overflow(error: ExpertError) -> bool:
    """Whether the prompt was longer than the model's context.

    Few servers say so by a code, so known words of their messages count, too.
    """
    if error.status not in _CLIENTS_FAULT:
        return False
    message = f"{error.code} {error.type} {error}".lower()
    return any(words in message for words in _OVERFLOW)


def fail(attempts: Sequence[Attempt], last: ExpertError) -> NoReturn:
    """Raise the error for the client when nothing is left to try: the last, and the count."""
    tried = [attempt.model for attempt in attempts if attempt.code != JUDGED]
    if len(tried) < 2:
        raise last
    models = dict.fromkeys(tried)
    raise ExpertError(
        f"{len(tried)} attempts failed ({', '.join(models)}); the last: {last}",
        status=last.status,
        type=last.type,
        code=last.code,
        param=last.param,
        retry_after=last.retry_after,
    ) from last
