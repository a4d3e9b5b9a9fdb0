"""Traces of requests for OpenTelemetry, sent over OTLP. The one module that imports opentelemetry.

It is an extra: nothing of it is imported unless somebody asks for traces.
"""

import os
import time
from typing import TYPE_CHECKING

import grpc

from serving.exchange import Exchange

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

_SERVICE = "simple-diffusion"
_SCOPE = "serving"
_EXPORT_SECONDS = 3.0

# What OpenTelemetry's conventions call an error of the server; the others are the client's affair.
_SERVER_ERRORS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class TracingError(Exception):
    """Traces cannot be sent; one line that says what is missing."""


class Tracing:
    """Makes of each finished request a span with its waiting and its computing as children.

    The trace goes on from the caller's, if the request's metadata hold a `traceparent`.

    Args:
        provider: where the spans go. `close` shuts it down.
        service: the full name of the gRPC service.
    """

    def __init__(self, provider: "TracerProvider", service: str) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._service = service
        self._tracer: Tracer = provider.get_tracer(_SCOPE)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, exchange: Exchange, code: grpc.StatusCode) -> None:
        """Takes a request that has just ended."""
        from opentelemetry import trace

        end_nanoseconds = time.time_ns()
        start_nanoseconds = end_nanoseconds - _nanoseconds(exchange.seconds)
        span = self._tracer.start_span(
            f"{self._service}/{exchange.method}",
            self._propagator.extract(_trace_context(exchange)),
            trace.SpanKind.SERVER,
            attributes=_attributes(exchange, code, self._service),
            start_time=start_nanoseconds,
        )
        if code in _SERVER_ERRORS:
            span.set_status(trace.StatusCode.ERROR)
        if exchange.ending is not None and exchange.accepted is not None:
            inside = trace.set_span_in_context(span)
            begin = start_nanoseconds + _nanoseconds(exchange.accepted_after_seconds)
            for name, seconds in (
                ("queue", exchange.ending.queue_seconds),
                ("compute", exchange.ending.compute_seconds),
            ):
                end = begin + _nanoseconds(seconds)
                self._tracer.start_span(name, inside, start_time=begin).end(end)
                begin = end
        span.end(end_nanoseconds)

    def close(self) -> None:
        """Sends what is left, for some seconds at most. Blocks."""
        self._provider.shutdown()


def start(endpoint: str, sample_ratio: float, service: str) -> Tracing:
    """Returns what sends traces to an OTLP collector over gRPC.

    OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_HEADERS, OTEL_RESOURCE_ATTRIBUTES and so on)
    count too.

    Args:
        endpoint: http://HOST:PORT, or https:// for TLS.
        sample_ratio: share of traces that begin here, 0 .. 1; a caller's decision goes first.
        service: the full name of the gRPC service.

    Raises:
        TracingError: if the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError:
        raise TracingError(
            "--tracing-endpoint needs the extra `tracing` (OpenTelemetry), which is not installed"
        ) from None
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
        resource=Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", _SERVICE)}),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint, timeout=_EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider, service)


def _trace_context(exchange: Exchange) -> dict[str, str]:
    return {
        key: value
        for key, value in exchange.call.metadata
        if key in ("traceparent", "tracestate") and isinstance(value, str)
    }


def _attributes(
    exchange: Exchange, code: grpc.StatusCode, service: str
) -> dict[str, str | int | float]:
    number: int = code.value[0]
    attributes: dict[str, str | int | float] = {
        "rpc.system": exchange.call.system,
        "rpc.service": service,
        "rpc.method": exchange.method,
        "rpc.grpc.status_code": number,
        "diffusion.request_id": exchange.request_id,
    }
    if exchange.accepted is not None:
        spec = exchange.accepted.spec
        attributes |= {
            "diffusion.model": exchange.accepted.model.name,
            "diffusion.count": spec.count,
            "diffusion.sampler": spec.sampler,
            "diffusion.num_steps": spec.num_steps,
            "diffusion.guidance_scale": spec.guidance_scale,
        }
    return attributes


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
