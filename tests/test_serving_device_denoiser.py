"""Steps on a device: equal to the reference loop and to NumPy's steps, whatever happens between."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from serving.bundle import Bundle
from serving.denoiser import Denoiser
from serving.device import HostDevice
from serving.device_denoiser import DeviceDenoiser, make_denoiser
from serving.engine import Engine
from serving.engine_model import EngineModel
from serving.request import Outcome
from serving.step_network import BUCKETS, StepNetwork
from tests.fakes import (
    FakeNetwork,
    RecordingSink,
    assert_reference_pixels,
    fake_eps,
    reference_x_0,
    spec,
)
from tests.step_fakes import MODEL, fake_bundle
from tests.test_serving_denoiser import REQUESTS, join, run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fake_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def network(bundle: Bundle) -> StepNetwork:
    return StepNetwork(bundle, HostDevice(), 1, max_rows=64)


def pairs(network: StepNetwork, *numbers: int) -> Iterator[tuple[Denoiser, Denoiser]]:
    """The same lanes in NumPy and on the device, before every step until all are at their end."""
    both = Denoiser(MODEL, fake_eps, 16), DeviceDenoiser(MODEL, network, 16)
    for denoiser in both:
        for number in numbers:
            join(denoiser, number)
    while both[0].lanes.count:
        yield both
        for denoiser in both:
            finished = denoiser.lanes.position == denoiser.lanes.num_steps
            denoiser.lanes.leave(finished[: denoiser.lanes.count])


def test_a_network_with_a_device_is_stepped_there_and_any_other_in_numpy(
    network: StepNetwork,
) -> None:
    assert type(make_denoiser(MODEL, network, 4)) is DeviceDenoiser
    assert type(make_denoiser(MODEL, FakeNetwork(), 4)) is Denoiser


def test_lanes_of_all_kinds_that_come_and_go_draw_what_the_reference_draws(
    network: StepNetwork,
) -> None:
    images = run(
        DeviceDenoiser(MODEL, network, max_lanes=16), {0: [0, 1], 2: [2, 3, 4], 3: [5], 9: [6]}
    )
    assert len(images) == sum(request.count for request in REQUESTS)
    for number, request in enumerate(REQUESTS):
        expected = reference_x_0(MODEL, request)
        for offset in range(request.count):
            drawn = images[number, request.first_index + offset]
            np.testing.assert_array_equal(drawn, expected[offset], strict=True)


def test_every_step_is_numpys_to_the_bit_previews_too(network: StepNetwork) -> None:
    steps = 0
    for in_numpy, on_device in pairs(network, *range(len(REQUESTS))):
        on_device.lanes.preview_every[:] = 1
        expected, found = in_numpy.step(), on_device.step()
        np.testing.assert_array_equal(found.x_0, expected.x_0, strict=True)
        np.testing.assert_array_equal(found.finished, expected.finished)
        assert not found.nonfinite.any()
        which = found.finished
        n = on_device.lanes.count
        np.testing.assert_array_equal(
            on_device.lanes.x[:n][which], in_numpy.lanes.x[:n][which], strict=True
        )
        steps += 1
    assert steps == max(request.num_steps for request in REQUESTS)


@pytest.mark.parametrize("lanes", sorted({*BUCKETS[:7], 3, 11, 33}))
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_every_bucket_full_or_not_draws_what_the_reference_draws(
    bundle: Bundle, lanes: int, scale: float
) -> None:
    network = StepNetwork(bundle, HostDevice(), 1, max_rows=2 * lanes)
    engine, sink = Engine(MODEL, network, max_lanes=lanes), RecordingSink()
    request = spec(count=lanes, sampler="ddim_stochastic", guidance_scale=scale, num_steps=5)
    engine.submit(request, sink)
    while engine.has_work:
        engine.step()
    assert_reference_pixels(MODEL, request, sink.images)


def test_lanes_that_are_set_aside_and_resumed_go_on_with_the_same_bits(
    network: StepNetwork,
) -> None:
    denoiser = DeviceDenoiser(MODEL, network, max_lanes=16)
    for number in (0, 2, 6):
        join(denoiser, number)
    denoiser.step()
    denoiser.step()
    keep = np.zeros(7, dtype=np.int64)
    keep[2] = 1  # of request 2 one lane goes on; of 0 and 6 none
    assert denoiser.set_aside(keep) == 6
    join(denoiser, 3)
    join(denoiser, 1)
    denoiser.step()
    denoiser.set_aside(keep)  # those that have not moved in between, too
    for slot in (0, 1, 2, 6):
        denoiser.resume(slot, 9)
    images = run(denoiser, {0: []})
    for number in (0, 1, 2, 6):
        request = REQUESTS[number]
        expected = reference_x_0(MODEL, request)
        for offset in range(request.count):
            drawn = images[number, request.first_index + offset]
            np.testing.assert_array_equal(drawn, expected[offset], strict=True)


def test_set_aside_before_the_first_step_a_lane_is_drawn_when_it_is_resumed(
    network: StepNetwork,
) -> None:
    denoiser = DeviceDenoiser(MODEL, network, max_lanes=4)
    join(denoiser, 3)
    denoiser.set_aside(np.zeros(4, dtype=np.int64))
    assert denoiser.lanes.count == 0
    denoiser.resume(3, 1)
    images = run(denoiser, {0: []})
    np.testing.assert_array_equal(images[3, 0], reference_x_0(MODEL, REQUESTS[3])[0])


def test_what_is_not_finite_is_reported_in_its_lane_and_stays_there(network: StepNetwork) -> None:
    table = MODEL.embedding_table.copy()
    table[:, 3] = np.nan
    model = dataclasses.replace(MODEL, embedding_table=table)
    engine = Engine(model, network, max_lanes=8)
    sinks = {label: RecordingSink() for label in (2, 3, 4)}
    for label, sink in sinks.items():
        engine.submit(spec(label=label, guidance_scale=2.0, count=2), sink)
    while engine.has_work:
        engine.step()
    assert sinks[3].outcome is Outcome.NETWORK_FAILED
    for label in (2, 4):
        request = spec(label=label, guidance_scale=2.0, count=2)
        assert_reference_pixels(MODEL, request, sinks[label].images)


def test_a_lane_does_not_inherit_what_was_in_its_row_before(network: StepNetwork) -> None:
    table = MODEL.embedding_table.copy()
    table[:, 3] = np.nan
    denoiser = DeviceDenoiser(
        dataclasses.replace(MODEL, embedding_table=table), network, max_lanes=1
    )
    join(denoiser, 3)
    assert denoiser.step().nonfinite.all()
    denoiser.lanes.leave(np.ones(1, dtype=np.bool_))
    images = run(denoiser, {0: [4]})  # DPM-Solver++ multiplies x_0_previous
    np.testing.assert_array_equal(images[4, 0], reference_x_0(MODEL, REQUESTS[4])[0])


def test_a_step_that_raises_fails_its_requests_and_the_engine_goes_on(
    network: StepNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, failing, next_one = (
        Engine(MODEL, network, max_lanes=4),
        RecordingSink(),
        RecordingSink(),
    )
    engine.submit(spec(count=2), failing)
    engine.step()

    def fail(*_: object) -> None:
        raise RuntimeError("the device fell off")

    with monkeypatch.context() as broken:
        broken.setattr(network, "_send", fail)
        engine.step()
    assert failing.outcome is Outcome.NETWORK_FAILED
    engine.submit(spec(), next_one)
    while engine.has_work:
        engine.step()
    assert_reference_pixels(MODEL, spec(), next_one.images)


def test_the_engine_with_sharing_and_preemption_draws_the_same_on_a_device(
    network: StepNetwork,
) -> None:
    engine = Engine(MODEL, network, max_lanes=4, cache_bytes=1 << 20)
    requests = [
        spec(count=9, num_steps=40, sampler="ddpm"),
        spec(count=1, num_steps=3, sampler="dpmpp_2m", guidance_scale=2.0),
        spec(count=4, num_steps=40, sampler="ddpm"),  # the same images as the first one's
        spec(count=2, num_steps=6, preview_every=2),
    ]
    sinks = [RecordingSink() for _ in requests]
    set_aside = 0
    for request, sink in zip(requests, sinks, strict=True):
        engine.submit(request, sink)
        for _ in range(3):
            stats = engine.step()
            assert stats is not None
            set_aside += stats.lanes_set_aside
    while engine.has_work:
        engine.step()
    assert set_aside
    for request, sink in zip(requests, sinks, strict=True):
        assert_reference_pixels(MODEL, request, sink.images)
    assert sorted(sinks[3].previews) == [(i, position) for i in (0, 1) for position in (2, 4)]


def test_the_seconds_of_the_network_are_those_of_the_device(network: StepNetwork) -> None:
    engine = Engine(MODEL, network, max_lanes=4)
    engine.submit(spec(count=4), RecordingSink())
    stats = engine.step()
    assert stats is not None
    assert 0 < stats.network_seconds < stats.total_seconds


def test_a_model_that_clips_elsewhere_than_the_graph_is_refused(network: StepNetwork) -> None:
    model: EngineModel = dataclasses.replace(MODEL, clip=None)
    with pytest.raises(ValueError, match="clips x_0 at 1"):
        DeviceDenoiser(model, network, 4)
