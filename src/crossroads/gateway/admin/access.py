"""Who may use the admin server: a token, sessions of browsers, and no other site's page."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crossroads.gateway.admin.settings import AdminSettings

COOKIE = "crossroads_admin"
_MOST_SESSIONS = 1_000
_MOST_FAILURES = 10  # wrong tokens per minute from one address
_MOST_ADDRESSES = 10_000  # whose wrong tokens are remembered
_WINDOW_S = 60.0
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that logged in, or any browser where there is no token."""

    id: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    expires: float = 0.0


class Access:
    """Checks tokens and keeps sessions, in memory: a restart logs everybody out."""

    def __init__(
        self, settings: AdminSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.has_token = settings.token is not None
        self.session_seconds = round(3600 * settings.session_hours)
        self._digest = _digest((settings.token or "").encode())
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._failures: dict[str, list[float]] = {}  # by address, oldest failure first
        self._hosts = frozenset(name.lower() for name in settings.allowed_hosts)

    def allows_host(self, host: str) -> bool:
        """Whether a Host header is one of ours, so that no other name is bound to our address."""
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        name = name.strip("[]").lower()
        if name in _LOOPBACK_NAMES or name in self._hosts:
            return True
        return self.has_token and not self._hosts

    def is_token(self, given: bytes, address: str) -> bool:
        """Whether this is the token; False for any after too many wrong ones from the address.

        Compares in constant time, whatever the length of what is given.
        """
        if not self.has_token or self.is_locked(address):
            return False
        if hmac.compare_digest(_digest(given), self._digest):
            return True
        recent = self._recent(address)
        self._failures.pop(address, None)
        if len(self._failures) >= _MOST_ADDRESSES:
            del self._failures[next(iter(self._failures))]
        self._failures[address] = [*recent, self._clock()]
        return False

    def is_locked(self, address: str) -> bool:
        """Whether so many wrong tokens came from an address that none of its is looked at."""
        return len(self._recent(address)) >= _MOST_FAILURES

    def _recent(self, address: str) -> list[float]:
        now = self._clock()
        return [at for at in self._failures.get(address, ()) if now - at < _WINDOW_S]

    def log_in(self, given: bytes, address: str) -> Session | None:
        """Return a session for the right token; None for a wrong one or after too many."""
        return self.open_session() if self.is_token(given, address) else None

    def open_session(self) -> Session:
        """Return a new session; the oldest goes where there are too many."""
        now = self._clock()
        self._sessions = {i: s for i, s in self._sessions.items() if s.expires > now}
        while len(self._sessions) >= _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session = Session(expires=now + self.session_seconds)
        self._sessions[session.id] = session
        return session

    def session(self, identity: str) -> Session | None:
        """Return the session of a cookie, if it has not ended."""
        found = self._sessions.get(identity)
        return found if found is not None and found.expires > self._clock() else None

    def log_out(self, session: Session) -> None:
        self._sessions.pop(session.id, None)


def address_of(scope: Mapping[str, Any]) -> str:
    """Return where an ASGI request comes from; "" for a socket that has no addresses.

    Of IPv6 the network alone counts: one host has as many addresses of it as it likes.
    """
    host = str((scope.get("client") or ("",))[0])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address) >> 64 << 64, 64)))


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
