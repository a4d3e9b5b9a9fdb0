"""Builds the messages that ask for images."""

import secrets
from typing import TypedDict

from serving.client.results import SAMPLERS
from simple_diffusion.v1 import diffusion_pb2 as pb

_SEED_BITS = 53  # survive JSON and spreadsheets, which hold numbers as doubles
_INT32 = (-(2**31), 2**31 - 1)
_UINT64 = (0, 2**64 - 1)


class RequestOptions(TypedDict, total=False):
    """What a request may say beside label and count. What is None is left to the model.

    Attributes:
        seed: uint64; None draws one, which the answer carries.
        model: name of a model; empty for the server's first.
        sampler: "ddpm", "ddim", "dpmpp_2m" or "ddim_stochastic".
        num_steps: reverse steps per image, 1 .. T of the model.
        guidance_scale: 0 .. 20; 1 is the plain conditional model.
        first_index: index of the first image under the seed, 0 or more.
    """

    seed: int | None
    model: str
    sampler: str | None
    num_steps: int | None
    guidance_scale: float | None
    first_index: int


def build_request(
    label: int,
    count: int,
    *,
    seed: int | None = None,
    model: str = "",
    sampler: str | None = None,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    first_index: int = 0,
    preview_every: int = 0,
) -> pb.GenerateRequest:
    """Returns a request that always carries a seed, so that a second attempt draws the same.

    Whether the server can draw that is for the server to say.

    Raises:
        ValueError: if a value does not even fit the message; it names the field and its range.
    """
    if sampler is not None and sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    seed = secrets.randbits(_SEED_BITS) if seed is None else seed
    for name, value, (least, most) in (
        ("label", label, _INT32),
        ("count", count, _INT32),
        ("seed", seed, _UINT64),
        ("num_steps", num_steps, _INT32),
        ("first_index", first_index, _INT32),
        ("preview_every", preview_every, _INT32),
    ):
        if value is not None and not least <= value <= most:
            raise ValueError(f"{name} must be in {least}..{most}, got {value}")
    return pb.GenerateRequest(
        label=label,
        count=count,
        seed=seed,
        model=model,
        sampler=pb.SAMPLER_UNSPECIFIED if sampler is None else SAMPLERS[sampler],
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        format=pb.IMAGE_FORMAT_RAW_UINT8,
        first_index=first_index,
        preview_every=preview_every,
    )
