"""Stands before the admin application: hosts, tokens, sessions, forgery, headers."""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossroads.gateway.admin.access import COOKIE, Access, Session, address_of

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer, forms would send origin: null
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_OPEN_PATHS = frozenset({"/health", "/login"})
_SAFE = frozenset({"GET", "HEAD"})


class Guard:
    """ASGI middleware. The application finds the ``Session``, or None, in ``scope["session"]``.

    A request is let in by ``Authorization: Bearer TOKEN`` or by a session's cookie; without a token
    everybody on this machine is. What changes something needs, besides, the session's token in
    ``x-csrf-token``; only clients that are no browsers (a bearer, or neither cookie nor origin) do
    without.
    """

    def __init__(self, app: ASGIApp, access: Access, *, body_limit: int) -> None:
        self._app = app
        self._access = access
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    sent[name] = value
                sent.setdefault("cache-control", "no-store")
            await send(message)

        session = self._session(headers)
        scope["session"] = session
        refused = self._refuse(scope, headers, session)
        if refused is None:
            await self._app(scope, _Bounded(receive, self._body_limit), send_safely)
        else:
            await refused(scope, receive, send_safely)

    def _session(self, headers: Headers) -> Session | None:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return None
        return None if cookie is None else self._access.session(cookie.value)

    def _refuse(self, scope: Scope, headers: Headers, session: Session | None) -> Response | None:
        """Return what a request that is not let in is told."""
        refused = self._refuse_shape(headers)
        path: str = scope["path"]
        if refused is not None or path in _OPEN_PATHS or path.startswith("/static/"):
            return refused
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            address = address_of(scope)
            if self._access.is_token(token.strip().encode(), address):
                return None
            if self._access.has_token and self._access.is_locked(address):
                return failure(429, "too_many_failures", "Too many wrong tokens; wait a minute.")
        if self._access.has_token and session is None:
            return _ask_for_token(scope)
        if scope["method"] in _SAFE or _proves_intent(headers, session):
            return None
        return failure(403, "csrf", "The header x-csrf-token is missing or wrong; reload the page.")

    def _refuse_shape(self, headers: Headers) -> Response | None:
        if not self._access.allows_host(headers.get("host", "")):
            return failure(421, "unknown_host", "This host name is not in admin.allowed_hosts.")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._body_limit:
            return failure(413, "too_large", f"Bodies have at most {self._body_limit} bytes.")
        if not is_same_origin(headers):
            return failure(403, "other_origin", "Pages of other sites may not do this.")
        return None


def _proves_intent(headers: Headers, session: Session | None) -> bool:
    """Whether one of our pages sent this, or a client that is no browser."""
    if session is None:
        return not headers.get("origin") and not headers.get("cookie")
    given = headers.get("x-csrf-token", "")
    return hmac.compare_digest(given.encode(), session.csrf.encode())


def failure(status: int, code: str, message: str) -> JSONResponse:
    """Return an error in the API's shape."""
    body = {"error": {"message": message, "code": code, "status": status}}
    return JSONResponse(body, status)


def is_same_origin(headers: Headers) -> bool:
    """Whether a browser says that one of our own pages asks, or that no page does."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        return False
    site = headers.get("sec-fetch-site", "none")
    # Following a link to a page of ours is no forgery: it changes nothing.
    return site in {"none", "same-origin"} or headers.get("sec-fetch-mode") == "navigate"


def _ask_for_token(scope: Scope) -> Response:
    path: str = scope["path"]
    if path.startswith("/api/") or path == "/metrics" or scope["method"] not in _SAFE:
        response = failure(401, "unauthorized", "Send the header 'Authorization: Bearer TOKEN'.")
        response.headers["www-authenticate"] = "Bearer"
        return response
    return RedirectResponse(f"/login?next={quote(path)}", 303)


class BodyTooLargeError(Exception):
    """A body without a stated length grew beyond the limit."""


class _Bounded:
    """A ``receive`` that stops at so many bytes."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._left = limit

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise BodyTooLargeError
        return message
