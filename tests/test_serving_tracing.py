"""Each request is one trace: itself, its waiting and its computing, inside its caller's trace."""

import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serving.grpc_methods import SERVICE_NAME
from serving.tracing import Tracing
from simple_diffusion.v1 import diffusion_pb2 as pb
from simple_diffusion.v1.diffusion_pb2_grpc import DiffusionServiceStub
from tests.edge_harness import Edge, running_edge
from tests.fakes import write_tiny_bundle
from tests.http_harness import GENERATE, http_client
from tests.server_process import environment, running_server


@contextlib.asynccontextmanager
async def traced_edge() -> AsyncIterator[tuple[Edge, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces = Tracing(provider, SERVICE_NAME)
    async with running_edge(on_finished=traces.record) as edge:
        yield edge, exporter
    traces.close()


def spans(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """The finished spans by the last part of their names."""
    return {span.name.rpartition("/")[2]: span for span in exporter.get_finished_spans()}


def attributes(span: ReadableSpan) -> Mapping[str, object]:
    assert span.attributes is not None
    return span.attributes


def times(span: ReadableSpan) -> Sequence[int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


async def test_a_request_is_a_span_around_its_waiting_and_its_computing() -> None:
    async with traced_edge() as (edge, exporter):
        before = time.time_ns()
        response = await edge.stub.Generate(
            pb.GenerateRequest(label=7, count=3, num_steps=4, seed=1),
            metadata=[("x-request-id", "mine")],
        )
        found = spans(exporter)
    assert set(found) == {"Generate", "queue", "compute"}
    request, queue, compute = found["Generate"], found["queue"], found["compute"]
    assert request.name == f"{SERVICE_NAME}/Generate"
    assert request.kind is trace.SpanKind.SERVER
    assert request.status.is_unset
    assert attributes(request) == {
        "rpc.system": "grpc",
        "rpc.service": SERVICE_NAME,
        "rpc.method": "Generate",
        "rpc.grpc.status_code": 0,
        "diffusion.request_id": "mine",
        "diffusion.model": "fake",
        "diffusion.count": 3,
        "diffusion.sampler": "ddpm",
        "diffusion.num_steps": 4,
        "diffusion.guidance_scale": 1.0,
    }
    for child in (queue, compute):
        assert child.parent is not None
        assert child.parent.span_id == request.context.span_id
    assert before <= times(request)[0] <= times(queue)[0] <= times(queue)[1] == times(compute)[0]
    assert times(compute)[1] <= times(request)[1] <= time.time_ns()
    seconds = (times(compute)[1] - times(compute)[0]) / 1e9
    assert seconds == pytest.approx(response.compute_seconds, abs=1e-6)


async def test_the_trace_goes_on_from_the_callers() -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with traced_edge() as (edge, exporter):
        for sampled in ("01", "00"):
            await edge.stub.ListModels(
                pb.ListModelsRequest(),
                metadata=[("traceparent", f"00-{trace_id}-{span_id}-{sampled}")],
            )
        await edge.stub.ListModels(pb.ListModelsRequest(), metadata=[("traceparent", "nonsense")])
        found = exporter.get_finished_spans()
    # What the caller does not sample is not recorded here either.
    assert len(found) == 2
    assert found[0].parent is not None
    assert f"{found[0].context.trace_id:032x}" == trace_id
    assert f"{found[0].parent.span_id:016x}" == span_id
    assert found[1].parent is None


async def test_a_request_over_http_is_a_span_too() -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    async with traced_edge() as (edge, exporter), http_client(edge) as client:
        headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
        await client.post(GENERATE, json={"label": 7}, headers=headers)
        found = spans(exporter)
    assert set(found) == {"HttpGenerate", "queue", "compute"}
    assert attributes(found["HttpGenerate"])["rpc.system"] == "http"
    assert f"{found['HttpGenerate'].context.trace_id:032x}" == trace_id


async def test_a_request_that_ends_badly_says_how_and_whose_fault_it_is() -> None:
    async with traced_edge() as (edge, exporter):
        with pytest.raises(grpc.aio.AioRpcError):
            await edge.stub.Generate(pb.GenerateRequest(label=77))
        edge.network.raise_on = {0}
        with pytest.raises(grpc.aio.AioRpcError):
            await edge.stub.Generate(pb.GenerateRequest(label=7))
        refused, failed = [
            span for span in exporter.get_finished_spans() if span.name.endswith("/Generate")
        ]
    assert attributes(refused)["rpc.grpc.status_code"] == 3
    assert refused.status.is_unset
    assert attributes(failed)["rpc.grpc.status_code"] == 13
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert "fell off" not in str(failed.to_json())


async def test_a_tracer_that_fails_changes_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    def explode(*_: object) -> None:
        raise LookupError("no collector")

    async with running_edge(on_finished=explode) as edge:
        assert len((await edge.stub.Generate(pb.GenerateRequest(label=7))).images) == 1
        assert edge.service.exchanges.active == 0
    assert "no collector" in caplog.text


@contextlib.contextmanager
def collecting() -> Iterator[tuple[int, list[str]]]:
    """A collector of traces on a port of its own, and the names of the spans that it gets."""
    names: list[str] = []

    def export(request: bytes, _: grpc.ServicerContext) -> bytes:
        message = trace_service_pb2.ExportTraceServiceRequest.FromString(request)
        for resource in message.resource_spans:
            [service] = [
                each.value.string_value
                for each in resource.resource.attributes
                if each.key == "service.name"
            ]
            names.extend(
                f"{service}: {span.name}" for scope in resource.scope_spans for span in scope.spans
            )
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    method = grpc.unary_unary_rpc_method_handler(export)
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Export": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port, names
    finally:
        server.stop(0)


def test_a_server_process_sends_its_traces_to_the_collector(tmp_path: Path) -> None:
    tiny = write_tiny_bundle(tmp_path / "tiny")
    with collecting() as (port, names):
        flags = ("--tracing-endpoint", f"http://127.0.0.1:{port}")
        with (
            running_server(tiny, flags=flags) as server,
            grpc.insecure_channel(server.target) as channel,
        ):
            DiffusionServiceStub(channel).Generate(pb.GenerateRequest(label=1))
            server.process.terminate()
            assert server.exit_code() == 0
    assert sorted(names) == [
        "simple-diffusion: compute",
        "simple-diffusion: queue",
        f"simple-diffusion: {SERVICE_NAME}/Generate",
    ]


def test_a_collector_that_is_not_there_holds_up_neither_answers_nor_the_exit(
    tmp_path: Path,
) -> None:
    tiny = write_tiny_bundle(tmp_path / "tiny")
    flags = ("--tracing-endpoint", "http://127.0.0.1:9")
    with (
        running_server(tiny, flags=flags) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        DiffusionServiceStub(channel).Generate(pb.GenerateRequest(label=1), timeout=10)
        begin = time.monotonic()
        server.process.terminate()
        assert server.exit_code() == 0
        assert time.monotonic() - begin < 8
        assert "Traceback" not in server.log


NOT_INSTALLED = """
import sys
sys.modules["opentelemetry"] = None
from serving import tracing
try:
    tracing.start("http://127.0.0.1:4317", 1.0, "service")
except tracing.TracingError as error:
    print(error)
"""


def test_without_the_extra_it_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOT_INSTALLED],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "needs the extra `tracing`" in done.stdout


LOADED = """
import sys
import serving.server
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


def test_nothing_of_it_is_imported_unless_traces_are_asked_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
