"""A request that never arrives, or only in part, is answered too, and holds up nothing."""

import asyncio

import grpc
import pytest

from serving import receiving
from simple_diffusion.v1 import diffusion_pb2 as pb
from tests.edge_harness import Edge, running_edge
from tests.raw_http2 import GENERATE, GENERATE_STREAM, RawConnection, framed

CHECK = "/grpc.health.v1.Health/Check"
ASKED = pb.GenerateRequest(label=1, count=1).SerializeToString()


@pytest.fixture
def short_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests have half a second to arrive."""
    monkeypatch.setattr(receiving.receive, "__kwdefaults__", {"seconds": 0.5})


async def status(edge: Edge, number: int, connection: RawConnection) -> tuple[str, str]:
    """The code (a number, as text) and the message that end a stream."""
    headers = (await asyncio.to_thread(connection.answer, number)).headers
    return headers["grpc-status"], headers["grpc-message"]


@pytest.mark.parametrize("path", [GENERATE, GENERATE_STREAM, CHECK])
async def test_a_request_without_a_message_is_an_invalid_argument(path: str) -> None:
    async with running_edge() as edge:
        with RawConnection(edge.port) as connection:
            number = connection.begin(path)
            connection.h2.end_stream(number)
            connection.flush()
            code, message = await status(edge, number, connection)
    assert code == str(grpc.StatusCode.INVALID_ARGUMENT.value[0])
    assert message == "invalid request: request: there is no message"


@pytest.mark.parametrize("path", [GENERATE, GENERATE_STREAM, CHECK])
async def test_a_request_that_arrives_in_part_is_an_invalid_argument_after_a_while(
    short_arrival: None, path: str
) -> None:
    async with running_edge() as edge:
        with RawConnection(edge.port) as connection:
            number = connection.begin(path)
            connection.h2.send_data(number, framed(ASKED)[:-1])
            connection.flush()
            code, message = await status(edge, number, connection)
    assert code == str(grpc.StatusCode.INVALID_ARGUMENT.value[0])
    assert message == "invalid request: request: it did not arrive within 0.5 s"


async def test_a_request_that_arrives_slowly_but_in_time_is_answered() -> None:
    async with running_edge() as edge:
        with RawConnection(edge.port) as connection:
            number = connection.begin(GENERATE)
            for byte in framed(ASKED):
                connection.h2.send_data(number, bytes([byte]))
                connection.flush()
                await asyncio.sleep(0.01)
            connection.h2.end_stream(number)
            connection.flush()
            assert (await status(edge, number, connection))[0] == "0"


async def test_what_has_not_arrived_is_counted_and_does_not_hold_up_a_drain() -> None:
    async with running_edge() as edge:
        with RawConnection(edge.port) as connection:
            number = connection.begin(GENERATE)
            connection.flush()
            started = "diffusion_requests_started_total"
            await edge.until(lambda: edge.metrics.value(started, method="Generate") == 1)
            assert edge.service.exchanges.active == 0
            await asyncio.wait_for(edge.service.exchanges.wait_idle(), 1)
            edge.service.exchanges.abandon()
            code, _ = await status(edge, number, connection)
        assert code == str(grpc.StatusCode.UNAVAILABLE.value[0])
        assert edge.finished("Generate", "UNAVAILABLE") == 1
