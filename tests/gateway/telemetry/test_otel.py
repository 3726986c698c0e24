from __future__ import annotations

import gzip
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from crossroads.core.errors import MissingExtraError
from crossroads.gateway.call import Call
from crossroads.gateway.telemetry import GatewayTelemetry, OtelSettings, TelemetrySettings
from crossroads.gateway.telemetry.otel import Tracing
from tests.gateway.telemetry.collector import Posted, collecting
from tests.gateway.telemetry.records import record

pytest.importorskip("opentelemetry.sdk")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def attributes(item: Any) -> dict[str, Any]:
    found = {}
    for pair in item.attributes:
        kind = pair.value.WhichOneof("value")
        found[pair.key] = getattr(pair.value, kind)
    return found


def spans(posted: Posted) -> list[Any]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found = []
    for body in posted.bodies["/v1/traces"]:
        data = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
        for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
            for scope in resource.scope_spans:
                found += scope.spans
    return found


def export(settings: OtelSettings, *, flags: str = "01") -> None:
    tracing = Tracing(settings)
    tracing.start()
    parent = f"00-{TRACE}-{PARENT}-{flags}".encode()
    tracing.begin(Call(dialect="chat", model="auto", body={}, id="dec_1",
                       headers={b"traceparent": parent}))  # fmt: skip
    tracing.end(record(status=200))
    tracing.end(record(decision_id="dec_2", status=502, error="upstream_error"))
    tracing.close()


def test_a_call_becomes_spans_with_gen_ai_attributes_under_the_clients_parent() -> None:
    with collecting() as posted:
        export(OtelSettings(endpoint=posted.url, headers={"x-tenant": "t"}))
    found = spans(posted)
    ours = {s.name: s for s in found if s.trace_id.hex() == TRACE}
    server, client = ours["chat auto"], ours["chat a"]
    assert server.parent_span_id.hex() == PARENT
    assert client.parent_span_id == server.span_id
    told = attributes(server)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == "auto" and told["gen_ai.response.model"] == "a"
    assert told["gen_ai.usage.input_tokens"] == 100
    assert told["crossroads.decision.id"] == "dec_1"
    assert server.end_time_unix_nano - server.start_time_unix_nano == pytest.approx(501.22e6, abs=2)
    assert client.start_time_unix_nano - server.start_time_unix_nano == pytest.approx(0.12e6, abs=2)
    assert posted.headers["x-tenant"] == "t"


def test_a_failed_call_is_a_span_with_an_error() -> None:
    with collecting() as posted:
        export(OtelSettings(endpoint=posted.url))
    failed = [s for s in spans(posted) if attributes(s).get("crossroads.decision.id") == "dec_2"]
    assert failed[0].status.code == 2 and failed[0].status.message == "upstream_error"
    assert attributes(failed[0])["error.type"] == "502"


def test_the_clients_flag_says_that_a_call_is_not_sampled() -> None:
    with collecting() as posted:
        export(OtelSettings(endpoint=posted.url), flags="00")
    assert TRACE not in {s.trace_id.hex() for s in spans(posted)}


def test_metrics_have_the_names_of_the_conventions() -> None:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
    )

    with collecting() as posted:
        export(OtelSettings(endpoint=posted.url))
    body = posted.bodies["/v1/metrics"][-1]
    data = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
    message = ExportMetricsServiceRequest.FromString(data)
    metrics = message.resource_metrics[0].scope_metrics[0].metrics
    names = {metric.name for metric in metrics}
    assert {"gen_ai.client.operation.duration", "gen_ai.client.token.usage"} <= names


def test_a_collector_that_is_gone_costs_no_call_anything() -> None:
    settings = TelemetrySettings(logs=None, otel=OtelSettings(endpoint="http://127.0.0.1:9"))
    telemetry = GatewayTelemetry(settings)
    call = Call(dialect="chat", model="auto", body={}, id="dec_1")
    telemetry.begin(call)
    telemetry.end(record())
    assert telemetry.meter.in_flight == 0
    assert telemetry.meter.snapshot().total("crossroads_requests") == 1


def test_a_collector_that_is_gone_is_told_by_the_health_until_it_is_back() -> None:
    with collecting() as posted:
        settings = OtelSettings(endpoint=posted.url, flush_ms=50, metrics_s=600)
        telemetry = GatewayTelemetry(TelemetrySettings(logs=None, otel=settings))
        tracing = telemetry._tracer
        assert tracing is not None

        def export_one() -> None:
            tracing.end(record(status=200))
            tracing.outbox.flush()
            tracing._exporter._traces.force_flush()

        export_one()
        assert telemetry.health()["status"] == "ok"
        posted.status = 400  # an answer that nobody tries again
        export_one()
        health = telemetry.health()
        assert (health["status"], health["otel_dropped"]) == ("degraded", 1)
        assert f"otel: {posted.url} took no spans; start the collector" in health["reason"]
        posted.status = 200
        export_one()
        health = telemetry.health()
        assert (health["status"], health["otel_dropped"]) == ("ok", 1)
        posted.status = 400
        tracing._exporter._metrics.force_flush()
        assert "took no metrics" in telemetry.health()["reason"]
        tracing.close()


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingExtraError, match=r"crossroads\[otel\]"):
        Tracing(OtelSettings(endpoint="http://127.0.0.1:4318"))


def test_an_endpoint_that_is_no_url_is_refused() -> None:
    with pytest.raises(ValidationError, match="expected an http or https URL"):
        OtelSettings(endpoint="collector:4318")
