"""Several workers on one device: steps beside each other, each on memory of its own."""

import time

import numpy as np
import pytest

from serving import lane_count
from serving import network as networks
from serving.bundle import Bundle
from serving.device import HostDevice
from serving.device_denoiser import DeviceDenoiser
from serving.engine import Engine
from serving.engine_threads import EngineThreads
from serving.lane_count import measure_lane_count
from serving.network import make_network
from serving.request import Outcome
from serving.self_test import run_self_test
from serving.step_network import StepNetwork
from serving.step_networks import StepNetworks
from tests.fakes import RecordingSink, assert_reference_pixels, fake_eps, spec
from tests.step_fakes import MODEL, fake_bundle

PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fake_bundle(tmp_path_factory.mktemp("step"))


def two_workers(bundle: Bundle, max_rows: int) -> StepNetworks:
    return StepNetworks(
        tuple(StepNetwork(bundle, HostDevice(), 1, max_rows=max_rows) for _ in range(2))
    )


def test_each_worker_of_an_engine_has_its_lanes_in_memory_of_its_own(bundle: Bundle) -> None:
    network = two_workers(bundle, 8)
    engine = Engine(MODEL, network, max_lanes=8, together=False)
    assert engine.workers == 2
    denoisers = engine._batching.denoisers
    assert all(isinstance(denoiser, DeviceDenoiser) for denoiser in denoisers)
    assert [vars(denoiser)["_device_network"] for denoiser in denoisers] == list(network.workers)
    assert denoisers[0].plans is denoisers[1].plans
    assert denoisers[0].aside is denoisers[1].aside


@pytest.mark.parametrize("order", ["first begun first done", "last begun first done"])
def test_steps_under_way_beside_each_other_draw_the_reference_pixels(
    bundle: Bundle, order: str
) -> None:
    engine = Engine(MODEL, two_workers(bundle, 8), max_lanes=8, together=False)
    requests = [
        spec(label=1, count=9, num_steps=7, seed=1, guidance_scale=2.0),
        spec(label=2, count=4, sampler="dpmpp_2m", num_steps=5, seed=2, preview_every=2),
        spec(label=3, count=1, sampler="ddim", num_steps=3, seed=3),
    ]
    sinks = [RecordingSink() for _ in requests]
    waiting = list(zip(requests, sinks, strict=True))
    most = 0
    while waiting or engine.has_work:
        if waiting:
            engine.submit(*waiting.pop(0))
        begun = []
        while (step := engine.begin()) is not None:
            begun.append(step)
        most = max(most, len(begun))
        for step in begun if order.startswith("first") else reversed(begun):
            step.run()
            engine.finish(step)
    assert most == 2
    for request, sink in zip(requests, sinks, strict=True):
        assert sink.outcome is Outcome.FINISHED
        assert_reference_pixels(MODEL, request, sink.images)


def test_a_lane_that_moves_to_the_other_worker_goes_on_from_where_it_was(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = two_workers(bundle, 8)
    brought: list[tuple[int, int]] = []
    bring = StepNetwork.bring

    def noted(self: StepNetwork, x: np.ndarray, x_0: np.ndarray) -> int:
        brought.append((network.workers.index(self), len(x)))
        return bring(self, x, x_0)

    monkeypatch.setattr(StepNetwork, "bring", noted)
    engine, sink = Engine(MODEL, network, max_lanes=8, together=False), RecordingSink()
    request = spec(count=4, num_steps=9, seed=5, guidance_scale=2.0)
    engine.submit(request, sink)
    first, other = engine._batching.denoisers
    engine.step()
    moved = first.lanes.count
    assert first.set_aside(np.zeros(engine._batching.queue.slots, dtype=np.int64)) == moved > 0
    assert other.resume(0, moved) == moved
    while engine.has_work:
        engine.step()
    assert (1, moved) in brought
    assert_reference_pixels(MODEL, request, sink.images)


def test_threads_that_step_beside_each_other_draw_the_reference_pixels(bundle: Bundle) -> None:
    engine = Engine(MODEL, two_workers(bundle, 16), max_lanes=16, together=False)
    requests = [
        spec(label=n % 3, count=1 + n % 5, num_steps=3 + n % 4, seed=n, guidance_scale=1 + n % 2)
        for n in range(40)
    ]
    sinks = [RecordingSink() for _ in requests]
    threads = EngineThreads({"fake": engine})
    threads.start()
    for request, sink in zip(requests, sinks, strict=True):
        threads.submit("fake", request, sink)
    assert threads.drain(PATIENCE_SECONDS)
    assert threads.stop(PATIENCE_SECONDS)
    for request, sink in zip(requests, sinks, strict=True):
        assert sink.outcome is Outcome.FINISHED
        assert_reference_pixels(MODEL, request, sink.images)


def test_eps_is_that_of_the_network_for_as_many_rows_as_fit_into_all(bundle: Bundle) -> None:
    network = two_workers(bundle, 8)
    rng = np.random.default_rng(0)
    for rows in (1, 8, 9, 16):
        x = rng.standard_normal((rows, *MODEL.image_shape), dtype=np.float32)
        emb = rng.standard_normal((rows, MODEL.embedding_table.shape[2]), dtype=np.float32)
        np.testing.assert_array_equal(network(x, emb), fake_eps(x, emb))
    with pytest.raises(ValueError, match="a batch has up to 16 rows here, got 17"):
        network(np.zeros((17, *MODEL.image_shape), dtype=np.float32), np.zeros((17, 8), np.float32))


def test_rows_are_padded_by_every_worker_and_lanes_are_those_of_all(bundle: Bundle) -> None:
    network = two_workers(bundle, 16)
    assert network.buckets == (1, 2, 4, 8, 16)
    assert network.lane_counts == (2, 4, 8, 16)
    assert [network.padded_rows(rows) for rows in (1, 2, 5, 10, 32)] == [2, 2, 8, 16, 32]
    with pytest.raises(ValueError, match="up to 16 rows"):
        network.padded_rows(33)
    measured = measure_lane_count(MODEL, network, together=False)
    assert set(measured.step_seconds) <= set(network.lane_counts)
    assert measured.max_lanes in network.lane_counts
    assert not measured.together


def test_the_self_test_compares_a_workers_steps_with_numpys(bundle: Bundle) -> None:
    network = two_workers(bundle, 8)
    report = run_self_test(MODEL, network, max_lanes=8, batch_sizes=network.buckets)
    assert report.step_difference == 0.0
    assert report.bit_equal


@pytest.mark.parametrize(
    ("max_lanes", "rows_of_each"), [(1, [2]), (5, [8, 8]), (64, [64, 64]), (None, [1024, 1024])]
)
def test_on_cuda_two_workers_have_room_for_the_lanes_that_were_asked_for(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, max_lanes: int | None, rows_of_each: list[int]
) -> None:
    opened: list[HostDevice] = []

    def device() -> HostDevice:
        opened.append(HostDevice())
        return opened[-1]

    monkeypatch.setattr(networks, "CudaDevice", device)
    monkeypatch.setattr(networks, "resolve_provider", lambda _: "cuda")
    network = make_network(bundle, "cuda", max_lanes=max_lanes)
    assert isinstance(network, StepNetworks)
    assert [worker.buckets[-1] for worker in network.workers] == rows_of_each
    assert len(opened) == len(rows_of_each), "each has a device, so that none waits for another"


def test_recording_takes_no_time_from_the_search_for_lanes(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the first step of a size takes longer than all others that are timed."""
    bound, recorded = StepNetwork._bound, set()

    def slow_at_first(self: StepNetwork, bucket: int) -> object:
        if (self, bucket) not in recorded:
            recorded.add((self, bucket))
            time.sleep(0.2)
        return bound(self, bucket)

    monkeypatch.setattr(StepNetwork, "_bound", slow_at_first)
    monkeypatch.setattr(lane_count, "_NO_BETTER", 99)
    network = two_workers(bundle, 16)
    measured = measure_lane_count(MODEL, network, together=False, budget_seconds=0.5)
    assert list(measured.step_seconds) == list(network.lane_counts)
    assert measured.seconds > 0.5
