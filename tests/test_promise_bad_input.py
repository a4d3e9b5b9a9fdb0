"""Promise: bad input is refused by name, costs the engine nothing, and harms nobody."""

import math
import random
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.client.connection import READINESS
from simple_diffusion.v1 import diffusion_pb2 as pb
from tests.fault_figures import Record
from tests.server_process import ServerProcess, total

FULL = [pytest.mark.fault, pytest.mark.timeout(300)]
METHODS = ("Generate", "GenerateStream")

INT32 = st.integers(-(2**31), 2**31 - 1)
BAD: dict[str, st.SearchStrategy[Any]] = {
    "label": INT32.filter(lambda value: not 0 <= value <= 9),
    "count": INT32.filter(lambda value: not 1 <= value <= 1024),
    "sampler": INT32.filter(lambda value: not 0 <= value <= 4),
    "num_steps": INT32.filter(lambda value: not 1 <= value <= 1000),
    "guidance_scale": st.floats(width=32).filter(
        lambda value: not (math.isfinite(value) and 0.0 <= value <= 20.0)
    ),
    "format": INT32.filter(lambda value: not 0 <= value <= 2),
    "first_index": st.integers(-(2**31), -1),
    "preview_every": st.integers(-(2**31), -1),
}
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "label": st.integers(0, 9),
    "count": st.integers(1, 1024),
    "seed": st.integers(0, 2**64 - 1),
    "sampler": st.integers(0, 4),
    "num_steps": st.integers(1, 1000),
    "guidance_scale": st.floats(0, 20, width=32),
    "format": st.integers(0, 2),
    "first_index": st.integers(0, 2**31 - 2000),
}
EDGES: dict[str, list[float]] = {
    "label": [-(2**31), -1, 10, 2**31 - 1],
    "count": [-(2**31), -1, 0, 1025, 2**31 - 1],
    "sampler": [-1, 5, 2**31 - 1],
    "num_steps": [-(2**31), -1, 0, 1001, 2**31 - 1],
    "guidance_scale": [math.nan, math.inf, -math.inf, -1e-30, 20.000002, 3e38],
    "format": [-1, 3, 2**31 - 1],
    "first_index": [-(2**31), -1, 2**31 - 1],  # the last one with a count of 2
    "preview_every": [-(2**31), -1],
}


@pytest.fixture
def channel(mnist_server: ServerProcess) -> Iterator[grpc.Channel]:
    options = [("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(mnist_server.target, options) as connected:
        yield connected


def refusal_of(channel: grpc.Channel, method: str, body: bytes) -> tuple[str, list[str]]:
    """The status of a request, and the fields that it names; ("OK", []) if there is none."""
    path = f"/{READINESS}/{method}"
    try:
        if method == "GenerateStream":
            list(channel.unary_stream(path)(body, timeout=60))
        else:
            channel.unary_unary(path)(body, timeout=60)
    except grpc.RpcError as error:
        call: Any = error  # every error of a call is the call itself
        details = dict(call.trailing_metadata()).get("grpc-status-details-bin")
        bad_request = error_details_pb2.BadRequest()
        if details is not None:
            status_pb2.Status.FromString(details).details[0].Unpack(bad_request)
        return call.code().name, [violation.field for violation in bad_request.field_violations]
    return "OK", []


def engine_steps(server: ServerProcess) -> float:
    return total(server.until_idle(), "diffusion_engine_step_rows_count")


def healthy_and_idle(server: ServerProcess, steps: float) -> None:
    """Nothing was computed, and the server is still ready."""
    assert engine_steps(server) == steps
    assert [server.get(path)[0] for path in ("/livez", "/readyz")] == [200, 200]


@pytest.mark.parametrize("method", METHODS)
def test_every_field_is_refused_by_name_beyond_its_edges(
    mnist_server: ServerProcess, channel: grpc.Channel, figure: Record, method: str
) -> None:
    steps = engine_steps(mnist_server)
    cases = [(field, value) for field, values in EDGES.items() for value in values]
    for field, value in cases:
        request = pb.GenerateRequest(**{"label": 1, "count": 2, field: value})
        answer = refusal_of(channel, method, request.SerializeToString())
        assert answer == ("INVALID_ARGUMENT", [field]), (field, value)
    for body, named in (
        (b"", ["label"]),
        (b"\xff", ["request"]),
        (b"\x00" * 5_000_000, ["request"]),
    ):
        assert refusal_of(channel, method, body) == ("INVALID_ARGUMENT", named)
    unknown = pb.GenerateRequest(label=1, model="x" * 10_000)
    assert refusal_of(channel, method, unknown.SerializeToString())[0] == "NOT_FOUND"
    healthy_and_idle(mnist_server, steps)
    figure(
        f"{method}: values beyond an edge refused by name", f"{len(cases)} of {len(cases)}", "all"
    )


def test_every_field_is_taken_at_its_edges(
    mnist_server: ServerProcess, channel: grpc.Channel
) -> None:
    for field, value in (
        ("label", 0), ("label", 9), ("seed", 0), ("seed", 2**64 - 1),
        ("sampler", 0), ("sampler", 4), ("num_steps", 1), ("num_steps", 1000),
        ("guidance_scale", 0.0), ("guidance_scale", 20.0),
        ("format", 0), ("format", 2), ("first_index", 2**31 - 1), ("model", "mnist"),
    ):  # fmt: skip
        fields: dict[str, Any] = {"label": 1, "num_steps": 1, field: value}
        request = pb.GenerateRequest(**fields)
        assert refusal_of(channel, "Generate", request.SerializeToString()) == ("OK", [])
    whole = pb.GenerateRequest(label=1, num_steps=1, guidance_scale=1, count=1024)
    assert refusal_of(channel, "Generate", whole.SerializeToString()) == ("OK", [])


@pytest.mark.parametrize(
    "cases", [pytest.param(60, id="short"), pytest.param(1000, id="full", marks=FULL)]
)
def test_any_bad_fields_among_good_ones_are_named(
    mnist_server: ServerProcess, channel: grpc.Channel, figure: Record, cases: int
) -> None:
    steps = engine_steps(mnist_server)
    tried = 0

    @settings(max_examples=cases, suppress_health_check=list(HealthCheck))
    @given(
        good=st.fixed_dictionaries({}, optional=GOOD),
        bad=st.fixed_dictionaries({}, optional=BAD).filter(bool),
        method=st.sampled_from(METHODS),
    )
    def send(good: dict[str, Any], bad: dict[str, Any], method: str) -> None:
        nonlocal tried
        tried += 1
        request = pb.GenerateRequest(**{**good, **bad})
        missing = set() if request.HasField("label") else {"label"}
        code, named = refusal_of(channel, method, request.SerializeToString())
        assert code == "INVALID_ARGUMENT"
        assert set(named) == set(bad) | missing
        assert len(named) == len(set(named))

    send()
    healthy_and_idle(mnist_server, steps)
    figure("hypothesis: requests whose bad fields were all named", f"{tried} of {tried}", "all")


@pytest.mark.parametrize(
    "bodies", [pytest.param(150, id="short"), pytest.param(3000, id="full", marks=FULL)]
)
def test_random_bytes_are_never_more_than_a_bad_request(
    mnist_server: ServerProcess, channel: grpc.Channel, figure: Record, bodies: int
) -> None:
    chance = random.Random(6)
    whole = pb.GenerateRequest(label=200, count=3, seed=4, model="mnist").SerializeToString()
    codes: dict[str, int] = {}
    for number in range(bodies):
        body = (
            bytearray(whole) if number % 2 else bytearray(chance.randbytes(chance.randint(1, 400)))
        )
        for _ in range(chance.randint(1, 4)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        method = chance.choice((*METHODS, "ListModels"))
        code, _ = refusal_of(channel, method, bytes(body))
        codes[code] = codes.get(code, 0) + 1
    assert codes.keys() <= {"INVALID_ARGUMENT", "NOT_FOUND", "OK"}, (
        "OK: some are a request after all"
    )
    assert codes["INVALID_ARGUMENT"] > bodies / 4
    mnist_server.until_idle()
    assert mnist_server.get("/readyz")[0] == 200
    figure("random bodies, by status", codes, "no UNKNOWN, no INTERNAL")
