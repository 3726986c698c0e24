"""Logged decisions as arrays: what was chosen, with what probability, and how good it was.

N calls, K models, D features. The action is the model the policy *chose*: what became of it
(fallbacks, escalations) belongs to the outcome, so that a candidate is judged as it would serve.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from crossroads.core.errors import InputError
from crossroads.gateway.contracts import Record
from crossroads.gateway.evaluation.settings import Reward
from crossroads.gateway.ledger.feedback import Feedback

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Strings = npt.NDArray[np.object_]

DIRECT = "direct"
_TOLERANCE = 1e-6  # by which a propensity may exceed 1
_MISSED = 1e-3  # by which recorded probabilities may miss their sum and their propensity
_LEAST_PROPENSITY = 1e-9


@dataclass(frozen=True, kw_only=True)
class Log:
    """Logged decisions with their rewards. Build it with ``build_log`` or ``read_log``.

    Attributes
    ----------
    models : names of the K models that were chosen, might have been, or were scored
    action : int (N,), column of the model that the logging policy chose
    propensity : float (N,), probability with which it did, in (0, 1]
    reward : float (N,), in [0, 1]
    cost : float (N,), USD that the call came to
    probability : float (N, K), of every model under the logging policy; a row of NaN where the
        ledger knows only the propensity of the one that was chosen
    eligible : bool (N, K), which models might have answered at all (context, tools, residency, the
        key's list), or None where every model might, on every call
    score : float (N, K), quality the logging router estimated; NaN where unknown
    price : float (N, K), USD expected of each model when the call was decided; NaN where unknown
    session : str (N,); calls of a session are not independent. Without one, the decision's id
    decision_id : str (N,)
    time : float (N,), Unix seconds
    texts : str or None (N,), or None where no prompt was kept
    features : float32 (N, D), or None where not every call has them
    dropped : reason -> number of ledger rows that are not in the log
    num_calls : model -> calls that were eligible, judged or not
    """

    models: tuple[str, ...]
    action: Ints
    propensity: Float64
    reward: Float64
    cost: Float64
    probability: Float64
    score: Float64
    price: Float64
    session: Strings
    decision_id: Strings
    time: Float64
    texts: Strings | None = None
    features: Float32 | None = None
    eligible: Bools | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    num_calls: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.action)

    def take(self, rows: npt.NDArray[Any]) -> Log:
        """Return the log of these calls (indices or a boolean mask, shape (N,))."""
        changes = {k: v[rows] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **changes)


def rewards_of(feedback: Iterable[Feedback], *, kind: Reward = "feedback") -> dict[str, float]:
    """Return the reward of each judged decision, in [0, 1].

    The latest judgement of each source counts, and the mean over sources is the reward.
    ``feedback`` takes a score where there is one and else a preference (1 for the preferred, 0 for
    the other); ``score`` and ``preference`` take only these.
    """
    latest: dict[tuple[str, str], Feedback] = {}
    for each in feedback:
        if kind == "score" and each.score is None:
            continue
        if kind == "preference" and not each.preference:
            continue
        key = (each.decision_id, each.source)
        if key not in latest or each.time >= latest[key].time:
            latest[key] = each
    found: dict[str, list[float]] = {}
    for (decision_id, _), each in latest.items():
        preferred = 1.0 if each.preference == "over" else 0.0
        value = preferred if kind == "preference" else each.reward
        found.setdefault(decision_id, []).append(value)
    return {decision_id: float(np.mean(values)) for decision_id, values in found.items()}


def build_log(
    records: Iterable[Record], rewards: Mapping[str, float] | None, *, policy: str | None = None
) -> Log:
    """Return the log of these records.

    Left out, and counted in ``dropped``: calls that named their model, that a cache answered, that
    no policy decided, on which the policy had no choice (the router was late or failed, or one
    model alone might answer), that nobody judged, and whose probabilities cannot be: a propensity
    that is not in (0, 1], or probabilities that do not sum to 1, lack the chosen model or
    contradict its propensity. Judged calls are taken as a fair sample of all calls of their
    model and prompt.
    Raises InputError where nothing is left.

    Parameters
    ----------
    records : rows of a ledger
    rewards : decision id -> reward; None to reward a complete answer with 1 and others with 0
    policy : only decisions of this policy; those of all by default
    """
    kept: list[Record] = []
    values: list[float] = []
    dropped: dict[str, int] = {}
    num_calls: dict[str, int] = {}
    for record in records:
        reason = _unfit(record, policy)
        if not reason:
            num_calls[record.chosen] = num_calls.get(record.chosen, 0) + 1
            if rewards is not None and record.decision_id not in rewards:
                reason = "not judged"
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
            continue
        kept.append(record)
        complete = 1.0 if record.is_complete else 0.0
        values.append(complete if rewards is None else rewards[record.decision_id])
    if not kept:
        told = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "it is empty"
        raise InputError(
            f"ledger: no call to learn from ({told}); serve a policy, send feedback to "
            "/v1/feedback, or choose 'complete' as the reward"
        )
    return _arrays(kept, values, dropped, num_calls)


def _unfit(record: Record, policy: str | None) -> str:
    if record.policy == DIRECT:
        return "named their model"
    if not record.policy or not record.chosen:
        return "decided by no policy"
    if policy is not None and record.policy != policy:
        return "of other policies"
    if record.cache:
        return "answered by a cache"
    return _uninformative(record)


def _uninformative(record: Record) -> str:
    """Return why a policy's decision tells of no other policy, "" where it does."""
    if record.labels.get("degraded"):
        return "decided by a fallback, without the router"
    if record.labels.get("eligible", "").startswith("1 of "):
        return "that one model alone might answer"
    if not _LEAST_PROPENSITY <= record.propensity <= 1 + _TOLERANCE:
        return "with a propensity outside (0, 1]"
    return "" if _adds_up(record) else "with probabilities that do not add up"


def _adds_up(record: Record) -> bool:
    """Whether the probabilities, where there are any, are such and fit the propensity."""
    found = record.probabilities
    if not found:
        return True
    values = found.values()
    if any(value is None or not value >= 0 for value in values):
        return False
    wrong = abs(math.fsum(values) - 1), abs(found.get(record.chosen, 0.0) - record.propensity)
    return max(wrong) <= _MISSED and record.chosen in found


def _arrays(
    records: Sequence[Record],
    rewards: Sequence[float],
    dropped: Mapping[str, int],
    num_calls: Mapping[str, int],
) -> Log:
    names = {r.chosen: None for r in records}
    for record in records:
        for mapping in (record.probabilities, record.scores, record.costs):
            names.update(dict.fromkeys(mapping))
    models = tuple(sorted(names))
    column = {name: k for k, name in enumerate(models)}
    propensity = np.array([r.propensity for r in records], dtype=np.float64)
    action = np.array([column[r.chosen] for r in records], dtype=np.int64)
    return Log(
        models=models,
        action=action,
        propensity=np.minimum(propensity, 1.0),
        reward=np.array(rewards, dtype=np.float64),
        cost=np.array([r.cost_usd for r in records], dtype=np.float64),
        probability=_probabilities(records, column, action, propensity),
        eligible=_eligible(records, column),
        score=_matrix([r.scores for r in records], column),
        price=_matrix([r.costs for r in records], column),
        session=np.array([r.session or r.decision_id for r in records], dtype=object),
        decision_id=np.array([r.decision_id for r in records], dtype=object),
        time=np.array([r.time for r in records], dtype=np.float64),
        texts=_texts(records),
        features=_features(records),
        dropped=dropped,
        num_calls=num_calls,
    )


def _matrix(rows: Sequence[Mapping[str, float]], column: Mapping[str, int]) -> Float64:
    found = np.full((len(rows), len(column)), np.nan)
    for n, row in enumerate(rows):
        for name, value in row.items():
            found[n, column[name]] = np.nan if value is None else value
    return found


def _probabilities(
    records: Sequence[Record], column: Mapping[str, int], action: Ints, propensity: Float64
) -> Float64:
    """Return the logging policy's probabilities: recorded, or certain, or unknown (NaN)."""
    found = np.nan_to_num(_matrix([r.probabilities for r in records], column), nan=0.0)
    for n, record in enumerate(records):
        if record.probabilities:
            continue
        if propensity[n] >= 1 - _TOLERANCE:
            found[n, action[n]] = 1.0
        else:
            found[n] = np.nan
    return found


def _eligible(records: Sequence[Record], column: Mapping[str, int]) -> Bools | None:
    """Return who might answer; None where no call says that some models might not.

    A call says so by the label ``eligible``, and names those who might by its probabilities and
    estimates.
    """
    if not any("eligible" in r.labels for r in records):
        return None
    found = np.ones((len(records), len(column)), dtype=bool)
    for n, record in enumerate(records):
        if "eligible" in record.labels:
            named = {record.chosen, *record.probabilities, *record.scores}
            found[n] = [name in named for name in column]
    return found


def _texts(records: Sequence[Record]) -> Strings | None:
    if all(r.prompt is None for r in records):
        return None
    return np.array([r.prompt for r in records], dtype=object)


def _features(records: Sequence[Record]) -> Float32 | None:
    """Return the kept embeddings, None unless every record has one of the same width."""
    if any(not r.features for r in records) or len({len(r.features or b"") for r in records}) != 1:
        return None
    rows = [np.frombuffer(r.features or b"", dtype="<f2") for r in records]
    return np.stack(rows).astype(np.float32)
