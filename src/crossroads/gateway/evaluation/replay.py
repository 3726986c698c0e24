"""Deciding a ledger again, and what is different now.

A call is rebuilt from its row with the decision's id, which every draw of a policy derives from:
the same policies decide the same. Facts of a request that the ledger does not keep (tools, images,
headers, tags) are not rebuilt; where the policy's version is the recorded one and the choice
differs all the same, that is what the report says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from crossroads.core.errors import CrossroadsError
from crossroads.gateway.call import Call, Client
from crossroads.gateway.contracts import Choice, Policies, Record
from crossroads.gateway.evaluation.log import DIRECT
from crossroads.prompts.experts.base import ExpertError

_EXAMPLES = 100  # changes told one by one
_AT_ONCE = 64  # decisions under way
COST_PRICE = "cost-price"  # label of a decision made under a paced budget


class Chooser(Protocol):
    """Decides a recorded call again."""

    async def choose(self, record: Record) -> Choice:
        """Return the choice. Raises NotReplayableError, ApiError, ExpertError."""
        ...


class NotReplayableError(Exception):
    """What the row does not hold is needed to decide; the message says what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One decision that comes out otherwise now. ``cost_usd``: expected, new less old."""

    decision_id: str
    was: str
    now: str
    why: str
    cost_usd: float | None


@dataclass(kw_only=True, slots=True)
class Replay:
    """What deciding again gave.

    Attributes
    ----------
    same, changed : numbers of decisions
    not_replayable : reason -> number
    skipped : calls that no policy decided
    moves : (from, to) -> number
    reasons : why -> number of changes
    cost_usd : expected cost now less then, over all changes whose costs are known
    num_priced : changes whose costs are known
    examples : the first 100 changes
    """

    same: int = 0
    changed: int = 0
    skipped: int = 0
    not_replayable: dict[str, int] = field(default_factory=dict)
    moves: dict[tuple[str, str], int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    cost_usd: float = 0.0
    num_priced: int = 0
    examples: list[Change] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        moves = [{"from": a, "to": b, "calls": n} for (a, b), n in self.moves.items()]
        examples = [{name: getattr(e, name) for name in Change.__slots__} for e in self.examples]
        plain = {name: getattr(self, name) for name in self.__slots__}
        return {**plain, "moves": moves, "examples": examples}


async def replay(records: Iterable[Record], chooser: Chooser) -> Replay:
    """Decide every call again and compare. The order of the calls does not matter."""
    found = Replay()
    async for record, outcome in _outcomes(records, chooser):
        if outcome is None:
            found.skipped += 1
        elif isinstance(outcome, str):
            found.not_replayable[outcome] = found.not_replayable.get(outcome, 0) + 1
        elif outcome.model == record.chosen:
            found.same += 1
        else:
            _note(found, record, outcome)
    return found


async def _outcomes(
    records: Iterable[Record], chooser: Chooser
) -> AsyncIterator[tuple[Record, Choice | str | None]]:
    batch: list[Record] = []
    for record in records:
        batch.append(record)
        if len(batch) == _AT_ONCE:
            for pair in await _decide(batch, chooser):
                yield pair
            batch = []
    for pair in await _decide(batch, chooser):
        yield pair


async def _decide(
    batch: list[Record], chooser: Chooser
) -> list[tuple[Record, Choice | str | None]]:
    outcomes = await asyncio.gather(*(_outcome(record, chooser) for record in batch))
    return list(zip(batch, outcomes, strict=True))


async def _outcome(record: Record, chooser: Chooser) -> Choice | str | None:
    if record.policy in ("", DIRECT) or not record.chosen:
        return None
    try:
        return await chooser.choose(record)
    except NotReplayableError as error:
        return str(error)
    except (CrossroadsError, ExpertError) as error:
        return f"refused now: {error}"


def _note(found: Replay, record: Record, choice: Choice) -> None:
    why = _why(record, choice)
    old, new = record.costs.get(record.chosen), record.costs.get(choice.model)
    cost = None if old is None or new is None else new - old
    found.changed += 1
    found.reasons[why] = found.reasons.get(why, 0) + 1
    move = (record.chosen, choice.model)
    found.moves[move] = found.moves.get(move, 0) + 1
    if cost is not None:
        found.cost_usd += cost
        found.num_priced += 1
    if len(found.examples) < _EXAMPLES:
        found.examples.append(
            Change(
                decision_id=record.decision_id,
                was=record.chosen,
                now=choice.model,
                why=f"{why}: {choice.reason}",
                cost_usd=cost,
            )
        )


def _why(record: Record, choice: Choice) -> str:
    if record.version != choice.version:
        return "another version of the policy"
    if record.labels.get("degraded"):
        return "the policy was degraded then"
    if choice.labels.get("degraded"):
        return "the policy is degraded now"
    if record.labels.get(COST_PRICE):
        return "a paced budget weighed on the decision then"
    if record.is_explored != choice.is_explored:
        return "chance fell otherwise: the seed differs"
    return "the same version: the request had facts that the ledger does not keep"


# --- choosers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PolicyChooser:
    """Asks policies as the gateway does."""

    policies: Policies

    async def choose(self, record: Record) -> Choice:
        if record.prompt is None:
            raise NotReplayableError("no text kept")
        price = float(record.labels.get(COST_PRICE, 0.0))
        return await self.policies.choose(rebuilt_call(record), cost_price=price)


@dataclass(frozen=True)
class RouterChooser:
    """Asks a fitted router, under the recorded rule unless another is given.

    Reads the text, or the embedding where no text was kept. A decision of another kind of policy is
    decided by the router all the same: that is the question asked.
    """

    router: Any  # FittedRouter
    rule: str | None = None
    seed: int = 0

    async def choose(self, record: Record) -> Choice:
        if record.prompt is not None:
            asked: Any = [record.prompt]
        elif record.features:
            asked = np.frombuffer(record.features, dtype="<f2").astype(np.float32)[None]
        else:
            raise NotReplayableError("neither text nor embedding kept")
        rule = self.rule or record.rule or None
        decision = self.router.decide(asked, rule=rule, seed=self.seed)[0]
        return Choice(
            model=decision.model,
            policy=record.policy,
            version=decision.version,
            reason=decision.reason,
            decision=decision,
            propensity=decision.propensity,
        )


def rebuilt_call(record: Record) -> Call:
    """Return the request of a row, as far as the row knows it."""
    headers: dict[bytes, bytes] = {}
    if record.session:
        headers[b"x-crossroads-session"] = record.session.encode("latin-1", "replace")
    if record.policy and record.policy != record.asked and ":" not in record.asked:
        headers[b"x-crossroads-policy"] = record.policy.encode("latin-1", "replace")
    text = record.prompt or ""
    body: dict[str, Any] = {"model": record.asked}
    if record.dialect == "embeddings":
        body["input"] = text
    else:
        body["messages"] = [{"role": "user", "content": text}]
    return Call(
        dialect=record.dialect,
        model=record.asked,
        body=body,
        native={"model": record.asked},
        is_stream=record.is_stream,
        size=4 * record.input_tokens,
        client=Client(key_id=record.key_id, team=record.team),
        headers=headers,
        id=record.decision_id,
        request_id=record.request_id,
    )
