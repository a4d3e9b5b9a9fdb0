"""The benchmark of the edge: it measures requests that end as they should, beside gRPC alone."""

from pathlib import Path

import grpc
import pytest

from benchmarks.edge_cost import ACCEPTED, REFUSED, Load, measure
from simple_diffusion.v1 import diffusion_pb2 as pb
from tests.fakes import write_tiny_bundle


@pytest.mark.parametrize(
    ("load", "code"),
    [(ACCEPTED, grpc.StatusCode.OK), (REFUSED, grpc.StatusCode.RESOURCE_EXHAUSTED)],
    ids=["accepted", "refused"],
)
async def test_a_request_is_measured_beside_grpc_alone(
    tmp_path: Path, load: Load, code: grpc.StatusCode
) -> None:
    cost = await measure(write_tiny_bundle(tmp_path / "tiny"), load, turns=2, turn_seconds=0.2)
    assert cost.answer.code is code
    assert len(cost.ours) == len(cost.bare) == 2
    assert min(*cost.ours, *cost.bare) > 0
    assert f"{load.name} ({code.name})" in cost.summary(load.name)
    if code is grpc.StatusCode.OK:
        assert len(pb.GenerateResponse.FromString(cost.answer.body).images) == load.count
    else:
        assert "grpc-retry-pushback-ms" in dict(cost.answer.trailing_metadata)
