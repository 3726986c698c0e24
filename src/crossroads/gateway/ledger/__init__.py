"""The ledger: every call the gateway decided and answered, and what was said about it."""

from __future__ import annotations

from crossroads.gateway.ledger.feedback import (
    Feedback,
    is_decision,
    parse_feedback,
    unknown_decision,
)
from crossroads.gateway.ledger.ownership import owner_of
from crossroads.gateway.ledger.reading import Entry, Filters, LedgerReader
from crossroads.gateway.ledger.settings import LedgerSettings
from crossroads.gateway.ledger.trial import check_ledger
from crossroads.gateway.ledger.writer import SqlLedger, open_ledger

__all__ = [
    "Entry",
    "Feedback",
    "Filters",
    "LedgerReader",
    "LedgerSettings",
    "SqlLedger",
    "check_ledger",
    "is_decision",
    "open_ledger",
    "owner_of",
    "parse_feedback",
    "unknown_decision",
]
