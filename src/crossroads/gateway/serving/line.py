"""What a connection tells of its client's leaving, at once and for nothing while it stays."""

from __future__ import annotations

from collections.abc import Callable

KEY = "crossroads.line"  # in the scope of every request of a connection that has one


class Line:
    """One per connection, for the one request that is being answered.

    Attributes
    ----------
    is_cut : whether the connection is lost
    on_cut : called once when it is lost; set while a response is under way
    """

    __slots__ = ("is_cut", "on_cut")

    def __init__(self) -> None:
        self.is_cut = False
        self.on_cut: Callable[[], None] | None = None

    def cut(self) -> None:
        """The connection is lost."""
        self.is_cut = True
        on_cut, self.on_cut = self.on_cut, None
        if on_cut is not None:
            on_cut()
