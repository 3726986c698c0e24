"""The entries of keys.yaml: each is right or wrong by itself, so that a wrong one binds no other.

What contradicts another entry is refused with it: nobody can tell which of two was meant, and a
key that was to be disabled must not be let in by an older line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from crossroads.core.problems import on_one_line, problems_of
from crossroads.gateway.governance.keys import digest_of
from crossroads.gateway.governance.settings import KeySettings, Name

_NAME: TypeAdapter[str] = TypeAdapter(Name)


@dataclass(frozen=True, slots=True)
class Entries:
    """What a file of keys holds.

    Attributes
    ----------
    where : the file, for messages
    keys : that are right
    problems : why others are refused, a line each, with the file and the key
    """

    where: str
    keys: tuple[KeySettings, ...] = ()
    problems: tuple[str, ...] = ()

    def beside(self, fixed: Iterable[KeySettings], teams: Iterable[str]) -> Entries:
        """Return what is in force beside the keys of a configuration, which go first."""
        fixed, known = tuple(fixed), frozenset(teams)
        names = {key.name for key in fixed}
        secrets = {digest_of(key): key.name for key in fixed}
        keys, problems = [], list(self.problems)
        for key in self.keys:
            reason = ""
            if key.name in names:
                reason = "the configuration has a key of this name; rename one"
            elif digest_of(key) in secrets:
                reason = f"it has the secret of {secrets[digest_of(key)]!r}; rotate it"
            elif key.team is not None and key.team not in known:
                reason = f"no team {key.team!r}; add it to governance.teams, or revoke the key"
            if reason:
                problems.append(_refused(self.where, _label(key.name), reason))
            else:
                keys.append(key)
        return Entries(self.where, tuple(keys), tuple(problems))


def read_entries(where: str, rows: Sequence[Any]) -> Entries:
    """Return what ``rows``, the plain data of a file, have; no entry is quoted but its name."""
    problems, right = [], []
    for number, row in enumerate(rows):
        try:
            right.append(KeySettings.model_validate(row))
        except ValidationError as error:
            label = _label(name_of(row)) or f"keys[{number}]"
            problem = on_one_line(problems_of(error, KeySettings))
            problems.append(_refused(where, label, problem))
    names = Counter(name_of(row) for row in rows)
    secrets = Counter(digest_of(key) for key in right)
    keys = []
    for key in right:
        if names[key.name] > 1:
            problems.append(_refused(where, _label(key.name), "it is there twice; remove one"))
        elif secrets[digest_of(key)] > 1:
            reason = "another key has the same secret; rotate one"
            problems.append(_refused(where, _label(key.name), reason))
        else:
            keys.append(key)
    return Entries(where, tuple(keys), tuple(dict.fromkeys(problems)))


def name_of(row: Any) -> str:
    """Return the name of an entry, right or wrong; "" where it has none that a key can have."""
    name = row.get("name") if isinstance(row, dict) else None
    try:
        return _NAME.validate_python(name)
    except ValidationError:
        return ""


def _label(name: str) -> str:
    return f"key {name!r}" if name else ""


def _refused(where: str, label: str, reason: str) -> str:
    return f"{where}: {label} is refused: {reason}"
