"""Who may use the admin server: a token, sessions of browsers, and no other site's page."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from crossroads.gateway.admin.settings import AdminSettings

COOKIE = "crossroads_admin"
_MOST_SESSIONS = 1_000
_MOST_FAILURES = 10  # wrong tokens per minute, of everybody together
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
        self._failures: list[float] = []
        self._hosts = frozenset(name.lower() for name in settings.allowed_hosts)

    def allows_host(self, host: str) -> bool:
        """Whether a Host header is one of ours, so that no other name is bound to our address."""
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        name = name.strip("[]").lower()
        if name in _LOOPBACK_NAMES or name in self._hosts:
            return True
        return self.has_token and not self._hosts

    def is_token(self, given: bytes) -> bool:
        """Compare with the token in constant time, whatever the length of what is given."""
        return self.has_token and hmac.compare_digest(_digest(given), self._digest)

    def log_in(self, given: bytes) -> Session | None:
        """Return a session for the right token; None for a wrong one or after too many."""
        now = self._clock()
        self._failures = [at for at in self._failures if now - at < 60]
        if len(self._failures) >= _MOST_FAILURES:
            return None
        if self.is_token(given):
            return self.open_session()
        self._failures.append(now)
        return None

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


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
