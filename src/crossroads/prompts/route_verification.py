"""Which of a router's choices can be trusted, and where to go with the others.

A ``Verifier`` is fitted on prompts the router did not learn from, with the label "the chosen model
answered right" (a score of one half or more). Its answer to accept keeps the choice; otherwise the
prompt is to be escalated, to the model best in training.

The answers hold for one decision rule: another rule makes other choices, and those were not
calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.core.progress import Progress
from crossroads.prompts.decide import DecisionRule
from crossroads.prompts.features import queries
from crossroads.prompts.outcomes import OutcomeTable, unit_hash
from crossroads.prompts.router import PromptRouter
from crossroads.prompts.verification import Arrays, Method, Verification, Verifier

Float = npt.NDArray[np.floating[Any]]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WRONG, RIGHT = 0, 1
RIGHT_SCORE = 0.5
_CALIBRATION_SHARE = 0.4
# The table's own split hashes the prompt too: without a mask one split would tell the other.
_MASK = np.uint64(0x2545F4914F6CDD1D)


@dataclass(frozen=True, kw_only=True)
class RouteVerifier:
    """Answers whether a router's choice under one decision rule will be right.

    Attributes
    ----------
    verifier : of the classes wrong (0) and right (1), accepting right
    rule : the decision rule whose choices it was calibrated on, as text
    fallback : model to escalate to: the best single one in training
    """

    verifier: Verifier
    rule: str
    fallback: str

    def judge(self, embeddings: Float, chosen: Sequence[str], rule: str) -> list[dict[str, Any]]:
        """Return an answer for each choice, as plain data.

        The keys are those of ``Verification``, with ``reason``, a sentence, and ``escalate_to``,
        the model to ask where the choice was not accepted: None where it is the chosen one. Under
        another rule than the calibrated one ``answer`` is None, with ``reason`` only.
        """
        if rule != self.rule:
            reason = f"choices were calibrated under rule {self.rule}, not {rule}"
            return [{"answer": None, "reason": reason} for _ in chosen]
        return [
            self._judged(found, model)
            for found, model in zip(self.verifier.verify(embeddings), chosen, strict=True)
        ]

    def _judged(self, found: Verification, model: str) -> dict[str, Any]:
        other = None if found.accepted or model == self.fallback else self.fallback
        reason = reason_of(found, is_empty=self.verifier.is_empty)
        return {**found.to_dict(), "reason": reason, "escalate_to": other}

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Return plain facts and arrays without Python objects."""
        facts, arrays = self.verifier.state()
        return {**facts, "rule": self.rule, "fallback": self.fallback}, arrays

    @classmethod
    def restore(cls, facts: dict[str, Any], arrays: Arrays) -> Self:
        """Rebuild it from ``state``. Raises LookupError, ValueError or TypeError for damage."""
        return cls(
            verifier=Verifier.restore(facts, arrays),
            rule=str(facts["rule"]),
            fallback=str(facts["fallback"]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Routed:
    """A fitted router deciding over a table.

    Attributes
    ----------
    router, rule : what decides
    cost : float64 (K,), what the rule is told, finite
    table : outcomes
    features : float32 (N, D), embeddings of the whole table
    """

    router: PromptRouter
    rule: DecisionRule
    cost: Float64
    table: OutcomeTable
    features: Float32

    def chosen(self, rows: Ints) -> tuple[Ints, Float32]:
        """Return the chosen columns of these rows, and their scores (NaN = not run)."""
        estimate = self.router.predict(queries(self.table, rows, self.features))
        choice = self.rule.choose(estimate, self.cost)
        return choice, self.table.score[rows, choice]


def calibration_split(table: OutcomeTable, train: Ints, seed: int) -> tuple[Ints, Ints]:
    """Return (rows for the router, rows for the verifier) of the training rows, by prompt hash.

    Copies of a prompt stay on one side. Raises InputError where a side would be empty.
    """
    held = unit_hash(table.prompt_hash[train] ^ _MASK, seed) < _CALIBRATION_SHARE
    if held.all() or not held.any():
        raise InputError(
            f"calibration: {len(train)} training prompts are too few to keep some from the router; "
            "give more distinct prompts"
        )
    return train[~held], train[held]


def fit_route_verifier(
    routed: Routed,
    *,
    calibration: Ints,
    test: Ints,
    fallback: str,
    method: Method,
    level: float,
    seed: int,
    progress: Progress | None = None,
) -> tuple[RouteVerifier, dict[str, Any]]:
    """Fit a verifier on calibration rows and measure it on test rows.

    The figures, of test rows where the chosen model was run:

    - ``num_calibrated``: labelled prompts used, wrong and right in equal number
    - ``right``: share of choices that are right
    - ``accepted``, ``escalated``, ``abstained``: shares of the answers
    - ``accepted_right``: share right among the accepted; None where none is
    - ``quality_escalated``: mean score when what is not accepted goes to ``fallback``, where it was
      run
    - ``least_similarity``: the region's threshold; None where nothing is ever accepted

    Raises InputError where the choices are all right, all wrong, or too few.
    """
    _, score = routed.chosen(calibration)
    known = np.isfinite(score)
    rows, right = calibration[known], score[known] >= RIGHT_SCORE
    if right.all() or not right.any():
        always = "right" if right.any() else "wrong"
        raise InputError(
            f"calibration: the router's choice is {always} on all {len(rows)} calibration prompts; "
            "there is nothing to tell apart"
        )
    verifier = Verifier.fit(
        routed.features[rows],
        right,
        level=level,
        method=method,
        accepting=RIGHT,
        ids=routed.table.prompt_ids[rows].tolist(),
        groups=routed.table.prompt_hash[rows],
        seed=seed,
        progress=progress,
    )
    found = RouteVerifier(verifier=verifier, rule=str(routed.rule), fallback=fallback)
    return found, _measured(found, routed, test)


def _measured(found: RouteVerifier, routed: Routed, test: Ints) -> dict[str, Any]:
    _, score = routed.chosen(test)
    known = np.isfinite(score)
    rows, score = test[known], score[known]
    answers = found.verifier.verify(routed.features[rows], num_exemplars=0)
    answer = np.array([a.answer for a in answers])
    accepted, right = answer == "accept", score >= RIGHT_SCORE
    backup = routed.table.score[rows, routed.table.models.index(found.fallback)]
    escalated = np.where(accepted | np.isnan(backup), score, backup)
    verifier = found.verifier
    return {
        "method": verifier.method,
        "level": verifier.level,
        "num_calibrated": verifier.num_rows,
        "num_test": len(rows),
        "right": float(right.mean()),
        "accepted": float(accepted.mean()),
        "accepted_right": float(right[accepted].mean()) if accepted.any() else None,
        "escalated": float((answer == "escalate").mean()),
        "abstained": float((answer == "abstain").mean()),
        "quality_escalated": float(escalated.mean()),
        "fallback": found.fallback,
        "least_similarity": None if verifier.is_empty else verifier.least_similarity,
    }


def reason_of(found: Verification, *, is_empty: bool = False) -> str:
    """Return one sentence that says why a choice was accepted or not.

    ``is_empty`` tells that the verifier never accepts anything.
    """
    if found.accepted:
        return (
            f"predicted right, probability {found.probability:.3f}; the {found.similarity} nearest "
            "calibrated prompts agree"
        )
    if is_empty:
        return f"no kind of prompt reaches level {found.level:g}, so nothing is accepted"
    if found.answer == "abstain":
        return "unlike the calibrated prompts: none that is similar supports a prediction"
    if found.prediction == WRONG:
        return f"predicted wrong, probability {found.probability:.3f}"
    return (
        f"predicted right, but not reliably enough for level {found.level:g} "
        f"(similarity {found.similarity}, distance {found.distance:.2f})"
    )
