"""Read the route that a language model wrote.

A strict reading comes first; repair is for what is not JSON, since replacing every ' by \" breaks
names with apostrophes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from crossroads.prompts.preferences.policies import OTHER

_FENCE = re.compile(r"^\s*```(?:json)?\s*(.*?)\s*(?:```\s*)?$", re.DOTALL | re.IGNORECASE)


def parse_route(text: str, names: Collection[str]) -> str | None:
    """Return the policy named in ``{"route": "<name>"}``, or None for no policy.

    None stands for ``other``, an empty name, a name that is not among ``names`` and an answer
    that cannot be read. Tolerated: a fence of three backticks, single quotes for double ones,
    the two characters ``\\n`` between the parts.
    """
    fenced = _FENCE.match(text)
    body = (fenced.group(1) if fenced else text).strip()
    for candidate in (body, _repaired(body)):
        route = _route(candidate)
        if route in names:
            return route
        if route in ("", OTHER):
            return None
    return None


def _repaired(text: str) -> str:
    return text.replace("\\n", "").replace("'", '"')


def _route(text: str) -> str | None:
    try:
        value: Any = json.loads(text)
    except ValueError:
        return None
    route = value.get("route") if isinstance(value, dict) else None
    return route if isinstance(route, str) else None
