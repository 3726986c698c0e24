"""What several commands read in the same way."""

from __future__ import annotations

from crossroads.core.errors import UsageError


def comma_separated(text: str | None, option: str) -> list[str] | None:
    """Split ``A,B``; None where the option was not given. Raises UsageError for no name at all."""
    if text is None:
        return None
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise UsageError(f"{option}: expected names separated by commas, got {text!r}")
    return names
