"""Requests become complete specs, or are refused with all of their bad fields at once."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.samplers import SAMPLERS
from serving.request import GenerateSpec
from serving.validation import (
    MAX_GUIDANCE_SCALE,
    SAMPLER_NAMES,
    InvalidRequestError,
    ServedModel,
    draw_seed,
    validate,
)
from simple_diffusion.v1 import diffusion_pb2 as pb

MODEL = ServedModel(
    name="digits",
    version="1",
    label_names=tuple("0123456789"),
    channels=1,
    height=28,
    width=28,
    num_train_timesteps=1000,
    default_sampler="ddim",
    default_num_steps=12,
    default_guidance_scale=1.5,
)
TWO_CHANNELS = ServedModel(
    name="flow",
    version="1",
    label_names=("a",),
    channels=2,
    height=8,
    width=8,
    num_train_timesteps=100,
    default_sampler="ddpm",
    default_num_steps=10,
    default_guidance_scale=1.0,
)


def check(
    request: pb.GenerateRequest, model: ServedModel = MODEL, streaming: bool = False
) -> GenerateSpec:
    return validate(request, model, max_images_per_request=64, streaming=streaming)


def bad_fields(
    request: pb.GenerateRequest, model: ServedModel = MODEL, streaming: bool = False
) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        check(request, model, streaming)
    fields = {violation.field: violation.description for violation in caught.value.violations}
    assert len(fields) == len(caught.value.violations), "one violation per field"
    return fields


def test_unset_fields_get_the_defaults_of_the_model() -> None:
    spec = check(pb.GenerateRequest(label=3, seed=9))
    assert spec == GenerateSpec(
        label=3,
        count=1,
        first_index=0,
        seed=9,
        sampler="ddim",
        num_steps=12,
        guidance_scale=1.5,
        preview_every=0,
        deadline_seconds=None,
    )


def test_set_fields_are_taken_as_they_are() -> None:
    request = pb.GenerateRequest(
        label=0,
        count=64,
        seed=2**64 - 1,
        sampler=pb.SAMPLER_DPMPP_2M,
        num_steps=1000,
        guidance_scale=0.0,
        first_index=2**31 - 64,
        preview_every=3,
    )
    spec = validate(
        request, MODEL, max_images_per_request=64, streaming=True, deadline_seconds=12.5
    )
    assert spec == GenerateSpec(
        label=0,
        count=64,
        first_index=2**31 - 64,
        seed=2**64 - 1,
        sampler="dpmpp_2m",
        num_steps=1000,
        guidance_scale=0.0,
        preview_every=3,
        deadline_seconds=12.5,
    )


def test_label_0_is_a_label_and_no_label_is_not() -> None:
    assert check(pb.GenerateRequest(label=0)).label == 0
    assert bad_fields(pb.GenerateRequest()) == {"label": "is not set; it must be in 0..9"}


@pytest.mark.parametrize(
    ("fields", "field", "expected"),
    [
        ({"label": -1}, "label", "-1 is not in 0..9"),
        ({"label": 10}, "label", "10 is not in 0..9"),
        ({"count": 0}, "count", "0 is not in 1..64"),
        ({"count": -5}, "count", "-5 is not in 1..64"),
        ({"count": 65}, "count", "65 is not in 1..64"),
        ({"num_steps": 0}, "num_steps", "0 is not in 1..1000"),
        ({"num_steps": 1001}, "num_steps", "1001 is not in 1..1000"),
        ({"guidance_scale": -0.5}, "guidance_scale", "-0.5 is not in 0..20"),
        ({"guidance_scale": 20.5}, "guidance_scale", "20.5 is not in 0..20"),
        ({"guidance_scale": math.nan}, "guidance_scale", "nan is not in 0..20"),
        ({"guidance_scale": math.inf}, "guidance_scale", "inf is not in 0..20"),
        ({"guidance_scale": -math.inf}, "guidance_scale", "-inf is not in 0..20"),
        ({"first_index": -1}, "first_index", "-1 is not in 0..2147483647 (for count 1)"),
        (
            {"first_index": 2**31 - 1, "count": 2},
            "first_index",
            "2147483647 is not in 0..2147483646 (for count 2)",
        ),
        ({"preview_every": -1}, "preview_every", "-1 is negative; 0 = no previews"),
        (
            {"preview_every": 2},
            "preview_every",
            "2 is not 0; only GenerateStream sends previews",
        ),
        ({"sampler": 5}, "sampler", "5 is not one of 0 (SAMPLER_UNSPECIFIED)"),
        ({"sampler": -1}, "sampler", "-1 is not one of"),
        ({"format": 77}, "format", "77 is not one of 0 (IMAGE_FORMAT_UNSPECIFIED)"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_range(
    fields: dict[str, float], field: str, expected: str
) -> None:
    found = bad_fields(pb.GenerateRequest(**{"label": 1, **fields}))
    assert list(found) == [field]
    assert found[field].startswith(expected)


def test_all_bad_fields_are_named_at_once() -> None:
    request = pb.GenerateRequest(
        count=0,
        sampler=9,
        num_steps=0,
        guidance_scale=math.nan,
        format=9,
        first_index=-1,
        preview_every=-1,
    )
    assert set(bad_fields(request)) == {
        "label",
        "count",
        "sampler",
        "num_steps",
        "guidance_scale",
        "format",
        "first_index",
        "preview_every",
    }


def test_png_is_refused_for_images_it_cannot_hold() -> None:
    assert list(bad_fields(pb.GenerateRequest(label=0), TWO_CHANNELS)) == ["format"]
    raw = pb.GenerateRequest(label=0, format=pb.IMAGE_FORMAT_RAW_UINT8)
    assert check(raw, TWO_CHANNELS).label == 0


def test_drawn_seeds_differ_and_survive_json() -> None:
    seeds = {check(pb.GenerateRequest(label=1)).seed for _ in range(100)}
    assert len(seeds) == 100
    assert all(int(float(seed)) == seed for seed in seeds)
    assert 0 <= draw_seed() < 2**53


def test_a_seed_of_0_is_kept() -> None:
    assert check(pb.GenerateRequest(label=1, seed=0)).seed == 0


def test_the_engine_knows_every_sampler_of_the_contract() -> None:
    assert set(SAMPLER_NAMES) == set(pb.Sampler.values()) - {pb.SAMPLER_UNSPECIFIED}
    assert set(SAMPLER_NAMES.values()) == set(SAMPLERS)


_INT32 = st.integers(-(2**31), 2**31 - 1)
_FIELDS = pb.GenerateRequest.DESCRIPTOR.fields_by_name


@given(
    label=st.none() | st.integers(-2, 12) | _INT32,
    count=st.none() | st.integers(-2, 70) | _INT32,
    seed=st.none() | st.integers(0, 2**64 - 1),
    sampler=st.integers(-1, 6) | _INT32,
    num_steps=st.none() | st.integers(-2, 1003) | _INT32,
    guidance_scale=st.none() | st.floats(width=32),
    image_format=st.integers(-1, 4) | _INT32,
    first_index=st.integers(-2, 3) | _INT32,
    preview_every=st.integers(-2, 3) | _INT32,
    streaming=st.booleans(),
)
def test_what_passes_is_in_range_and_what_does_not_names_its_fields(
    label: int | None,
    count: int | None,
    seed: int | None,
    sampler: int,
    num_steps: int | None,
    guidance_scale: float | None,
    image_format: int,
    first_index: int,
    preview_every: int,
    streaming: bool,
) -> None:
    request = pb.GenerateRequest(
        label=label,
        count=count,
        seed=seed,
        sampler=sampler,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        format=image_format,
        first_index=first_index,
        preview_every=preview_every,
    )
    try:
        spec = check(request, streaming=streaming)
    except InvalidRequestError as error:
        named = [violation.field for violation in error.violations]
        assert named
        assert len(set(named)) == len(named)
        assert set(named) <= set(_FIELDS)
        assert "\n" not in str(error)
        return
    assert 0 <= spec.label <= 9
    assert 1 <= spec.count <= 64
    assert 0 <= spec.first_index
    assert spec.first_index + spec.count <= 2**31
    assert 0 <= spec.seed < 2**64
    assert spec.seed == seed or seed is None
    assert spec.sampler in SAMPLERS
    assert 1 <= spec.num_steps <= 1000
    assert 0 <= spec.guidance_scale <= MAX_GUIDANCE_SCALE
    assert spec.preview_every >= 0
    assert streaming or spec.preview_every == 0


def test_previews_rarer_than_steps_are_none_and_no_error() -> None:
    asked = pb.GenerateRequest(label=1, num_steps=7, preview_every=2**31 - 1)
    assert check(asked, streaming=True).preview_every == 7
