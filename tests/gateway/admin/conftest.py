from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from crossroads.gateway.admin import AdminSettings, build_admin
from tests.gateway.admin.fakes import FakeGateway

TOKEN = "a-token-of-more-than-16-characters"


@pytest.fixture(scope="session")
def _gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def gateway(_gateway: FakeGateway) -> Iterator[FakeGateway]:
    keys = list(_gateway.keys)
    yield _gateway
    _gateway.keys = keys
    _gateway.rename = {}


@pytest.fixture
def open_client(gateway: FakeGateway) -> TestClient:
    """A client of an admin server without a token, on loopback."""
    app = build_admin(gateway.sources())
    return TestClient(app, base_url="http://127.0.0.1:8081", follow_redirects=False)


@pytest.fixture
def client(gateway: FakeGateway) -> TestClient:
    """A client, not logged in, of an admin server with a token."""
    app = build_admin(gateway.sources(), AdminSettings(token=TOKEN))
    return TestClient(app, base_url="http://127.0.0.1:8081", follow_redirects=False)
