"""Errors as OpenAI's clients understand them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import orjson

from crossroads.core.errors import CrossroadsError
from crossroads.prompts.experts.base import ExpertError

Headers = list[tuple[bytes, bytes]]

_LONGEST_WAIT_S = 86_400  # that a client is told to wait
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class ApiError(CrossroadsError):
    """A request that gets an error object for an answer.

    Attributes
    ----------
    status : HTTP status
    type, code, param : fields of OpenAI's error object; the type follows from the status
    headers : added to the response
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        default = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.type = type or _TYPES.get(status, default)
        self.code = code
        self.param = param
        self.headers = list(headers)

    @property
    def body(self) -> bytes:
        """``{"error": {...}}``, for a response or an event."""
        fields = {
            "message": str(self),
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return orjson.dumps({"error": fields})


def from_expert(error: ExpertError) -> ApiError:
    """Return what the gateway's client is told when an expert fails."""
    headers: Headers = []
    if error.retry_after is not None:
        seconds = math.ceil(min(max(error.retry_after, 0.0), _LONGEST_WAIT_S))
        headers.append((b"retry-after", b"%d" % seconds))
    return ApiError(
        str(error),
        status=error.status,
        type=error.type,
        code=error.code,
        param=error.param,
        headers=headers,
    )


def internal_error() -> ApiError:
    """Return what a client is told of a defect of ours; nothing that a defect says is passed on."""
    failure = "The server failed on this request; its log says why."
    return ApiError(failure, status=500, code="internal_error")


def stopping() -> ApiError:
    """Return what a client is told whose answer the end of the server cuts short."""
    return ApiError("The server stops; ask again.", status=503, code="server_stopping")
