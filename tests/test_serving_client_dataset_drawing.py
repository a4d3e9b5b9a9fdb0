"""serving.client.dataset.drawing: the server is kept busy, obeyed, and left when it has changed."""

import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from serving import refusal
from serving.client import Client, ClientError, RetryPolicy
from serving.client.dataset.drawing import draw
from serving.client.dataset.plan import DatasetPlan
from serving.client.dataset.unfinished import DatasetError, Unfinished
from simple_diffusion.v1 import diffusion_pb2 as pb
from tests.client_harness import ScriptedServer, accept, refuse

PLAN = DatasetPlan(
    model="pixel", model_version="1", sampler="ddpm", num_steps=2, guidance_scale=1.5, seed=7,
    label_names=("zero", "one"), label_weights=(1, 1), train_count=20, test_count=4,
    height=1, width=1, channels=1, formats=("idx",),
)  # fmt: skip
ALL = [(7 * 31 + index) % 251 for index in range(24)]


def answer(request: pb.GenerateRequest, context: grpc.ServicerContext) -> pb.GenerateResponse:
    response = accept(request, context)
    response.model_version = "1"
    return response


def drawn_from(
    server: ScriptedServer,
    output: Path,
    *,
    in_flight: int = 1,
    policy: RetryPolicy | None = None,
    on_images: Callable[[int], None] = lambda _: None,
) -> list[int]:
    with (
        server.running(),
        Client(server.target, retry=policy, timeout_seconds=30) as client,
        Unfinished(output, PLAN) as unfinished,
    ):
        draw(
            client, PLAN, unfinished, images_per_request=4, in_flight=in_flight,
            on_images=on_images,
        )  # fmt: skip
        return unfinished.images[:, 0, 0, 0].tolist()


def test_everything_that_determines_pixels_is_in_every_request(tmp_path: Path) -> None:
    server = ScriptedServer([answer])
    counted: list[int] = []
    assert drawn_from(server, tmp_path, on_images=counted.append) == ALL
    assert sum(counted) == 24
    spans = [(each.label, each.first_index, each.count) for each in server.requests]
    assert spans == [
        (0, 0, 4), (0, 4, 4), (0, 8, 2), (1, 10, 4), (1, 14, 4), (1, 18, 2), (0, 20, 2), (1, 22, 2),
    ]  # fmt: skip
    for request in server.requests:
        assert (request.seed, request.model, request.sampler) == (7, "pixel", pb.SAMPLER_DDPM)
        assert (request.num_steps, request.guidance_scale) == (2, 1.5)


def test_as_many_requests_are_in_flight_as_were_asked_for(tmp_path: Path) -> None:
    together = threading.Barrier(3)

    def three_at_a_time(request: pb.GenerateRequest, context: grpc.ServicerContext) -> object:
        if request.first_index < 10:  # the first three requests
            together.wait(20)
        return answer(request, context)

    assert drawn_from(ScriptedServer([three_at_a_time]), tmp_path, in_flight=3) == ALL


def test_a_busy_server_is_asked_again_when_it_said_so(tmp_path: Path) -> None:
    busy = refuse(refusal.queue_full(9, 9, 0.2))
    server = ScriptedServer([busy, busy, answer])
    assert drawn_from(server, tmp_path, policy=RetryPolicy(max_attempts=3)) == ALL
    first, second, third = server.asked_seconds[:3]
    assert second - first >= 0.2
    assert third - second >= 0.2


def test_what_came_before_a_failure_stays_and_is_not_asked_for_again(tmp_path: Path) -> None:
    broken = refuse(refusal.unavailable("draining"))
    server = ScriptedServer([answer, answer, broken])
    with pytest.raises(ClientError, match="draining"):
        drawn_from(server, tmp_path)
    assert len(server.requests) == 3, "no further request after a failure"
    rest = ScriptedServer([answer])
    assert drawn_from(rest, tmp_path) == ALL
    assert [request.first_index for request in rest.requests] == [8, 10, 14, 18, 20, 22]


def test_another_version_of_the_model_ends_the_run(tmp_path: Path) -> None:
    def renewed(request: pb.GenerateRequest, context: grpc.ServicerContext) -> object:
        response = answer(request, context)
        response.model_version = "2"
        return response

    with pytest.raises(DatasetError, match=r"pixel is version 2 now; .* begun with 1"):
        drawn_from(ScriptedServer([answer, renewed]), tmp_path)
