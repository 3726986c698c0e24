"""How the survey "Doing More with Less" (arXiv 2502.00409) classifies a router.

A router states its place in this scheme as class attributes, whose values are those of the types
below; ``place`` checks them. ``describe`` says it in words, ``taxonomy`` gives the rows of all
routers, and ``knowledge`` and ``unlike_knowledge`` tell an arena which routers were told more than
others, so that nobody ranks them without knowing.

Departures from the survey: ``none`` and ``the outcomes to come`` were added for baselines and
bounds, and what a router learns from is told apart more finely, because a comparison is fair only
among routers that were told the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from crossroads.core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from crossroads.prompts.router import PromptRouter

Timing = Literal["pre-generation", "post-generation", "multi-stage"]
"""When it decides: from the query, after an answer was judged (a cascade), or both."""

Method = Literal["none", "similarity-based", "supervised", "reinforcement learning", "generative"]
"""By what it decides; ``none`` for baselines and bounds."""

Axis = Literal["any", "size", "domain", "modality", "pipeline"]
"""By what the candidates differ for the router to be of use."""

Needs = Literal[
    "nothing",
    "mean costs",
    "mean scores",
    "preference pairs",
    "bandit feedback",
    "full outcome table",
    "the outcomes to come",
]
"""What it learns from; the last is hindsight, which only a bound has."""

Adding = Literal["free", "few examples", "refit"]
"""What it takes to add a model to the pool."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "timing": get_args(Timing),
    "method": get_args(Method),
    "axis": get_args(Axis),
    "needs": get_args(Needs),
    "adding_a_model": get_args(Adding),
}
"""Each attribute of the scheme with its values, in the order in which they are shown."""

_TIMING = {
    "pre-generation": "decides from the query, before any answer",
    "post-generation": "decides after an answer was judged, and pays for every answer it asked for",
    "multi-stage": "decides from the query and again after an answer was judged",
}
_METHOD = {
    "none": "follows a fixed rule (a baseline or a bound)",
    "similarity-based": "compares the query with earlier ones",
    "supervised": "predicts each model's outcome by a fitted estimator",
    "reinforcement learning": "follows a policy learnt from rewards",
    "generative": "lets a language model decide",
}
_AXIS = {
    "any": "of use whatever the candidates differ in",
    "size": "of use where the candidates differ in size and price",
    "domain": "of use where the candidates differ in what they are good at",
    "modality": "of use where the candidates differ in the kind of input they take",
    "pipeline": "of use where the candidates are pipelines, such as with and without retrieval",
}
_ADDING = {
    "free": "a model is added without any data",
    "few examples": "a model is added with a few of its outcomes, the others stay as they are",
    "refit": "adding a model takes another fit",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where one router stands.

    Attributes
    ----------
    name, summary : of the router
    timing, method, axis, needs, adding_a_model : values of ``ATTRIBUTES``
    domains : whether it learns from the category of each training prompt as well: ``""`` never,
        ``"domains"`` it must, ``"domains if given"`` where the table has them;
            ``subjects or domains`` where it takes the finer labels first
    hindsight : whether it sees the outcomes it is judged by: a bound
    """

    name: str
    summary: str
    timing: Timing
    method: Method
    axis: Axis
    needs: Needs
    adding_a_model: Adding
    domains: str
    hindsight: bool

    @property
    def knowledge(self) -> str:
        """All it is told: what it needs, and the domains it learns from."""
        return f"{self.needs}, {self.domains}" if self.domains else self.needs

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def place(router: str | PromptRouter | type[PromptRouter]) -> Place:
    """Return where a router stands; ``router`` is a name, with or without settings, or the router.

    Raises UsageError for an unknown name, InputError naming router and attribute where an attribute
    has a value outside the scheme or contradicts another one.
    """
    from crossroads.prompts.routers import router_class

    if isinstance(router, str):
        router = router_class(router.partition(":")[0])
    cls = router if isinstance(router, type) else type(router)
    for attribute, values in ATTRIBUTES.items():
        value = getattr(cls, attribute)
        if value not in values:
            raise InputError(
                f"router {cls.name!r}: {attribute} is {value!r}; "
                f"expected one of: {', '.join(values)}"
            )
    if cls.hindsight != (cls.needs == "the outcomes to come"):
        raise InputError(
            f"router {cls.name!r}: hindsight is {cls.hindsight} but needs is {cls.needs!r}; "
            "a bound, and nothing else, needs 'the outcomes to come'"
        )
    return Place(
        name=cls.name,
        summary=cls.summary,
        timing=cls.timing,
        method=cls.method,
        axis=cls.axis,
        needs=cls.needs,
        adding_a_model=cls.adding_a_model,
        domains=_domains(cls),
        hindsight=cls.hindsight,
    )


def _domains(cls: type[PromptRouter]) -> str:
    labels = "subjects or domains" if cls.uses_subjects else "domains"
    if cls.needs_domains:
        return labels
    return f"{labels} if given" if cls.uses_domains else ""


def taxonomy(names: Iterable[str] | None = None) -> tuple[Place, ...]:
    """Return the places of these routers, by default of all, shipped and third party, by name."""
    from crossroads.prompts.routers import router_names

    return tuple(place(name) for name in (router_names() if names is None else names))


def grouped(places: Iterable[Place], by: str) -> dict[str, tuple[Place, ...]]:
    """Return the places by the value of one attribute, in the scheme's order, without empty groups.

    Raises UsageError for an unknown attribute.
    """
    if by not in ATTRIBUTES:
        raise unknown_name("attribute of a router", by, ATTRIBUTES)
    rows = tuple(places)
    groups = {value: tuple(p for p in rows if getattr(p, by) == value) for value in ATTRIBUTES[by]}
    return {value: group for value, group in groups.items() if group}


def describe(router: str | PromptRouter | type[PromptRouter]) -> str:
    """Return a few lines that say when, how and from what a router decides. Raises as ``place``."""
    at = place(router)
    title = f"{at.name}: {at.summary}" if at.summary else at.name
    lines = [
        ("timing", f"{at.timing}: {_TIMING[at.timing]}"),
        ("method", f"{at.method}: {_METHOD[at.method]}"),
        ("axis", f"{at.axis}: {_AXIS[at.axis]}"),
        ("learns from", at.knowledge),
        ("new model", f"{at.adding_a_model}: {_ADDING[at.adding_a_model]}"),
    ]
    if at.hindsight:
        lines.append(("bound", "sees the outcomes it is judged by; cannot be served"))
    return "\n".join([title, *(f"  {label:<11}  {text}" for label, text in lines)])


def knowledge(router: str | PromptRouter | type[PromptRouter]) -> str:
    """Return what a router is told, as one cell of a leaderboard, for instance ``mean scores``.

    Only rows with the same cell were compared on equal terms. Raises as ``place``.
    """
    return place(router).knowledge


def unlike_knowledge(names: Iterable[str]) -> tuple[str, ...]:
    """Return the notes a leaderboard of these routers owes its reader; empty where all are alike.

    Baselines and bounds (method ``none``) are there to be unlike the others and are not counted.
    """
    ranked = [p for p in taxonomy(dict.fromkeys(names)) if p.method != "none"]
    notes = []
    for what, cells in (
        ("what they learn from", {p.name: p.knowledge for p in ranked}),
        ("when they decide", {p.name: p.timing for p in ranked}),
    ):
        kinds = sorted(set(cells.values()))
        if len(kinds) > 1:
            groups = "; ".join(
                f"{kind}: {', '.join(n for n, c in cells.items() if c == kind)}" for kind in kinds
            )
            notes.append(f"the routers differ in {what}; compare like with like ({groups})")
    return tuple(notes)
