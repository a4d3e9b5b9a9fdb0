"""What is asked for is what the caller said, and a value that fits no message is named."""

import pytest

from serving.client.requests import build_request
from simple_diffusion.v1 import diffusion_pb2 as pb


def test_what_is_not_said_is_left_to_the_model() -> None:
    request = build_request(7, 16)
    unset = ("num_steps", "guidance_scale")
    assert [request.HasField(name) for name in unset] == [False, False]
    assert (request.label, request.count, request.model, request.sampler) == (7, 16, "", 0)
    assert request.format == pb.IMAGE_FORMAT_RAW_UINT8


def test_a_request_always_carries_a_seed_that_survives_a_double() -> None:
    seeds = {build_request(0, 1).seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(seed == int(float(seed)) < 2**53 for seed in seeds)
    assert build_request(0, 1, seed=0).HasField("seed")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": 2**31}, "label must be in -2147483648..2147483647, got 2147483648"),
        ({"count": -(2**31) - 1}, "count must be in"),
        ({"seed": -1}, "seed must be in 0..18446744073709551615, got -1"),
        ({"seed": 2**64}, "seed must be in"),
        ({"num_steps": 2**40}, "num_steps must be in"),
        ({"first_index": 2**31}, "first_index must be in"),
        ({"preview_every": 2**31}, "preview_every must be in"),
        ({"sampler": "euler"}, "sampler must be one of ddpm, ddim, dpmpp_2m, ddim_stochastic, got"),
    ],
)
def test_a_value_that_fits_no_message_is_named_with_its_range(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_request(**{"label": 0, "count": 1, **fields})
