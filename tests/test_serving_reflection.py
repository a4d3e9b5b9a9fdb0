"""Tools can ask what the server can be asked, and get an answer whatever they send."""

from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from serving.grpc_methods import SERVICE_NAME
from serving.reflection import SERVICE_NAME as REFLECTION
from serving.tokens import Tokens
from tests.edge_harness import Edge, running_edge

TOKEN = "a-token-0123456789"


async def ask(
    edge: Edge, *requests: bytes, token: str | None = None
) -> list[reflection_pb2.ServerReflectionResponse]:
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    call = edge.channel.stream_stream(f"/{REFLECTION}/ServerReflectionInfo")(
        iter(requests), metadata=metadata, timeout=10
    )
    return [reflection_pb2.ServerReflectionResponse.FromString(each) async for each in call]


def request(**fields: str) -> bytes:
    message = reflection_pb2.ServerReflectionRequest(**fields)
    return bytes(message.SerializeToString())


async def test_the_services_are_listed_and_described() -> None:
    async with running_edge() as edge:
        listed, described, unknown = await ask(
            edge,
            request(list_services=""),
            request(file_containing_symbol=SERVICE_NAME),
            request(file_containing_symbol="no.such.Thing"),
        )
    names = {each.name for each in listed.list_services_response.service}
    assert names == {SERVICE_NAME, REFLECTION}
    (encoded,) = described.file_descriptor_response.file_descriptor_proto
    assert b"GenerateStream" in encoded
    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_bytes_that_are_no_request_are_an_invalid_argument() -> None:
    async with running_edge() as edge:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(edge, request(list_services=""), b"\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_with_tokens_it_answers_those_who_have_one(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    async with running_edge(tokens=Tokens(tmp_path / "tokens")) as edge:
        assert len(await ask(edge, request(list_services=""), token=TOKEN)) == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(edge, request(list_services=""))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
