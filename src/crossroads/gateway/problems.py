"""What is wrong with the fields of a configuration: every one of them, not the first alone."""

from __future__ import annotations

from collections.abc import Sequence

from crossroads.core.errors import InputError
from crossroads.core.problems import Problem, on_one_line


class ConfigError(InputError):
    """A configuration with fields that are wrong: the first is told, all are in ``problems``."""

    def __init__(self, where: str, problems: Sequence[Problem], *, remedy: str = "") -> None:
        super().__init__(f"{where}: {on_one_line(problems, remedy=remedy)}")
        self.problems = tuple(problems)
