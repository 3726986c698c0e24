"""What is wrong with the fields of a configuration: every one of them, not the first alone."""

from __future__ import annotations

from collections.abc import Sequence

from crossroads.core.errors import InputError
from crossroads.core.problems import Problem, on_one_line


class ConfigError(InputError):
    """A configuration with fields that are wrong: the first is told, all are in ``problems``.

    ``where`` is the file they are in; "" where the places alone have to do.
    """

    def __init__(self, where: str, problems: Sequence[Problem], *, remedy: str = "") -> None:
        told = on_one_line(problems, remedy=remedy)
        super().__init__(f"{where}: {told}" if where else told)
        self.problems = tuple(problems)
