"""What somebody says about an answer, by decision id: a score, or a preference over another.

A decision may be judged by several sources (``user``, ``judge``, ``unit-tests``, ...) and by each
as often as it likes: the latest judgement of a source is the one that counts, and a decision's
reward is the mean over its sources.
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from crossroads.gateway.errors import ApiError
from crossroads.gateway.ledger.schema import Row

_MOST_COMMENT = 10_000  # characters
_MOST_NAME = 200
_FIELDS = frozenset({"decision_id", "score", "preference", "source", "comment"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """One judgement.

    Attributes
    ----------
    decision_id : whose answer is judged
    score : in [0, 1]; None where only a preference is given
    preference : ``over``: this answer is better than ``other``'s, ``under``: worse; "" for none
    other : the decision id, or the name of the model, it was compared with
    source : who judges
    comment : free text
    key_id : of the key the judgement came with
    time : Unix seconds
    """

    decision_id: str
    score: float | None = None
    preference: Literal["", "over", "under"] = ""
    other: str = ""
    source: str = "user"
    comment: str = ""
    key_id: str = ""
    time: float = field(default_factory=time.time)
    feedback_id: str = field(default_factory=lambda: f"fb_{os.urandom(16).hex()}")

    @property
    def reward(self) -> float:
        """The score; without one, 1 for a preferred answer and 0 for the other."""
        if self.score is not None:
            return self.score
        return 1.0 if self.preference == "over" else 0.0

    def row(self) -> Row:
        return (
            *(self.feedback_id, self.decision_id, self.time, self.source, self.score),
            *(self.preference, self.other, self.comment, self.key_id),
        )

    @classmethod
    def from_row(cls, row: Row) -> Feedback:
        feedback_id, decision_id, at, source, score, preference, other, comment, key_id = row
        return cls(
            feedback_id=feedback_id,
            decision_id=decision_id,
            time=at,
            source=source or "",
            score=score,
            preference=preference or "",
            other=other or "",
            comment=comment or "",
            key_id=key_id or "",
        )


def parse_feedback(
    body: Any, *, key_id: str = "", models: Container[str] | None = None
) -> Feedback:
    """Return the judgement in the body of ``POST /v1/feedback``.

    ``{"decision_id": str, "score": 0..1, "preference": {"over"|"under": decision id or model},
    "source": str, "comment": str}``, with a score, a preference or both. ``models`` are those that
    a preference may name beside decisions; None for any. Raises ApiError 400 naming the field that
    is wrong.
    """
    if not isinstance(body, Mapping):
        raise ApiError("The body must be a JSON object with 'decision_id' and 'score'.")
    unknown = sorted(str(name) for name in body.keys() - _FIELDS)
    if unknown:
        raise _wrong(unknown[0], f"is not a field of feedback; known: {', '.join(sorted(_FIELDS))}")
    preference, other = _preference(body.get("preference"))
    if models is not None and other and not is_decision(other) and other not in models:
        raise _wrong(
            "preference", f"names {other!r:.60}: neither a decision id (dec_...) nor a model here"
        )
    score = _score(body.get("score"))
    if score is None and not preference:
        raise _wrong("score", "is missing; give a score in [0, 1], or a preference")
    return Feedback(
        decision_id=_text(body, "decision_id", _MOST_NAME, required=True),
        score=score,
        preference=preference,
        other=other,
        source=_text(body, "source", _MOST_NAME) or "user",
        comment=_text(body, "comment", _MOST_COMMENT),
        key_id=key_id,
    )


def is_decision(name: str) -> bool:
    """Tell whether a name has the form of a decision id."""
    return name.startswith("dec_")


def unknown_decision(decision_id: str) -> ApiError:
    """Return the answer to feedback on a decision that is not in the ledger, or not the key's."""
    return ApiError(
        f"No decision {decision_id!r:.60} is known; send the x-crossroads-decision-id of an answer "
        "given to this key.",
        status=404,
        code="decision_not_found",
        param="decision_id",
    )


def _score(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int | float) and 0 <= value <= 1:
        return float(value)
    raise _wrong("score", f"must be a number in [0, 1], got {value!r:.40}")


def _preference(value: Any) -> tuple[Literal["", "over", "under"], str]:
    if value is None:
        return "", ""
    if isinstance(value, Mapping) and len(value) == 1:
        ((side, other),) = value.items()
        if side in ("over", "under") and isinstance(other, str) and 0 < len(other) <= _MOST_NAME:
            return side, other
    raise _wrong("preference", 'must be {"over": X} or {"under": X}, X a decision id or a model')


def _text(body: Mapping[str, Any], name: str, most: int, *, required: bool = False) -> str:
    value = body.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or (required and not value):
        raise _wrong(name, "must be a text" if name in body else "is missing")
    if len(value) > most:
        raise _wrong(name, f"must have at most {most} characters, got {len(value)}")
    return value


def _wrong(name: str, problem: str) -> ApiError:
    return ApiError(f"{name!r} {problem}.", param=name)
