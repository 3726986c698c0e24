"""A decision about one routed item: who it was sent to, and why, enough to explain and replay it.

Decisions about all tokens of a layer of experts are in ``crossroads.moe.contract``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from crossroads.core.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Where one item was sent.

    Attributes
    ----------
    chosen : names of the targets, best first (one for ordinary routing)
    scores : estimated quality of every target, by name
    rule : the decision rule that was applied, as text that ``parse_rule`` reads back
    reason : one sentence a person can read
    propensity : probability with which the rule would pick ``chosen`` (1 for deterministic rules)
    predicted_quality : estimated quality of the first choice, in [0, 1]
    predicted_cost_usd : estimated cost of the first choice; None where prices are unknown
    confidence : lead of the first choice over the runner-up in the rule's own value, clipped to
        [0, 1]
    seconds : time spent deciding
    router, version, seed : what decided, enough to decide again
    """

    chosen: tuple[str, ...]
    scores: Mapping[str, float]
    rule: str
    reason: str
    propensity: float
    predicted_quality: float
    predicted_cost_usd: float | None
    confidence: float
    seconds: float
    router: str
    version: str
    seed: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The first choice."""
        return self.chosen[0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; ``model`` repeats the first of ``chosen``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        copies = {
            "chosen": list(self.chosen),
            "scores": dict(self.scores),
            "details": dict(self.details),
        }
        return {"model": self.model, **values, **copies}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a decision from `to_dict`. Raises InputError naming the key that is wrong."""
        given = {key: value for key, value in data.items() if key != "model"}
        known = {f.name for f in fields(cls)}
        missing = known - {"seed", "details"} - given.keys()
        if missing or given.keys() - known:
            word, keys = ("lacks", missing) if missing else ("has unknown", given.keys() - known)
            raise InputError(f"decision record {word} key: {', '.join(sorted(keys))}")
        chosen = given["chosen"]
        if isinstance(chosen, str) or not isinstance(chosen, Sequence) or not chosen:
            raise InputError(f"decision record: 'chosen' must be a list of names, got {chosen!r}")
        for key in ("scores", "details"):
            if not isinstance(given.get(key, {}), Mapping):
                raise InputError(f"decision record: {key!r} must be an object, got {given[key]!r}")
        return cls(**{**given, "chosen": tuple(chosen)})
