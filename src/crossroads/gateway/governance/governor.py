"""Keys, limits and budgets of a running gateway."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from crossroads.core.errors import InputError
from crossroads.gateway.call import ANYBODY, Call, Client
from crossroads.gateway.contracts import Grant
from crossroads.gateway.governance.clerk import Clerk, LeasedMeters
from crossroads.gateway.governance.entries import Entries
from crossroads.gateway.governance.grant import FreeGrant, MeteredGrant, Plan
from crossroads.gateway.governance.keyfile import KeyFile
from crossroads.gateway.governance.keys import Keyring
from crossroads.gateway.governance.keystore import FileKeyStore, KeyStore
from crossroads.gateway.governance.meters import LocalMeters, Meter
from crossroads.gateway.governance.periods import SteadyClock
from crossroads.gateway.governance.plans import Holders
from crossroads.gateway.governance.prices import PriceBook
from crossroads.gateway.governance.refusals import (
    foreign_page,
    is_local,
    limit_headers,
    not_allowed,
    too_many,
)
from crossroads.gateway.governance.report import holder_row, key_row
from crossroads.gateway.governance.settings import GovernanceSettings, KeySettings
from crossroads.gateway.governance.stores import open_store
from crossroads.gateway.governance.upkeep import Upkeep
from crossroads.gateway.governance.watch import FileWatch
from crossroads.gateway.remote import safe_url

logger = logging.getLogger(__name__)

_FREE = FreeGrant()
_SHARED = ("store", "on_store_failure", "lease_ttl_s", "block_share")  # settings of the counts
_MOST_TOLD = 3  # problems that the health spells out


class KeyGovernor:
    """Implements ``contracts.Governor``. Without keys everybody is let in, without limits.

    ``start`` before the first request, ``close`` last.

    Raises InputError for keys of the settings that do not fit together and for files that cannot
    be read.

    Parameters
    ----------
    settings : section ``governance``
    api_key : the server's single key, known as ``default``; None without
    prices : reread while serving, where they have a file; by default those of ``prices_file``
    clock : tells the periods of budgets and when keys expire
    kept : what the file of keys held when it was last right, for one that no longer is

    Attributes
    ----------
    entries : of the file of keys, as last read
    on_read : called when keys or prices were read anew
    key_problems : why keys of the file are refused, a line each; the others are in force
    """

    def __init__(
        self,
        settings: GovernanceSettings,
        *,
        api_key: str | None = None,
        prices: PriceBook | None = None,
        clock: SteadyClock | None = None,
        kept: Entries | None = None,
    ) -> None:
        self.settings = settings
        self.prices = PriceBook(file=settings.prices_file) if prices is None else prices
        self._clock = clock or SteadyClock()
        self._fixed = settings.keys
        if api_key is not None:
            single = KeySettings.model_construct(name="default", secret=api_key)
            self._fixed = (single, *self._fixed)
        self._file = None if settings.keys_file is None else KeyFile(settings.keys_file)
        self._watch = None if self._file is None else FileWatch(self._file.path)
        self._file_problem = ""
        self.key_problems: tuple[str, ...] = ()
        self._output_tokens = settings.output_tokens
        self._clerk: Clerk | None = None
        if settings.store != "memory":
            self._clerk = Clerk(
                open_store(settings.store),
                ttl_s=settings.lease_ttl_s,
                block_share=settings.block_share,
                is_open=settings.on_store_failure == "open",
            )
        maker = LocalMeters(self._clock)
        self._holders = Holders(
            maker if self._clerk is None else LeasedMeters(self._clerk, self._clock)
        )
        self._upkeep = Upkeep(self._clock, lambda: self._holders.budgets, self._reread)
        self._is_running = False
        self.on_read: Callable[[], None] = lambda: None
        self._install(self._first_entries(kept))

    # --- per request ---

    def identify(self, headers: Mapping[bytes, bytes]) -> Client:
        """Return who asks. Raises ApiError 401 for no key, a wrong, disabled or expired one.

        Without keys everybody on this machine is let in, but no page of another site that a
        browser on this machine shows: 403.
        """
        if self._is_open:
            if b"origin" in headers and not is_local(headers[b"origin"]):
                raise foreign_page()
            return ANYBODY
        return self._ring.find(headers, self._clock.now())

    async def admit(self, call: Call) -> Grant:
        """Count the call against every limit of its key and team. Raises ApiError 403, 429, 503."""
        client = call.client
        allowed = client.models
        if (
            allowed is not None
            and call.model not in allowed
            and call.model.partition(":")[0] not in allowed  # a rule; policies know what is a model
        ):
            raise not_allowed(call)
        plan = self._plans.get(client.key_id)
        if plan is None:
            return _FREE
        now = time.monotonic_ns()
        tokens = 0
        if plan.tokens:
            output = call.max_output_tokens
            tokens = call.input_tokens + (self._output_tokens if output is None else output)
        grant = MeteredGrant(plan, call.dialect, tokens)
        for meter in plan.counted:
            if not meter.take(1, now):
                await _ask(meter, 1, grant, call)
            grant.num_counted += 1
        for meter in plan.tokens:
            if not meter.take(tokens, now):
                await _ask(meter, tokens, grant, call)
            grant.num_tokens += 1
        return grant

    # --- life ---

    async def start(self) -> None:
        """Reach the store, where there is one, and begin the upkeep. A store that is not there
        is tried again and again; meanwhile ``on_store_failure`` holds."""
        if self._is_running:
            return
        self._is_running = True
        if self._clerk is not None:
            await self._clerk.start()
        self._upkeep.start(None if self._clerk is None else self._clerk.store)

    async def close(self) -> None:
        """Give back what is on lease. Safe to repeat."""
        if not self._is_running:
            return
        self._is_running = False
        self._upkeep.stop()
        if self._clerk is not None:
            await self._clerk.close()

    def adopt(self, earlier: KeyGovernor) -> bool:
        """Go on with the counts of the governor that served until now, under these settings.

        For a reload: afterwards this one is running and the earlier one must neither be asked nor
        closed. False, and nothing is done, where the counts are kept elsewhere now: then start this
        one, and close the earlier one when its last call is over.
        """
        mine, other = self.settings, earlier.settings
        if any(getattr(mine, name) != getattr(other, name) for name in _SHARED):
            return False
        self._clerk, self._holders, self._clock = earlier._clerk, earlier._holders, earlier._clock
        self._upkeep = Upkeep(self._clock, lambda: self._holders.budgets, self._reread)
        self._build()
        if earlier._is_running:
            earlier._upkeep.stop()
            earlier._is_running = False
            self._is_running = True
            self._upkeep.start(None if self._clerk is None else self._clerk.store)
        return True

    # --- for people ---

    @property
    def is_open(self) -> bool:
        """Whether everybody is let in, for want of keys."""
        return self._is_open

    @property
    def key_store(self) -> KeyStore:
        """Keys, to be listed, made and revoked while serving."""
        return FileKeyStore(
            self._file,
            fixed=self._fixed,
            reload=self._reload_keys,
            rows=self._rows,
            teams=lambda: frozenset(self.settings.teams),
        )

    def describe(self) -> dict[str, Any]:
        """Return plain data: keys (never secrets), teams, their limits and budgets, the store."""
        now = self._clock.now()
        holders = self._holders
        return {
            "open": self._is_open,
            "store": self._store(),
            "keys": [row | holder_row(holders.keys[row["name"]], now) for row in self._rows()],
            "teams": [
                {"name": name, **holder_row(holder, now)} for name, holder in holders.teams.items()
            ],
        }

    def health(self) -> dict[str, Any]:
        """Return ``status`` (ok, degraded, failing) and, where it is not ok, ``problem``."""
        store = self._store()
        if not store["reachable"]:
            is_open = self.settings.on_store_failure == "open"
            status = "degraded" if is_open else "failing"
            return {"status": status, "problem": f"store of limits: {store['problem']}"}
        problems = [*self.key_problems, self.prices.problem]
        problems = [problem for problem in (self._file_problem, *problems) if problem]
        if not problems:
            return {"status": "ok"}
        more = len(problems) - _MOST_TOLD
        told = [*problems[:_MOST_TOLD], *([f"and {more} more"] if more > 0 else [])]
        return {"status": "degraded", "problem": "; ".join(told)}

    def _store(self) -> dict[str, Any]:
        if self._clerk is None:
            return {"url": "memory", "reachable": True, "problem": ""}
        return {"url": safe_url(self.settings.store), **self._clerk.describe()}

    def _rows(self) -> list[dict[str, Any]]:
        now = self._clock.now()
        fixed = {key.name for key in self._fixed}
        return [
            key_row(known.settings, source="config" if name in fixed else "file", now=now)
            for name, known in self._ring.names.items()
        ]

    def _first_entries(self, kept: Entries | None) -> Entries:
        """Return what the file of keys holds, or held. Raises InputError where nothing is kept."""
        if self._file is None:
            return Entries("")
        if kept is not None and not self._file.path.exists():
            return kept  # as whoever has served until now takes it
        try:
            return self._file.read()
        except InputError as error:
            if kept is None:
                raise
            self._file_problem = str(error)
            return kept

    def _install(self, found: Entries) -> None:
        self.entries = found
        found = found.beside(self._fixed, self.settings.teams)
        self._ring = Keyring((*self._fixed, *found.keys))
        self.key_problems = found.problems
        self._build()

    def _build(self) -> None:
        keys = [known.settings for known in self._ring.names.values()]
        self._holders.build(keys, self.settings.teams)
        self._plans: dict[str, Plan] = self._holders.plans
        self._is_open = not keys and self._file is None

    async def _reload_keys(self) -> None:
        """Read the file in a thread: that of a thousand keys takes a while."""
        if self._file is not None:
            before = self.key_problems
            self._install(await asyncio.to_thread(self._file.read))
            self._file_problem = ""
            for problem in self.key_problems:
                if problem not in before:
                    logger.warning("%s", problem)
            self.on_read()

    async def _reread(self) -> None:
        if self.prices.refresh():
            self.on_read()
        if self._watch is None or not self._watch.has_changed():
            return
        try:
            await self._reload_keys()
        except InputError as error:
            self._file_problem = str(error)
            logger.warning("%s; the keys from before stay in force", error)


async def _ask(meter: Meter, n: int, grant: MeteredGrant, call: Call) -> None:
    """Wait for units; where there are none, give back what the call has and refuse it."""
    try:
        if await meter.ask(n):
            return
        plan, now = grant.plan, time.monotonic_ns()
        raise too_many(meter, n, now, limit_headers(plan.requests, plan.tokens, call.dialect, now))
    except BaseException:
        grant.withdraw()
        raise
