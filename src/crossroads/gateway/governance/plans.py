"""Builds what each key is counted by. Meters live on by their account's name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from crossroads.gateway.governance.accounts import NANO_USD, Account, Kind
from crossroads.gateway.governance.grant import Plan
from crossroads.gateway.governance.meters import Meter, MeterMaker, MoneyMeter
from crossroads.gateway.governance.pacing import Pacer
from crossroads.gateway.governance.periods import parse_period
from crossroads.gateway.governance.settings import (
    BudgetSettings,
    KeySettings,
    TeamSettings,
)

_RATES: tuple[tuple[str, Kind, str, int], ...] = (
    ("requests_per_second", "requests", "second", 1),
    ("requests_per_minute", "requests", "minute", 60),
    ("requests_per_day", "requests", "day", 86_400),
    ("tokens_per_minute", "tokens", "minute", 60),
    ("tokens_per_day", "tokens", "day", 86_400),
)
_MONTH_S = 31 * 86_400


@dataclass(slots=True)
class Budget:
    """A budget at work: its settings, its meter, its pace."""

    name: str
    settings: BudgetSettings
    meter: MoneyMeter
    pacer: Pacer | None
    alerted: float = 0.0  # highest share of ``settings.alert_at`` that was reached
    alert_start: float = 0.0  # start of the period in which it was


@dataclass(slots=True)
class Holder:
    """All meters of one key or team."""

    limits: tuple[Meter, ...] = ()
    budgets: tuple[Budget, ...] = ()


class Holders:
    """The meters of all keys and teams.

    ``build`` again for other keys: limits and budgets keep their counts by their names, also those
    of keys that are gone, in case they come back and because calls may still hold some.
    """

    def __init__(self, maker: MeterMaker) -> None:
        self._maker = maker
        self._meters: dict[str, Meter] = {}
        self._budgets: dict[str, Budget] = {}
        self.keys: dict[str, Holder] = {}
        self.teams: dict[str, Holder] = {}
        self.plans: dict[str, Plan] = {}

    @property
    def budgets(self) -> list[Budget]:
        holders = [*self.keys.values(), *self.teams.values()]
        return [budget for holder in holders for budget in holder.budgets]

    def build(self, keys: Iterable[KeySettings], teams: Mapping[str, TeamSettings]) -> None:
        """Make plans for these keys and teams."""
        keys = tuple(keys)
        self.teams = {name: self._holder("team", name, team) for name, team in teams.items()}
        self.keys = {key.name: self._holder("key", key.name, key) for key in keys}
        self.plans = {
            key.name: _plan(self.keys[key.name], self.teams.get(key.team or "", Holder()))
            for key in keys
        }

    def _holder(self, what: str, name: str, settings: KeySettings | TeamSettings) -> Holder:
        scope, prefix = f"{what} {name!r}", f"{what}:{name}"
        meters = []
        for field, kind, period, seconds in _RATES:
            limit = getattr(settings.limits, field)
            if limit is not None:
                account = Account(f"{prefix}:{field}", kind, limit, seconds, max(60, 2 * seconds))
                meters.append(self._meter(account, scope, period))
        if settings.limits.parallel is not None:
            account = Account(f"{prefix}:parallel", "parallel", settings.limits.parallel)
            meters.append(self._meter(account, scope, "at a time"))
        found = tuple(self._budget(prefix, scope, given) for given in settings.budgets)
        return Holder(limits=tuple(meters), budgets=found)

    def _budget(self, prefix: str, scope: str, settings: BudgetSettings) -> Budget:
        name = f"{prefix}:usd:{settings.per}"
        budget = self._budgets.get(name)
        if budget is None:
            length = parse_period(settings.per)
            seconds = _MONTH_S if length is None else int(length.total_seconds())
            account = Account(name, "usd", _nano(settings), 0, 2 * seconds)
            meter = self._maker.budget(account, scope, settings.per)
            budget = Budget(name, settings, meter, _pacer(settings, None))
            self._budgets[name] = budget
        elif budget.settings != settings:
            budget.meter.resize(_nano(settings))
            budget.pacer = _pacer(settings, budget.pacer)
            budget.settings = settings
        return budget

    def _meter(self, account: Account, scope: str, period: str) -> Meter:
        meter = self._meters.get(account.name)
        if meter is None:
            meter = self._meters[account.name] = self._maker.limit(account, scope, period)
        elif meter.limit != account.limit:
            meter.resize(account.limit)
        return meter


def _nano(settings: BudgetSettings) -> int:
    return round(settings.usd * NANO_USD)


def _pacer(settings: BudgetSettings, earlier: Pacer | None) -> Pacer | None:
    if not settings.pace:
        return None
    pacer = Pacer(settings.usd, traffic=settings.traffic, first_price=settings.price)
    if earlier is not None:
        pacer.adopt(earlier.state)
    return pacer


def _plan(key: Holder, team: Holder) -> Plan:
    limits = (*key.limits, *team.limits)
    budgets = (*key.budgets, *team.budgets)
    return Plan(
        counted=tuple(meter for meter in limits if meter.kind in ("parallel", "requests")),
        requests=tuple(meter for meter in limits if meter.kind == "requests"),
        tokens=tuple(meter for meter in limits if meter.kind == "tokens"),
        budgets=tuple(budget.meter for budget in budgets),
        pacers=tuple(budget.pacer for budget in budgets if budget.pacer is not None),
    )
