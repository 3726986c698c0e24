"""One name per model: how spellings are matched, exactly, never by resemblance."""

from __future__ import annotations

from collections.abc import Mapping


def canonical_name(name: str, aliases: Mapping[str, str] | None = None) -> str:
    """Return the one spelling of a model's name: spaces stripped, case folded, alias resolved.

    An alias must be spelt in full: a name that merely contains another one, or begins like it, is
    another model with another price.
    """
    spelling = name.strip().casefold()
    for alias, canonical in (aliases or {}).items():
        if alias.strip().casefold() == spelling:
            return canonical.strip().casefold()
    return spelling
