"""The dashboard's pages: rendered on the server, filled by the scripts of ``static``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from urllib.parse import parse_qs

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from crossroads import __version__
from crossroads.gateway.admin.access import COOKIE, Access, Session, address_of
from crossroads.gateway.admin.guard import failure


@dataclass(frozen=True, slots=True)
class View:
    """One page of the dashboard; its template and its script have its name."""

    name: str
    path: str
    title: str
    lead: str


VIEWS = (
    View("traffic", "/", "Traffic", "What is asked, who answers, and what it costs."),
    View("routing", "/routing", "Routing", "Quality against cost, and where the router stands."),
    View("decisions", "/decisions", "Decisions", "Recent calls, and why each went where it went."),
    View("upstreams", "/upstreams", "Upstreams", "Health of every model behind the gateway."),
    View("budgets", "/budgets", "Budgets", "Money by period, and the pace it is spent at."),
    View("keys", "/keys", "Keys", "Who may ask, and for what."),
    View("playground", "/playground", "Playground", "Ask, and see who answers and why."),
    View("system", "/system", "System", "Health of the parts, drift, regret, configuration."),
)


class Pages:
    """Handlers of everything a browser opens."""

    def __init__(self, access: Access) -> None:
        self._access = access

        for view in VIEWS:
            _templates().get_template(f"{view.name}.html")  # compiled now, not between two calls

    def routes(self) -> list[Route]:
        return [
            *(Route(view.path, self._show(view), methods=["GET"]) for view in VIEWS),
            Route("/login", self._login_form, methods=["GET"]),
            Route("/login", self._log_in, methods=["POST"]),
            Route("/logout", self._log_out, methods=["POST"]),
        ]

    def _show(self, view: View) -> Callable[[Request], Awaitable[Response]]:
        async def show(request: Request) -> Response:
            session: Session | None = request.scope["session"]
            response_session = session or self._access.open_session()
            page = _templates().get_template(f"{view.name}.html")
            response = HTMLResponse(
                page.render(
                    view=view,
                    views=VIEWS,
                    csrf=response_session.csrf,
                    has_token=self._access.has_token,
                    version=__version__,
                )
            )
            if session is None:
                self._set_cookie(request, response, response_session)
            return response

        return show

    async def _login_form(self, request: Request) -> Response:
        if not self._access.has_token or request.scope["session"] is not None:
            return RedirectResponse("/", 303)
        return self._login_page(request.query_params.get("next", "/"))

    async def _log_in(self, request: Request) -> Response:
        form = parse_qs((await request.body()).decode("utf-8", "replace"))
        token = form.get("token", [""])[0].encode()
        session = self._access.log_in(token, address_of(request.scope))
        target = form.get("next", ["/"])[0]
        if session is None:
            return self._login_page(target, failed=True)
        response = RedirectResponse(target if target in _PATHS else "/", 303)
        self._set_cookie(request, response, session)
        return response

    async def _log_out(self, request: Request) -> Response:
        session: Session | None = request.scope["session"]
        if session is None:
            return failure(401, "unauthorized", "There is no session to end.")
        self._access.log_out(session)
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    def _login_page(self, target: str, *, failed: bool = False) -> Response:
        page = _templates().get_template("login.html")
        target = target if target in _PATHS else "/"
        return HTMLResponse(
            page.render(target=target, failed=failed, version=__version__), 403 if failed else 200
        )

    def _set_cookie(self, request: Request, response: Response, session: Session) -> None:
        response.set_cookie(
            COOKIE,
            session.id,
            max_age=self._access.session_seconds,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )


_PATHS = frozenset(view.path for view in VIEWS)


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("crossroads.gateway.admin"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
