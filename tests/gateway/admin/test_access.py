from __future__ import annotations

import hmac
import re
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from crossroads.gateway.admin import AdminSettings
from crossroads.gateway.admin import access as access_module
from crossroads.gateway.admin.access import COOKIE, Access, address_of
from tests.gateway.admin.conftest import TOKEN
from tests.gateway.admin.fakes import FakeGateway

BEARER = {"authorization": f"Bearer {TOKEN}"}
OURS = {"origin": "http://127.0.0.1:8081", "sec-fetch-site": "same-origin"}


def log_in(client: TestClient, token: str = TOKEN, target: str = "/") -> int:
    status: int = client.post("/login", data={"token": token, "next": target}).status_code
    return status


def csrf(client: TestClient) -> str:
    found = re.search(r'name="csrf-token" content="([^"]+)"', client.get("/").text)
    assert found
    return found[1]


def test_without_the_token_the_api_says_401_and_pages_ask_for_it(client: TestClient) -> None:
    for path in ("/api/status", "/api/keys", "/metrics", "/api/decisions/x", "/api/nothing"):
        refused = client.get(path)
        assert refused.status_code == 401, path
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["error"]["code"] == "unauthorized"
    page = client.get("/decisions")
    assert page.status_code == 303 and page.headers["location"] == "/login?next=/decisions"
    assert client.post("/api/reload").status_code == 401
    assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("given", ["", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN[:-1]])
def test_a_wrong_token_is_refused(client: TestClient, given: str) -> None:
    assert client.get("/api/status", headers={"authorization": given}).status_code == 401


def test_the_right_token_is_let_in_and_needs_no_forgery_token(
    client: TestClient, gateway: FakeGateway
) -> None:
    before = gateway.num_reloads
    assert client.get("/api/status", headers=BEARER).status_code == 200
    assert client.post("/api/reload", headers=BEARER).status_code == 200
    assert gateway.num_reloads == before + 1


def test_tokens_are_compared_in_constant_time_whatever_their_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths, compare = [], hmac.compare_digest

    def noting(a: bytes, b: bytes) -> bool:
        lengths.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(access_module.hmac, "compare_digest", noting)
    access = Access(AdminSettings(token=TOKEN))
    assert not access.is_token(b"", "::1")
    assert not access.is_token(b"x" * 10_000, "::1")
    assert access.is_token(TOKEN.encode(), "::1")
    assert lengths == [(32, 32)] * 3


def test_logging_in_gives_a_cookie_no_script_and_no_other_site_gets(client: TestClient) -> None:
    response = client.post("/login", data={"token": TOKEN, "next": "/keys"})
    assert response.status_code == 303 and response.headers["location"] == "/keys"
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert client.get("/api/status").status_code == 200


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "//evil.example", "/x", "javascript:0"]
)
def test_after_logging_in_one_stays_on_this_server(client: TestClient, target: str) -> None:
    response = client.post("/login", data={"token": TOKEN, "next": target})
    assert response.headers["location"] == "/"


def test_ten_wrong_tokens_a_minute_are_enough() -> None:
    now = [0.0]
    access = Access(AdminSettings(token=TOKEN), clock=lambda: now[0])
    for _ in range(10):
        assert access.log_in(b"guess", "192.0.2.1") is None
    assert access.log_in(TOKEN.encode(), "192.0.2.1") is None
    assert access.log_in(TOKEN.encode(), "192.0.2.2") is not None, "others may still log in"
    now[0] = 61.0
    assert access.log_in(TOKEN.encode(), "192.0.2.1") is not None


def test_bearers_are_counted_with_logins_and_the_right_one_waits_too(client: TestClient) -> None:
    for _ in range(5):
        assert log_in(client, "guess") == 403
        last = client.get("/api/status", headers={"authorization": "Bearer guess"})
    assert last.status_code == 429
    assert client.get("/api/status", headers=BEARER).status_code == 429
    assert log_in(client) == 403
    assert client.get("/api/status").status_code == 401  # nothing was given, so nothing was wrong


def test_addresses_that_send_wrong_tokens_do_not_pile_up() -> None:
    access = Access(AdminSettings(token=TOKEN))
    for n in range(10_050):
        access.is_token(b"guess", f"host-{n}")
    assert len(access._failures) == 10_000


@pytest.mark.parametrize(
    ("client_address", "told"),
    [
        (("192.0.2.1", 80), "192.0.2.1"),
        (("::ffff:192.0.2.1", 80), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 80), "2001:db8:1:2::/64"),
        (("testclient", 80), "testclient"),
        (None, ""),
    ],
)
def test_an_address_is_a_host_or_the_network_of_one(client_address: Any, told: str) -> None:
    assert address_of({"client": client_address}) == told


def test_a_session_ends_after_its_hours_and_on_logging_out(client: TestClient) -> None:
    now = [0.0]
    access = Access(AdminSettings(token=TOKEN, session_hours=1), clock=lambda: now[0])
    session = access.open_session()
    now[0] = 3599.0
    assert access.session(session.id) is session
    now[0] = 3601.0
    assert access.session(session.id) is None
    assert log_in(client) == 303
    identity = client.cookies[COOKIE]
    response = client.post("/logout", headers={**OURS, "x-csrf-token": csrf(client)})
    assert response.status_code == 204
    client.cookies.set(COOKIE, identity)  # a copy of the cookie is worth nothing any more
    assert client.get("/api/status").status_code == 401


def test_what_changes_something_needs_the_sessions_forgery_token(
    client: TestClient, gateway: FakeGateway
) -> None:
    before = gateway.num_reloads
    log_in(client)
    assert client.post("/api/reload", headers=OURS).json()["error"]["code"] == "csrf"
    wrong = {**OURS, "x-csrf-token": "guess"}
    assert client.post("/api/reload", headers=wrong).status_code == 403
    assert client.delete("/api/keys/checkout", headers=OURS).status_code == 403
    assert gateway.num_reloads == before
    right = {**OURS, "x-csrf-token": csrf(client)}
    assert client.post("/api/reload", headers=right).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
    ],
)
def test_pages_of_other_sites_may_do_nothing_even_without_a_token(
    open_client: TestClient, gateway: FakeGateway, headers: dict[str, str]
) -> None:
    before = gateway.num_reloads
    for method, path in (("GET", "/api/keys"), ("POST", "/api/reload"), ("POST", "/login")):
        assert open_client.request(method, path, headers=headers).status_code == 403
    assert gateway.num_reloads == before


def test_without_a_token_a_command_line_may_act_but_a_browser_proves_its_page(
    open_client: TestClient,
) -> None:
    assert open_client.post("/api/reload").status_code == 200
    assert open_client.post("/api/reload", headers=OURS).status_code == 403
    token = csrf(open_client)
    assert open_client.post("/api/reload").status_code == 403  # now it has a cookie
    right = {**OURS, "x-csrf-token": token}
    assert open_client.post("/api/reload", headers=right).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8081", "", "[::2]:8081"])
def test_another_name_bound_to_our_address_is_refused(open_client: TestClient, host: str) -> None:
    refused = open_client.get("/api/keys", headers={"host": host})
    assert refused.status_code == 421


@pytest.mark.parametrize("host", ["localhost:8081", "127.0.0.1", "[::1]:8081", "LOCALHOST"])
def test_the_names_of_loopback_are_ours(open_client: TestClient, host: str) -> None:
    assert open_client.get("/api/keys", headers={"host": host}).status_code == 200


def test_allowed_hosts_bound_the_names_where_they_are_set() -> None:
    access = Access(AdminSettings(token=TOKEN, allowed_hosts=("admin.example",)))
    assert access.allows_host("admin.example:443") and access.allows_host("localhost")
    assert not access.allows_host("other.example")


def test_every_answer_has_the_security_headers_and_no_inline_script(client: TestClient) -> None:
    log_in(client)
    for path in ("/", "/login", "/api/status", "/static/dom.js", "/nothing", "/api/nothing"):
        response = client.get(path)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy, path
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["x-content-type-options"] == "nosniff"
    page = client.get("/").text
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
    assert "style=" not in page and "onclick" not in page


def test_beyond_loopback_a_token_is_a_must() -> None:
    with pytest.raises(ValidationError, match="reachable from other machines; set a token"):
        AdminSettings(host="0.0.0.0")
    assert AdminSettings(host="0.0.0.0", token=TOKEN).is_exposed
    assert not AdminSettings(host="::1").is_exposed
    assert not AdminSettings(host="localhost").is_exposed


def test_a_short_token_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 16 characters"):
        AdminSettings(token="admin")


def test_sessions_do_not_pile_up() -> None:
    access = Access(AdminSettings())
    first = access.open_session()
    for _ in range(1_000):
        last = access.open_session()
    assert access.session(first.id) is None and access.session(last.id) is last
