"""A request and its response without messages, for a server of ours that has both at hand."""

from __future__ import annotations

from typing import Protocol

KEY = "crossroads.direct"  # in the scope of a request whose server can do this

_Headers = list[tuple[bytes, bytes]]


class Direct(Protocol):
    """Most requests are whole when they are looked at, and most responses when they are sent.

    Then ASGI's messages, two coroutines for either, are most of what reading and sending cost.
    """

    def take_whole(self) -> bytes | None:
        """Return the request's body; None where it has to be received by messages."""
        ...

    def send_whole(self, status: int, headers: _Headers, body: bytes) -> bool:
        """Send a response whose headers tell the length of its body.

        False where it has to be sent by messages; nothing was sent then.
        """
        ...
