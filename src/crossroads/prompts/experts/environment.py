"""``${NAME}`` references to environment variables, resolved when used and never stored."""

from __future__ import annotations

import os
import re

from crossroads.core.errors import InputError

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def expand(text: str, *, where: str) -> str:
    """Replace every ``${NAME}`` by the variable's value.

    Raises InputError naming the variable and ``where`` it was wanted when it is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise InputError(f"{where}: environment variable {name} is not set; export it first")
        return os.environ[name]

    return _REFERENCE.sub(value, text)
