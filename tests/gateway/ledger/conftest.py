from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.postgres_server import PostgresServer, missing_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    if reason := missing_postgres():
        pytest.skip(reason)
    pytest.importorskip("asyncpg")
    with PostgresServer() as server:
        yield server
