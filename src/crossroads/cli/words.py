"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, many: str | None = None) -> str:
    """Return a number with its noun; ``many`` is the plural of one that does not end in s.

    >>> counted(1, "row"), counted(2, "row"), counted(0, "query", "queries")
    ('1 row', '2 rows', '0 queries')
    """
    return f"{number} {noun if number == 1 else many or noun + 's'}"
