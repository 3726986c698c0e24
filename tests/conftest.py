"""Settings shared by all tests: no deadline for properties, one thread per library, own cache.

With several workers, one runs all tests of a file, so that what they share is made once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.chromium import started

for library in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(library, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Timing never decides a test.
settings.register_profile("crossroads", deadline=None)
settings.load_profile("crossroads")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out whole files, and groups across files; dealt out singly, each worker makes it all."""
    from xdist.scheduler import LoadGroupScheduling

    class FilesAndGroups(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return str(super()._split_scope(nodeid)).split("::", 1)[0]

    return FilesAndGroups(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tests' embedding cache away from the user's."""
    cache = os.environ.get("CROSSROADS_CACHE")
    if cache is None or not Path(cache).is_dir():
        os.environ["CROSSROADS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The driver of a Chromium with a profile of its own."""
    with started(tmp_path_factory.mktemp("profile")) as driver:
        yield driver
