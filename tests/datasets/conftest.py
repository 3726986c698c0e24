from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from crossroads.core.errors import UnavailableError
from crossroads.datasets.paths import data_folder


@pytest.fixture
def shared_folder() -> Callable[[str], Path]:
    """Return the folder of a development data set, or skip where it is absent."""

    def find(name: str) -> Path:
        try:
            return data_folder(name)
        except UnavailableError as error:
            pytest.skip(str(error))

    return find
