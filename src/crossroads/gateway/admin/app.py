"""The admin application: an API and a dashboard, guarded; an ASGI callable."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from crossroads.gateway.admin.access import Access
from crossroads.gateway.admin.api import Api
from crossroads.gateway.admin.assets import Assets
from crossroads.gateway.admin.guard import BodyTooLargeError, Guard, failure
from crossroads.gateway.admin.pages import Pages
from crossroads.gateway.admin.settings import AdminSettings
from crossroads.gateway.admin.sources import AdminSources


def build_admin(sources: AdminSources, settings: AdminSettings | None = None) -> Starlette:
    """Return the admin application.

    It checks tokens itself; that the address it listens on is loopback, or the token set, is
    checked by ``AdminSettings``.
    """
    settings = settings or AdminSettings()
    access = Access(settings)
    return Starlette(
        routes=[
            *Api(sources).routes(),
            *Pages(access).routes(),
            Route("/static/{name}", Assets().answer, methods=["GET"]),
            Route("/health", _alive, methods=["GET"]),
        ],
        middleware=[Middleware(Guard, access, body_limit=settings.body_bytes)],
        exception_handlers={HTTPException: _http_error, BodyTooLargeError: _too_large},
    )


async def _alive(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return failure(error.status_code, "http_error", f"{request.url.path}: {error.detail}.")


def _too_large(_: Request, __: Exception) -> Response:
    return failure(413, "too_large", "The body is larger than admin.body_bytes.")
