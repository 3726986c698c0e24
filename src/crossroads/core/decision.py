"""A decision: who goes where, with what weight, and why.

:class:`Decision` records one routed item (a prompt, a truck) with everything needed to explain and
replay it. :class:`TokenChoice`, :class:`ExpertChoice` and :class:`Dense` are the three forms of a
batch of weighted decisions under capacity, with the conversions between them that lose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Where one item was sent.

    Attributes
    ----------
    chosen : names of the targets, best first (one for ordinary routing)
    scores : estimated quality of every target, by name
    rule : the decision rule that was applied, as text that :func:`parse_rule` reads back
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
        """Return plain data for JSON."""
        return {"model": self.model, **asdict(self), "chosen": list(self.chosen)}
