"""Traces and metrics by OpenTelemetry, made in a thread from finished calls.

Nothing of the SDK runs while a call does: `Tracing.begin` looks at one header and `Tracing.end`
queues the record. A call becomes a span of kind server with a span of kind client inside for what
the model did, with the attributes of the gen_ai conventions. The parent is the client's
``traceparent``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crossroads.core.errors import MissingExtraError
from crossroads.gateway.call import Call
from crossroads.gateway.contracts import Record
from crossroads.gateway.telemetry.catalogue import DURATION, FIRST, TOKENS
from crossroads.gateway.telemetry.meter import OPERATIONS
from crossroads.gateway.telemetry.outbox import Outbox
from crossroads.gateway.telemetry.settings import OtelSettings

Carrier = dict[str, str]
_PATIENCE_S = 5  # for one export, tries included
_MOST_PARENTS = 50_000  # calls under way with a traceparent


class Tracing:
    """Exports finished calls. Raises MissingExtraError without the ``otel`` extra."""

    def __init__(self, settings: OtelSettings) -> None:
        self._delivery = _Delivery(settings.endpoint)
        try:
            self._exporter = _Exporter(settings, self._delivery)
        except ImportError as error:
            raise MissingExtraError("opentelemetry", extra="otel") from error
        self._parents: dict[str, Carrier] = {}
        self.outbox: Outbox[tuple[Record, Carrier]] = Outbox(
            "crossroads-otel",
            self._exporter.export,
            size=settings.queue,
            period=settings.flush_ms / 1e3,
        )

    @property
    def num_dropped(self) -> int:
        """Calls that no collector was told of: the queue was full, or nobody took them."""
        return self.outbox.num_dropped + self._delivery.num_lost

    @property
    def problem(self) -> str:
        """Return why the last export failed; "" where it did not."""
        return self.outbox.error or self._delivery.problem

    def start(self) -> None:
        self.outbox.start()

    def close(self) -> None:
        self.outbox.close()
        self._exporter.close()

    def begin(self, call: Call) -> None:
        """Remember whose child the call is."""
        parent = call.headers.get(b"traceparent")
        if parent and len(self._parents) < _MOST_PARENTS:
            carrier = {"traceparent": parent.decode("latin-1")}
            state = call.headers.get(b"tracestate")
            if state:
                carrier["tracestate"] = state.decode("latin-1")
            self._parents[call.id] = carrier

    def end(self, record: Record) -> None:
        self.outbox.put((record, self._parents.pop(record.decision_id, {})))


class _Delivery:
    """What became of the exports, by what they carry; written by the SDK's own threads."""

    def __init__(self, endpoint: str) -> None:
        self.num_lost = 0
        self._endpoint = endpoint
        self._refused: dict[str, bool] = {}

    def note(self, what: str, *, is_taken: bool, num_calls: int = 0) -> None:
        self._refused[what] = not is_taken
        if not is_taken:
            self.num_lost += num_calls

    @property
    def problem(self) -> str:
        failed = [what for what, is_refused in sorted(self._refused.items()) if is_refused]
        if not failed:
            return ""
        return (
            f"{self._endpoint} took no {' and no '.join(failed)}; start the collector, or correct "
            "telemetry.otel.endpoint"
        )


class _Exporter:
    """Everything that touches the SDK; lives in the outbox's thread after it is made."""

    def __init__(self, settings: OtelSettings, delivery: _Delivery) -> None:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": settings.service})
        headers = dict(settings.headers)
        self._traces = TracerProvider(
            resource=resource, sampler=ParentBased(TraceIdRatioBased(settings.sample))
        )
        spans, metrics = _watched(settings.endpoint, headers, delivery)
        self._traces.add_span_processor(BatchSpanProcessor(spans))
        reader = PeriodicExportingMetricReader(
            metrics, export_interval_millis=1e3 * settings.metrics_s
        )
        self._metrics = MeterProvider([reader], resource=resource)
        self._tracer = self._traces.get_tracer("crossroads")
        self._propagator = TraceContextTextMapPropagator()
        meter = self._metrics.get_meter("crossroads")

        def histogram(name: str, unit: str, bounds: Sequence[float]) -> Any:
            return meter.create_histogram(
                name, unit, explicit_bucket_boundaries_advisory=list(bounds)
            )

        self._duration = histogram("gen_ai.client.operation.duration", "s", DURATION)
        self._first = histogram("gen_ai.client.operation.time_to_first_chunk", "s", FIRST)
        self._tokens = histogram("gen_ai.client.token.usage", "{token}", TOKENS)
        self._cost = meter.create_counter("crossroads.cost", "{USD}")

    def export(self, batch: Sequence[tuple[Record, Carrier]]) -> None:
        for record, carrier in batch:
            self._trace(record, carrier)
            self._measure(record)

    def close(self) -> None:
        self._traces.shutdown()
        self._metrics.shutdown()

    def _trace(self, record: Record, carrier: Mapping[str, str]) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        operation = OPERATIONS.get(record.dialect, record.dialect)
        begun = int(record.time * 1e9)
        span = self._tracer.start_span(
            f"{operation} {record.asked}".rstrip(),
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=begun,
            attributes=_attributes(record),
        )
        if span.is_recording():
            before = int((record.queue_ms + record.route_ms) * 1e6)
            inner = self._tracer.start_span(
                f"{operation} {record.model}".rstrip(),
                context=set_span_in_context(span),
                kind=SpanKind.CLIENT,
                start_time=begun + before,
                attributes=_gen_ai(record),
            )
            inner.end(begun + before + int((record.connect_ms + record.upstream_ms) * 1e6))
            if record.status != 200 or not record.is_complete:
                span.set_status(Status(StatusCode.ERROR, record.error))
        span.end(begun + int(record.total_ms * 1e6))

    def _measure(self, record: Record) -> None:
        names = _gen_ai(record, with_usage=False)
        self._duration.record(record.total_ms / 1e3, names)
        if record.first_token_ms is not None:
            self._first.record(record.first_token_ms / 1e3, names)
        if record.input_tokens or record.output_tokens:
            self._tokens.record(record.input_tokens, {**names, "gen_ai.token.type": "input"})
            self._tokens.record(record.output_tokens, {**names, "gen_ai.token.type": "output"})
        self._cost.add(max(0.0, record.cost_usd), {"gen_ai.response.model": record.model})


def _watched(endpoint: str, headers: Carrier, delivery: _Delivery) -> tuple[Any, Any]:
    """Return exporters of spans and of metrics that note what became of each export.

    The SDK keeps a failed export to itself and its own log.
    """
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics.export import MetricExportResult
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.trace import SpanKind

    class Spans(OTLPSpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            result = super().export(spans)
            delivery.note(
                "spans",
                is_taken=result is SpanExportResult.SUCCESS,
                num_calls=sum(span.kind is SpanKind.SERVER for span in spans),
            )
            return result

    class Metrics(OTLPMetricExporter):
        def export(self, *given: Any, **named: Any) -> MetricExportResult:
            result = super().export(*given, **named)
            delivery.note("metrics", is_taken=result is MetricExportResult.SUCCESS)
            return result

    return (
        Spans(f"{endpoint}/v1/traces", headers=headers, timeout=_PATIENCE_S),
        Metrics(f"{endpoint}/v1/metrics", headers=headers, timeout=_PATIENCE_S),
    )


def _gen_ai(record: Record, *, with_usage: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {
        "gen_ai.operation.name": OPERATIONS.get(record.dialect, record.dialect),
        "gen_ai.provider.name": "crossroads",
        "gen_ai.response.model": record.model,
    }
    if record.status != 200:
        found["error.type"] = str(record.status)
    if with_usage:
        found["gen_ai.request.model"] = record.asked
        found["gen_ai.usage.input_tokens"] = record.input_tokens
        found["gen_ai.usage.output_tokens"] = record.output_tokens
        if record.finish:
            found["gen_ai.response.finish_reasons"] = [record.finish]
    return found


def _attributes(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = {
        **_gen_ai(record),
        "http.response.status_code": record.status,
        "crossroads.decision.id": record.decision_id,
        "crossroads.policy": record.policy,
        "crossroads.chosen": record.chosen,
        "crossroads.reason": record.reason,
        "crossroads.propensity": record.propensity,
        "crossroads.attempts": len(record.attempts),
        "crossroads.cost.usd": record.cost_usd,
    }
    if record.confidence is not None:
        found["crossroads.confidence"] = record.confidence
    for phase in ("queue", "route", "connect", "upstream", "relay"):
        found[f"crossroads.{phase}.ms"] = getattr(record, f"{phase}_ms")
    return found
