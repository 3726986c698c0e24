from __future__ import annotations

import gzip
import re
from typing import Any

import orjson
import pytest
from starlette.testclient import TestClient

from crossroads.gateway.admin import AdminSettings, AdminSources, Reply, build_admin
from crossroads.gateway.admin.explain import explain, to_fields
from crossroads.gateway.admin.pages import VIEWS
from tests.gateway.admin.fakes import MODELS, FakeGateway, record


def built(**sources: Any) -> TestClient:
    app = build_admin(AdminSources(**sources), AdminSettings(body_bytes=1000))
    return TestClient(app, base_url="http://127.0.0.1:8081")


def code(response: Any) -> str:
    found: str = response.json()["error"]["code"]
    return found


def test_status_has_the_version_the_parts_and_what_there_is(open_client: TestClient) -> None:
    found = open_client.get("/api/status").json()
    assert found["status"] == "degraded" and found["parts"]["ledger"]["queue"] == 12
    assert "create_key" in found["has"] and found["config"] == "gateway.yaml"


def test_traffic_has_series_and_sums(open_client: TestClient) -> None:
    found = open_client.get("/api/traffic?seconds=300").json()
    assert set(found["requests_per_s"]) <= {*MODELS, "unanswered"}
    assert len(found["times"]) == len(found["cost_usd"])
    assert found["totals"]["requests"] > 0


def test_reads_answer_with_what_the_sources_say(open_client: TestClient) -> None:
    assert open_client.get("/api/models").json()[0]["name"] == "auto"
    assert open_client.get("/api/upstreams").json()["coder-14b"]["state"] == "open"
    assert len(open_client.get("/api/keys").json()["keys"]) == 3
    assert open_client.get("/api/budgets").json()["budgets"][0]["paced"] is True
    assert open_client.get("/api/policies").json()["auto"]["kind"] == "learned"
    assert open_client.get("/api/regret").json()["best_model"] == "large-70b"
    assert open_client.get("/api/drift").json()["auto"]["state"] == "ok"
    assert open_client.get("/metrics").text.startswith("# HELP")


def test_what_is_not_configured_says_so() -> None:
    client = built()
    for path in ("models", "traffic", "keys", "decisions", "decisions/x", "policies", "regret"):
        response = client.get(f"/api/{path}")
        assert response.status_code == 404 and code(response) == "not_configured"
    assert client.get("/api/status").json()["status"] == "ok"
    assert code(client.post("/api/reload")) == "not_configured"
    assert client.get("/metrics").status_code == 404


def test_decisions_filter_and_explain(open_client: TestClient, gateway: FakeGateway) -> None:
    rows = open_client.get("/api/decisions?limit=7").json()["decisions"]
    assert len(rows) == 7 and "features" not in rows[0]
    failed = open_client.get("/api/decisions?status=failed&limit=500").json()["decisions"]
    assert {row["status"] for row in failed} <= {502}
    only = open_client.get("/api/decisions?model=small-1b&limit=500").json()["decisions"]
    assert {row["model"] for row in only} == {"small-1b"}
    identity = gateway.rows[0].decision_id
    found = open_client.get(f"/api/decisions/{identity}").json()
    assert found["row"]["decision_id"] == identity
    assert [item["model"] for item in found["scores"] if item["is_chosen"]] == [
        gateway.rows[0].chosen
    ]
    assert code(open_client.get("/api/decisions/dec_gone")) == "decision_not_found"


def test_a_preview_is_another_point_and_the_operating_point_stays(open_client: TestClient) -> None:
    now = open_client.get("/api/frontier?policy=auto").json()
    assert now["preview"] is None
    then = open_client.get("/api/frontier?policy=auto&price=0").json()
    assert then["operating"] == now["operating"]
    assert then["preview"]["quality"] > now["operating"]["quality"]
    assert now["operating"]["cost_usd"] == pytest.approx(0.91, abs=0.02)  # per 1,000 calls
    assert now["measured"]["quality"] == 0.781
    assert "estimates of the last 512 prompts" in now["source"]
    assert code(open_client.get("/api/frontier?policy=code")) == "no_frontier"


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("traffic?seconds=-1", "seconds"),
        ("traffic?seconds=nan", "seconds"),
        ("traffic?seconds=1e99", "seconds"),
        ("traffic?seconds=300&since=x", None),
        ("decisions?limit=0", "limit"),
        ("decisions?limit=many", "limit"),
        ("decisions?status=maybe", "status"),
        ("frontier", "policy"),
        ("frontier?policy=auto&price=-3", "price"),
        ("frontier?policy=auto&price=inf", "price"),
    ],
)
def test_bad_parameters_are_named(open_client: TestClient, path: str, field: str | None) -> None:
    response = open_client.get(f"/api/{path}")
    if field is not None:
        assert response.status_code == 400
        assert response.json()["error"]["param"] == field
        assert field in response.json()["error"]["message"]
    else:
        assert response.status_code == 200  # since is for the ledger, which is not there


def test_a_key_is_made_shown_once_and_revoked(
    open_client: TestClient, gateway: FakeGateway
) -> None:
    made = open_client.post("/api/keys", json={"name": "new", "team": "t", "models": ["auto"]})
    assert made.json()["secret"].startswith("sk-cr-")
    assert made.json()["models"] == ["auto"]
    listed = open_client.get("/api/keys").text
    assert '"new"' in listed and "sk-cr-" not in listed
    assert open_client.delete("/api/keys/new").json() == {"name": "new", "revoked": True}
    again = open_client.delete("/api/keys/new")
    assert again.status_code == 400 and "no key 'new'" in again.json()["error"]["message"]


def test_a_key_for_models_there_are_not_is_refused_with_those_there_are(
    open_client: TestClient, gateway: FakeGateway
) -> None:
    given = {"name": "new", "models": ["auto", "small-2b"]}
    response = open_client.post("/api/keys", json=given)
    assert response.status_code == 400 and response.json()["error"]["param"] == "models"
    message = response.json()["error"]["message"]
    assert "not served: small-2b; there are auto, small-1b, " in message
    assert not any(key["name"] == "new" for key in gateway.keys)
    assert open_client.post("/api/keys", json={"name": "new", "models": "auto"}).status_code == 400


def test_keys_show_their_budgets_and_where_their_data_may_go(open_client: TestClient) -> None:
    checkout, search, _ = open_client.get("/api/keys").json()["keys"]
    assert checkout["limits"] == ["600 requests per minute", "$120 per month"]
    assert search["limits"] == ["$60 per month"] and search["residency"] == ["eu"]


def test_a_decision_that_is_stored_a_little_later_is_waited_for() -> None:
    found = iter([None, None, record(0)])
    sources = AdminSources(decision=lambda _: next(found))
    client = TestClient(build_admin(sources), base_url="http://127.0.0.1:8081")
    assert client.get("/api/decisions/dec_1").status_code == 404
    assert client.get("/api/decisions/dec_1?wait=5").json()["row"]["chosen"]
    assert client.get("/api/decisions/dec_1?wait=999").status_code == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"name": ""}', b'{"name": 3}', b"\xff"])
def test_a_bad_key_request_is_a_400(open_client: TestClient, body: bytes) -> None:
    response = open_client.post("/api/keys", content=body)
    assert response.status_code == 400 and response.json()["error"]["message"]


def test_what_the_library_refuses_is_a_400_with_its_message(open_client: TestClient) -> None:
    response = open_client.post("/api/keys", json={"name": "checkout"})
    assert response.status_code == 400
    assert "choose another name" in response.json()["error"]["message"]


def test_the_playground_asks_the_gateway_and_returns_headers_and_answer(
    open_client: TestClient, gateway: FakeGateway
) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    headers = {"x-gateway-key": "sk-cr-mine"}
    found = open_client.post("/api/playground", json=body, headers=headers).json()
    assert found["status"] == 200
    assert found["answer"]["choices"][0]["message"]["content"] == "You said: hi"
    assert found["headers"]["x-crossroads-model"] == "medium-8b"
    sent, key = gateway.asked[-1]
    assert orjson.loads(sent)["stream"] is False and key == "sk-cr-mine"
    assert open_client.post("/api/playground", json={"model": "auto"}).status_code == 400


def test_the_playground_shows_an_answer_that_is_no_json() -> None:
    client = built(playground=lambda body, key: Reply(502, {}, b"<html>"))
    body = {"model": "auto", "messages": []}
    found = client.post("/api/playground", json=body).json()
    assert found == {"status": 502, "headers": {}, "answer": "<html>"}


def test_a_configuration_is_checked_before_it_is_deployed(open_client: TestClient) -> None:
    assert open_client.post("/api/check-config", content=b"").json()["ok"] is True
    assert open_client.post("/api/check-config", content=b"router: x").json()["ok"] is False


def test_a_source_that_breaks_is_a_500_that_tells_nothing_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("secret detail")

    client = built(upstreams=broken, models=lambda: [{"name": "a"}])
    response = client.get("/api/upstreams")
    assert response.status_code == 500 and code(response) == "internal_error"
    assert "secret detail" not in response.text and "secret detail" in caplog.text
    assert client.get("/api/models").status_code == 200


def test_a_body_beyond_the_limit_is_refused_with_and_without_a_length() -> None:
    client = built(check_config=lambda text: {"ok": True})
    assert client.post("/api/check-config", content=b"x" * 1001).status_code == 413
    chunks = (b"x" * 400 for _ in range(4))
    assert client.post("/api/check-config", content=chunks).status_code == 413
    assert client.post("/api/check-config", content=b"x" * 999).status_code == 200


def test_unknown_paths_and_methods_have_json_errors(open_client: TestClient) -> None:
    for method, path, status in (
        ("GET", "/api/nothing", 404),
        ("PUT", "/api/keys", 405),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/%2e%2e/app.py", 404),
    ):
        assert open_client.request(method, path).status_code == status
    assert code(open_client.get("/api/nothing")) == "http_error"


def test_static_files_are_compressed_and_kept_until_they_change(open_client: TestClient) -> None:
    first = open_client.get("/static/charts.js")
    assert first.headers["content-encoding"] == "gzip"
    tag = first.headers["etag"]
    again = open_client.get("/static/charts.js", headers={"if-none-match": tag})
    assert again.status_code == 304 and again.content == b""
    plain = open_client.get("/static/charts.js", headers={"accept-encoding": "identity"})
    assert plain.text == first.text and "content-encoding" not in plain.headers


def test_the_whole_front_end_is_small_and_asks_no_other_server(open_client: TestClient) -> None:
    seen, total = set(), 0
    for view in VIEWS:
        page = open_client.get(view.path).text
        names = re.findall(r'(?:src|href)="/static/([^"]+)"', page)
        while names:
            name = names.pop()
            if name in seen:
                continue
            seen.add(name)
            text = open_client.get(f"/static/{name}").text
            total += len(gzip.compress(text.encode()))
            names += re.findall(r'from "\./([^"]+)"', text)
            assert not re.findall(r"https?://(?!www\.w3\.org|127\.0\.0\.1)", text), name
    assert {f"{view.name}.js" for view in VIEWS} < seen
    assert total < 40_000


def test_an_explanation_reads_like_what_happened() -> None:
    row = to_fields(record(3)) | {"cache": "", "is_explored": True, "labels": {"degraded": "x"}}
    row |= {"chosen": "a", "model": "b", "verdict": {"accepted": False, "reason": "too short"}}
    said = " ".join(explain(row)["summary"])
    for words in ("chose a", "b answered in its place", "Chance chose", "refused", "Degraded: x"):
        assert words in said
    cut = explain(to_fields(record(3)) | {"status": 200, "is_complete": False})
    assert "did not get through whole" in " ".join(cut["summary"])


def test_an_explanation_of_an_empty_row_is_empty() -> None:
    found = explain({})
    assert found["scores"] == [] and found["attempts"] == []
    assert sum(item["ms"] for item in found["phases"]) == 0


def test_numbers_json_cannot_hold_become_null() -> None:
    row = to_fields({"scores": {"a": float("nan")}, "costs": {"a": float("inf")}, "features": b"x"})
    assert row == {"scores": {"a": None}, "costs": {"a": None}}


def test_an_estimate_beyond_1_is_explained_as_1() -> None:
    found = explain({"scores": {"a": 1.01, "b": 0.4}, "chosen": "a"})
    assert [one["quality"] for one in found["scores"]] == [1.0, 0.4]
