from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.dialects.canned import CannedServer, serving


@pytest.fixture(scope="session")
def canned() -> CannedServer:
    return CannedServer()


@pytest.fixture(scope="session")
def canned_url(canned: CannedServer) -> Iterator[str]:
    """A server on a real socket that answers with what the surfaces write."""
    with serving(canned) as url:
        yield url
