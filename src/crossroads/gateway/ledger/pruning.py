"""Deleting old rows in short transactions, so that writers get in between."""

from __future__ import annotations

from crossroads.gateway.ledger.schema import CALLS, FEEDBACK
from crossroads.gateway.ledger.store import Store

_ROWS = 5_000  # of one transaction


def prune_some(store: Store, before: float) -> int:
    """Delete up to 5,000 rows of each table older than ``before`` (Unix seconds).

    Returns how many went; 0 when none is left. Raises UnavailableError.
    """
    return sum(
        store.execute(
            f"DELETE FROM {table} WHERE id IN "
            f"(SELECT id FROM {table} WHERE time < ? ORDER BY time LIMIT {_ROWS})",
            (before,),
        )
        for table in (CALLS, FEEDBACK)
    )
