"""A router that can be asked, for one call, for one expert instead of its own choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from crossroads.adapters.bank import AdapterBank
from crossroads.adapters.contract import Call, Mode, RouteInput, Router, Routing
from crossroads.adapters.routers.named import Named
from crossroads.adapters.scopes import Scope


def openable(inner: Router, bank: AdapterBank) -> Router:
    """Return ``inner``, which gives way to ``calling(experts=[...])``.

    Routers that merge experts by other means than weights cannot give way and come back as they
    are, see ``gives_way``.
    """
    if not gives_way(inner, bank):
        return inner

    class Openable(Router):
        name: ClassVar[str] = inner.name
        mode: ClassVar[Mode] = inner.mode
        scope: ClassVar[Scope] = inner.scope
        artifacts: ClassVar[frozenset[str]] = inner.artifacts
        call_data: ClassVar[frozenset[str]] = frozenset()  # checked by the inner router

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.named = inner, Named()

        def prepare(self, bank: AdapterBank) -> None:
            self.inner.prepare(bank)
            self.named.prepare(bank)

        def route(self, given: RouteInput) -> Routing:
            chosen: Router = self.inner if given.call.experts is None else self.named
            return chosen.route(given)

        def ahead(self, call: Call, hidden: Callable[[], Tensor]) -> Call:
            return self.inner.ahead(call, hidden) if call.experts is None else call

        @property
        def looks_ahead(self) -> bool:
            return self.inner.looks_ahead

        def is_static(self, call: Call) -> bool:
            return call.experts is not None or self.inner.is_static(call)

        def settings(self) -> Mapping[str, Any]:
            return self.inner.settings()

    return Openable()


def gives_way(router: Router, bank: AdapterBank) -> bool:
    """Return whether a router decides by weights, and not itself by the experts it is told."""
    first = next(iter(bank.layers.values()))
    return "experts" not in router.call_data and router.merged(first) is None
