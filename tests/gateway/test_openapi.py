"""The document of the API is valid, and the running gateway keeps to it whatever it is sent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS
from schemathesis.core.failures import FailureGroup

from crossroads.gateway.openapi import document
from tests.gateway.configured import KEYS, runtime_of, write
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.serving import serving_runtime

CHECKED = ("not_a_server_error", "status_code_conformance", "response_schema_conformance")
SCHEMA = schemathesis.openapi.from_dict(document(["auto", "ok"]))


@pytest.fixture(scope="module")
def url(upstream: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = write(tmp_path_factory.mktemp("fuzzed"), upstream, watch_s=None)
    with serving_runtime(runtime_of(path)) as running:
        yield running


@pytest.mark.slow
@SCHEMA.parametrize()
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_every_path_keeps_to_the_document(case: schemathesis.Case, url: str) -> None:
    if isinstance(case.body, dict) and case.operation.path not in ("/v1/feedback",):
        case.body["model"] = "ok"  # a model that is there, so that requests get beyond routing
    case.headers.pop("Authorization", None)
    response = case.call(base_url=url, headers={"Authorization": f"Bearer {KEYS['mine']}"})
    # What an upstream makes of a strange request is its own affair (502), a defect of ours is 500.
    assert response.status_code != 500, response.text
    try:
        case.validate_response(response, checks=[check for check in CHECKS.get_all()
                                                 if check.__name__ in CHECKED[1:]])  # fmt: skip
    except FailureGroup as failures:
        pytest.fail("; ".join(str(failure) for failure in failures.exceptions))


def test_the_document_lists_every_surface() -> None:
    paths = document([])["paths"]
    for path in ("chat/completions", "completions", "responses", "embeddings", "messages"):
        assert "post" in paths[f"/v1/{path}"]
