"""Whatever is sent to whichever method, nobody gets UNKNOWN, a traceback or no answer at all."""

import random

import grpc
import pytest

from serving.grpc_methods import SERVICE_NAME as DIFFUSION
from serving.health import SERVICE_NAME as HEALTH
from serving.reflection import SERVICE_NAME as REFLECTION
from simple_diffusion.v1 import diffusion_pb2 as pb
from tests.edge_harness import Edge, pixels, running_edge

METHODS = {
    f"/{DIFFUSION}/Generate": False,
    f"/{DIFFUSION}/GenerateStream": True,
    f"/{DIFFUSION}/ListModels": False,
    f"/{HEALTH}/Check": False,
    f"/{HEALTH}/Watch": True,
    f"/{REFLECTION}/ServerReflectionInfo": True,
}
"""Every method, and whether its answer is a stream."""

UNDECODABLE = (b"\xff", b"\x0a\x05ab", b"\x07", b"\x00")


async def first_answer(edge: Edge, method: str, body: bytes) -> str:
    """The code of a call's end, or OK with its first answer."""
    try:
        if METHODS.get(method):
            call = edge.channel.stream_stream(method)(iter([body]), timeout=10)
            await call.read()
            call.cancel()
        else:
            await edge.channel.unary_unary(method)(body, timeout=10)
    except grpc.aio.AioRpcError as error:
        text = str(error.details())
        assert "Traceback" not in text
        assert ".py" not in text
        return str(error.code().name)
    return "OK"


@pytest.mark.parametrize("method", METHODS)
async def test_bytes_that_do_not_decode_are_an_invalid_argument(method: str) -> None:
    async with running_edge() as edge:
        for body in UNDECODABLE:
            assert await first_answer(edge, method, body) == "INVALID_ARGUMENT", body


@pytest.mark.parametrize("method", METHODS)
async def test_random_bytes_get_an_answer_that_is_not_unknown(method: str) -> None:
    rng = random.Random(method)
    async with running_edge() as edge:
        codes = {
            await first_answer(edge, method, rng.randbytes(rng.randrange(40))) for _ in range(150)
        }
        assert codes <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
        assert "INVALID_ARGUMENT" in codes
        await edge.until(lambda: edge.service.exchanges.active == 0)
        assert len((await edge.stub.Generate(pb.GenerateRequest(label=1))).images) == 1


@pytest.mark.parametrize(
    "method", [f"/{DIFFUSION}/Nothing", "/no.such.Service/Generate", "/", "/x", f"/{DIFFUSION}/"]
)
async def test_a_method_that_is_not_there_is_unimplemented(method: str) -> None:
    async with running_edge() as edge:
        assert await first_answer(edge, method, b"") == "UNIMPLEMENTED"


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests_are_read(compression: grpc.Compression) -> None:
    asked = pb.GenerateRequest(label=1, seed=3)
    async with running_edge() as edge:
        plain = await edge.stub.Generate(asked)
        assert pixels(await edge.stub.Generate(asked, compression=compression)) == pixels(plain)
