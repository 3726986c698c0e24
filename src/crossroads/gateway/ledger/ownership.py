"""Whose decision is it? Asked before a judgement of it is taken."""

from __future__ import annotations

from crossroads.gateway.ledger.reading import LedgerReader
from crossroads.gateway.ledger.writer import SqlLedger

_FLUSH_S = 1.0


def owner_of(ledger: SqlLedger, reader: LedgerReader, decision_id: str) -> str | None:
    """Return the key a decision was made for, None where there is no such decision.

    A decision that is not there yet may be on its way: then what waits is written first, so that
    feedback may follow an answer at once. Blocks; for a thread off the event loop. Raises
    UnavailableError where the database cannot be reached.
    """
    owner = reader.key_of(decision_id)
    if owner is None and ledger.flush(_FLUSH_S):
        owner = reader.key_of(decision_id)
    return owner
