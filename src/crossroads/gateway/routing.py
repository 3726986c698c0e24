"""Which expert answers a request: the one it names, or the one a router or policies choose."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from crossroads.core.decision import Decision
from crossroads.core.errors import InputError, UsageError
from crossroads.gateway.errors import ApiError, Headers
from crossroads.prompts.experts.base import last_user_text
from crossroads.prompts.preferences.policies import OTHER, Preferences
from crossroads.prompts.preferences.router import ROUTER, PreferenceRouter

AUTO = "auto"
PREFERENCES = "routing_preferences"  # field of a request that brings its own policies
_LONGEST_REASON = 300  # characters


class Router(Protocol):
    """What the gateway needs of ``crossroads.prompts.fitted.FittedRouter``."""

    def route(self, prompt: str, *, rule: str | None = None, seed: int = 0) -> Decision: ...


@dataclass(frozen=True, slots=True)
class Route:
    """The chosen model, and the decision where a router made one."""

    model: str
    decision: Decision | None = None

    def headers(self) -> Headers:
        """Return the response headers that explain the choice."""
        decision = self.decision
        values: dict[str, str] = {"model": self.model}
        if decision is None:
            values |= {"policy": "direct", "reason": "the request names the model"}
        else:
            values |= {
                "policy": f"{decision.router} {decision.rule}",
                "reason": decision.reason,
                "confidence": f"{decision.confidence:.4f}",
                "decision-id": f"dec_{uuid.uuid4().hex}",
            }
            if decision.router == ROUTER:  # policies say who should answer, not how well
                route = decision.details["route"]
                values["policy"] = f"{ROUTER} {'default' if route == OTHER else route}"
                if route == OTHER:
                    del values["confidence"]
            else:
                values["predicted-quality"] = f"{decision.predicted_quality:.4f}"
            if decision.predicted_cost_usd is not None:
                values["predicted-cost-usd"] = _plain(decision.predicted_cost_usd)
        return [(f"x-crossroads-{name}".encode(), _one_line(text)) for name, text in values.items()]


class Routing:
    """Maps a request's ``model`` to a route.

    ``auto`` asks the policies where there are any and else the router, ``auto:<rule>`` asks the
    router under another decision rule, a model's name takes that model.

    Parameters
    ----------
    models : names that can be asked for
    router : decides for ``auto``; None to offer named models only
    preferences : decides for plain ``auto`` in the router's place
    rule : decision rule in place of the router's own
    """

    def __init__(
        self,
        models: Sequence[str],
        router: Router | None = None,
        *,
        preferences: PreferenceRouter | None = None,
        rule: str | None = None,
    ) -> None:
        self._models = frozenset(models)
        self._router = router
        self._preferences = preferences
        self._rule = rule
        # Decisions take well under a millisecond of processor time but must not hold up the event
        # loop; one thread keeps them in order and needs no router to be safe for more.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="router")

    @property
    def has_router(self) -> bool:
        """Whether ``auto`` can be asked for."""
        return self._router is not None or self._preferences is not None

    @property
    def has_preferences(self) -> bool:
        return self._preferences is not None

    async def route(self, model: str, messages: Any, preferences: Any = None) -> Route:
        """Return where a request goes; ``preferences`` are the request's own policies, if any.

        Raises ApiError: 404 unknown model, 400 unknown rule and malformed preferences.
        """
        if model in self._models:
            return Route(model)
        name, _, rule = model.partition(":")
        if name != AUTO:
            raise ApiError(
                f"The model {model!r} does not exist; GET /v1/models lists those that do.",
                status=404,
                code="model_not_found",
                param="model",
            )
        if self._preferences is not None and not rule:
            return await self._by_policy(self._preferences, messages, preferences)
        if self._router is None and self._preferences is not None:
            raise ApiError(
                f"The decision rule {rule!r} needs a fitted router, and none is loaded; start the "
                "server with --router, or ask for plain 'auto', which the preferences serve.",
                status=404,
                code="model_not_found",
                param="model",
            )
        if self._router is None:
            raise ApiError(
                "No router is loaded, so 'auto' cannot be served; start the server with --router, "
                "or name a model.",
                status=404,
                code="model_not_found",
                param="model",
            )
        text = last_user_text(messages)
        if not text.strip():
            raise ApiError(
                "No message holds text to route by; give the user's message a text, or name a "
                "model in place of 'auto'.",
                param="messages",
            )
        return await self._decide(text, rule or self._rule)

    async def _by_policy(self, router: PreferenceRouter, messages: Any, own: Any) -> Route:
        override = None
        if own is not None:
            try:
                override = Preferences.parse(
                    own, default=router.preferences.default, where=PREFERENCES
                )
            except InputError as error:
                raise ApiError(str(error), param=PREFERENCES) from error
            unknown = [name for name in override.model_names if name not in self._models]
            if unknown:
                raise ApiError(
                    f"{PREFERENCES}: the model {unknown[0]!r} does not exist; "
                    "GET /v1/models lists those that do.",
                    param=PREFERENCES,
                )
        decision = await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: router.decide(messages, override=override)
        )
        return Route(decision.model, decision)

    async def _decide(self, text: str, rule: str | None) -> Route:
        assert self._router is not None
        router = self._router
        loop = asyncio.get_running_loop()
        try:
            decision = await loop.run_in_executor(
                self._thread, lambda: router.route(text, rule=rule)
            )
        except (UsageError, InputError) as error:  # such as a budget below the cheapest model
            raise ApiError(str(error), code="invalid_rule", param="model") from error
        return Route(decision.model, decision)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _plain(value: float) -> str:
    """Write a small number without an exponent."""
    return f"{value:.12f}".rstrip("0").rstrip(".")


def _one_line(text: str) -> bytes:
    """Return text that is safe in a header: printable ASCII on one line."""
    folded = re.sub(r"[^\x20-\x7e]+", " ", text.encode("ascii", "replace").decode("ascii"))
    return " ".join(folded.split())[:_LONGEST_REASON].encode()
