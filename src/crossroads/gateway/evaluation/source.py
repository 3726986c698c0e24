"""A log from wherever the ledger is: a database, or a file of exported calls."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from crossroads.core.errors import InputError, UsageError
from crossroads.gateway.contracts import Record
from crossroads.gateway.evaluation.log import Log, build_log, rewards_of
from crossroads.gateway.evaluation.settings import Reward
from crossroads.gateway.ledger.export import CALL_FORMATS, read_calls
from crossroads.gateway.ledger.feedback import Feedback
from crossroads.gateway.ledger.reading import Filters, LedgerReader
from crossroads.gateway.ledger.urls import POSTGRES, SQLITE

_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}


def read_log(
    source: str,
    *,
    since: float | None = None,
    reward: Reward = "feedback",
    policy: str | None = None,
    judge: str | None = None,
) -> Log:
    """Return the log of a ledger.

    Raises InputError where there is nothing to learn from.

    Parameters
    ----------
    source : ``sqlite:PATH``, ``postgresql://...``, an SQLite file, or calls exported to
        ``.parquet`` or ``.jsonl``
    since : Unix seconds
    reward : see ``rewards_of``; ``complete`` needs no feedback
    policy : only decisions of this policy
    judge : only feedback of this source
    """
    if _is_file_of_calls(source):
        records, feedback = read_ledger(source, since=since)
        return build_log(records, _rewards(feedback, reward, judge), policy=policy)
    with LedgerReader(ledger_url(source)) as reader:
        rewards = _rewards(reader.feedback(since), reward, judge)
        return build_log(reader.records(Filters(since=since)), rewards, policy=policy)


def _rewards(
    feedback: Iterable[Feedback], kind: Reward, judge: str | None
) -> dict[str, float] | None:
    if kind == "complete":
        return None
    return rewards_of((f for f in feedback if judge is None or f.source == judge), kind=kind)


def _is_file_of_calls(source: str) -> bool:
    return Path(source).suffix.lower() in CALL_FORMATS


def read_ledger(source: str, *, since: float | None = None) -> tuple[list[Record], list[Feedback]]:
    """Return the calls of a ledger and everything said about them."""
    if _is_file_of_calls(source):
        if not Path(source).is_file():
            raise _no_such_file(source)
        records, feedback = read_calls(Path(source))
        return [r for r in records if since is None or r.time >= since], feedback
    with LedgerReader(ledger_url(source)) as reader:
        return list(reader.records(Filters(since=since))), list(reader.feedback(since))


def ledger_url(source: str) -> str:
    """Return the URL of a ledger given by URL or by the path of its SQLite file."""
    if source.startswith((SQLITE, *POSTGRES)):
        return source
    if Path(source).is_file():
        return f"{SQLITE}{source}"
    raise _no_such_file(source)


def _no_such_file(source: str) -> InputError:
    return InputError(
        f"ledger {source!r}: no such file; give sqlite:PATH, postgresql://..., or a file that "
        "crossroads ledger export --what calls wrote"
    )


def parse_since(text: str | None) -> float | None:
    """Return Unix seconds of a date (``2026-05-01``) or of a time ago (``7d``, ``12h``).

    Raises UsageError for anything else.
    """
    if text is None:
        return None
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return time.time() - float(ago[1]) * _SECONDS[ago[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise UsageError(
            f"--since {text!r}: expected a date such as 2026-05-01, or a time ago such as 7d or 12h"
        ) from None
