"""What a failing upstream means to the gateway's client, and whether it may cost something."""

from __future__ import annotations

from typing import Any

from crossroads.gateway.vocabulary import SpentError
from crossroads.prompts.experts.failures import ExpertFailures


class Failures(ExpertFailures):
    """Makes the errors of one upstream; those of work that was begun are ``SpentError``."""

    __slots__ = ()

    def spent(self, what: str, **fields: Any) -> SpentError:
        """Return an error of a call that the upstream had whole, and may bill.

        ``usage`` among the fields: what it told of its work.
        """
        return SpentError(f"{self.where}: {self.clean(what)}", **fields)

    def cut(self) -> SpentError:
        return self.spent("the stream broke off", code="upstream_cut")

    def empty(self) -> SpentError:
        return self.spent("the stream was empty", code="upstream_empty")

    def late(self) -> SpentError:
        return self.spent("no whole answer in time", status=504, code="upstream_timeout")
