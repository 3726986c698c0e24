"""Ask the survey: which methods have these cells, and which suit a case.

>>> [method.name for method in methods(expert_data="Private", expert_aggregation="Parameter",
...                                    user_dataset="Few-Shot", source="authors")]
['AdapterSoup', 'LoraHub']
>>> [match.method.name for match in recommend(private_data=True, target_examples=0, tasks="new",
...                                           custom_training=False, experts="adapters").fits]
['Arrow', 'Airoboros and LlamaIndex', 'What the Weight?']
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from crossroads.adapters.survey.implementations import DEPARTURES, implementations
from crossroads.adapters.survey.inventory import KINDS, Method, Source, inventory
from crossroads.adapters.survey.schema import AXES
from crossroads.adapters.survey.situation import FACTS, Finding, Situation, findings
from crossroads.core.errors import unknown_name

_COLUMNS = {"kind": tuple(KINDS), "source": get_args(Source)}


def methods(
    *, implemented: bool | None = None, **wanted: str | Iterable[str]
) -> tuple[Method, ...]:
    """Return the rows whose cells have the wanted values, in the order of the inventory.

    Raises UsageError for an unknown axis or value, with the nearest spelling.

    Parameters
    ----------
    implemented : only rows that a router here implements, or only those that none does
    wanted : by axis, or by ``kind`` or ``source``: one value or several, any of which will do,
        whatever their case; ``Multiple`` is a value like any other
    """
    kept = {name: _spelled(name, values) for name, values in wanted.items()}
    chosen = tuple(
        method
        for method in inventory()
        if all(_value(method, name) in values for name, values in kept.items())
    )
    if implemented is None:
        return chosen
    done = implementations()
    return tuple(method for method in chosen if (method.name in done) == implemented)


def _spelled(name: str, values: str | Iterable[str]) -> frozenset[str]:
    given = (values,) if isinstance(values, str) else tuple(values)
    if name in AXES:
        return frozenset(AXES[name].spelled(value) for value in given)
    if name not in _COLUMNS:
        raise unknown_name("axis of the survey", name, (*AXES, *_COLUMNS))
    for value in given:
        if value.lower() not in _COLUMNS[name]:
            raise unknown_name(f"value of {name}", value, _COLUMNS[name])
    return frozenset(value.lower() for value in given)


def _value(method: Method, name: str) -> str:
    value: str = getattr(method if name in _COLUMNS else method.cells, name)
    return value


def describe(method: Method, routers: Iterable[str]) -> dict[str, Any]:
    """Return a row as plain data, with the routers that implement it and where they depart."""
    names = list(routers)
    departures = {name: dict(DEPARTURES[name].axes) for name in names if name in DEPARTURES}
    return {**method.to_dict(), "routers": names, "departures": departures}


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """A method beside a situation.

    Attributes
    ----------
    method : the row
    routers : names of the routers here that implement it
    findings : how it stands to each fact that could rule a method out
    """

    method: Method
    routers: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def unmet(self) -> tuple[Finding, ...]:
        """What rules it out."""
        return tuple(finding for finding in self.findings if not finding.fits)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            **describe(self.method, self.routers),
            "because": {f.fact: f.why for f in self.findings if f.fits},
            "unmet": {f.fact: f.why for f in self.unmet},
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation:
    """The methods that fit a situation, and those that one fact rules out, both best first."""

    situation: Situation
    fits: tuple[Match, ...]
    near_misses: tuple[Match, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "situation": self.situation.to_dict(),
            "fits": [match.to_dict() for match in self.fits],
            "near_misses": [match.to_dict() for match in self.near_misses],
        }


def recommend(
    situation: Situation | None = None,
    *,
    among: Iterable[Method] | None = None,
    **facts: Any,
) -> Recommendation:
    """Return the methods that fit a situation and those that miss it by one fact.

    Methods implemented here come first, then those that fit in every variant, then by the order of
    the inventory. Nothing is said about quality: that takes a comparison on one set of experts.

    Raises UsageError for an unknown fact, InputError for a value a fact can not have.

    Parameters
    ----------
    situation : the user's case; or, instead, its ``facts`` by name
    among : the methods to choose from, by default all
    """
    for fact in facts:
        if fact not in FACTS:
            raise unknown_name("fact of a situation", fact, FACTS)
    if situation is not None and facts:
        raise TypeError("expected a situation or facts, got both")
    case = situation or Situation(**facts)
    done = implementations()
    rows = inventory() if among is None else among
    matches = [
        Match(method=m, routers=done.get(m.name, ()), findings=findings(m, case)) for m in rows
    ]
    matches.sort(key=lambda match: (not match.routers, any(f.varies for f in match.findings)))
    return Recommendation(
        situation=case,
        fits=tuple(match for match in matches if not match.unmet),
        near_misses=tuple(match for match in matches if len(match.unmet) == 1),
    )
