"""Steps on fixed memory: which sizes there are, what eps is, and that one batch has the memory."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.bundle import Bundle, BundleError, load_bundle
from serving.device import HostDevice
from serving.device_denoiser import DeviceDenoiser
from serving.engine import Engine
from serving.lane_count import measure_lane_count
from serving.network import OnnxNetwork, embedding_table
from serving.step_network import BUCKETS, StepNetwork, buckets_for
from tests.fakes import (
    RecordingSink,
    assert_reference_pixels,
    spec,
    unet_graph,
    write_tiny_bundle,
)
from tests.server_process import MNIST
from tests.step_fakes import MODEL, fake_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fake_bundle(tmp_path_factory.mktemp("bundle"))


def rows_of(bundle: Bundle, rows: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(rows)
    manifest = bundle.manifest
    x_t = generator.normal(size=(rows, *manifest.image_shape)).astype(np.float32)
    return x_t, generator.normal(size=(rows, manifest.embedding_width)).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "buckets"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 4)),
        (40, (1, 2, 4, 8, 16, 32, 48)),
        (1024, BUCKETS),
        (1500, (*BUCKETS, 1500)),
    ],
)
def test_the_buckets_end_where_the_largest_batch_fits(rows: int, buckets: tuple[int, ...]) -> None:
    assert buckets_for(rows) == buckets


def test_a_batch_is_padded_to_the_next_bucket_and_a_larger_one_is_refused(bundle: Bundle) -> None:
    network = StepNetwork(bundle, HostDevice(), 1, max_rows=30)
    assert [network.padded_rows(rows) for rows in (1, 3, 8, 9, 32)] == [1, 4, 8, 16, 32]
    assert network.lane_counts == (1, 2, 4, 8, 16)
    with pytest.raises(ValueError, match="up to 32 rows here, got 33"):
        network(*rows_of(bundle, 33))
    with pytest.raises(ValueError, match="up to 32 rows"):
        DeviceDenoiser(MODEL, network, max_lanes=17)


@pytest.mark.parametrize("rows", [1, 3, 16, 11])
def test_eps_of_the_embedded_model_is_that_of_the_plain_network_to_the_bit(rows: int) -> None:
    bundle = load_bundle(MNIST)
    network = StepNetwork(bundle, HostDevice(), max_rows=16)
    x_t, emb = rows_of(bundle, rows)
    eps = network(x_t, emb)
    np.testing.assert_array_equal(eps, OnnxNetwork(bundle)(x_t, emb), strict=True)
    before = eps.copy()
    network(-x_t, emb)
    np.testing.assert_array_equal(eps, before)  # not a view of the memory


def test_eps_does_not_depend_on_the_steps_before(bundle: Bundle) -> None:
    network = StepNetwork(bundle, HostDevice(), 1, max_rows=16)
    x_t, emb = rows_of(bundle, 3)
    expected = network(x_t, emb)
    denoiser = DeviceDenoiser(MODEL, network, max_lanes=8)
    request = spec(guidance_scale=2.0, count=5)
    plan = denoiser.plans.acquire(request.sampler, request.num_steps)
    denoiser.join(request, request=0, plan=plan, first_index=0, images=5)
    denoiser.draw_initial()
    denoiser.step()
    np.testing.assert_array_equal(network(x_t, emb), expected)


def test_engines_that_take_turns_in_one_memory_draw_what_they_draw_alone(bundle: Bundle) -> None:
    network = StepNetwork(bundle, HostDevice(), 1, max_rows=8)
    x_t, emb = rows_of(bundle, 3)
    eps = network(x_t, emb)
    requests = [
        spec(count=3, num_steps=6, seed=1),
        spec(count=2, num_steps=9, guidance_scale=3.0, sampler="dpmpp_2m"),
    ]
    engines = [Engine(MODEL, network, max_lanes=4) for _ in requests]
    sinks = [RecordingSink() for _ in requests]
    for engine, request, sink in zip(engines, requests, sinks, strict=True):
        engine.submit(request, sink)
    while any(engine.has_work for engine in engines):
        for engine in engines:
            engine.step()
        np.testing.assert_array_equal(network(x_t, emb), eps)
    for request, sink in zip(requests, sinks, strict=True):
        assert_reference_pixels(MODEL, request, sink.images)


def test_an_engine_that_is_let_go_keeps_no_memory_of_the_device(bundle: Bundle) -> None:
    """Else the GPU would hold two versions of a model for as long as Python collects no garbage."""
    network = StepNetwork(bundle, HostDevice(), 1, max_rows=8)
    engine = Engine(MODEL, network, max_lanes=4)
    engine.submit(spec(count=3, num_steps=3), RecordingSink())
    while engine.has_work:
        engine.step()
    kept = weakref.ref(network)
    gc.disable()
    try:
        del engine, network
        assert kept() is None
    finally:
        gc.enable()


def test_lanes_are_measured_among_those_that_there_is_room_for(bundle: Bundle) -> None:
    network = StepNetwork(bundle, HostDevice(), 1, max_rows=16)
    measured = measure_lane_count(MODEL, network)
    assert set(measured.step_seconds) <= set(network.lane_counts)
    assert measured.max_lanes in network.lane_counts


def test_recording_calls_every_bucket_and_harms_no_images(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = StepNetwork(bundle, HostDevice(), 1, max_rows=8)
    engine, sink = Engine(MODEL, network, max_lanes=4), RecordingSink()
    request = spec(count=3, guidance_scale=2.0)
    engine.submit(request, sink)
    engine.step()
    called: list[int] = []
    bound = network._bound

    def noted(bucket: int) -> Any:
        called.append(bucket)
        return bound(bucket)

    with monkeypatch.context() as noting:
        noting.setattr(network, "_bound", noted)
        engine.warm_up()
    assert called == list(network.buckets) == [1, 2, 4, 8]
    with monkeypatch.context() as noting:
        noting.setattr(network, "_bound", noted)
        called.clear()
        network.record(3)
    assert called == [1, 2, 4], "no more than there are lanes for"
    while engine.has_work:
        engine.step()
    assert_reference_pixels(MODEL, request, sink.images)


def test_another_table_is_taken_over(bundle: Bundle) -> None:
    """The memory is of the bundle, the table of the model: an engine brings its own."""
    network = StepNetwork(bundle, HostDevice(), 1, max_rows=2)
    drawn = []
    for table in (MODEL.embedding_table, embedding_table(bundle)):
        model = type(MODEL)(MODEL.image_shape, MODEL.null_label, MODEL.schedule, table)
        denoiser = DeviceDenoiser(model, network, max_lanes=1)
        plan = denoiser.plans.acquire("ddpm", 4)
        denoiser.join(spec(), request=0, plan=plan, first_index=0, images=1)
        denoiser.draw_initial()
        while not denoiser.step().finished.all():
            pass
        drawn.append(denoiser.lanes.x[:1].copy())
    assert not np.array_equal(*drawn)


def test_a_unet_that_is_not_what_the_manifest_says_is_refused(tmp_path: Path) -> None:
    odd = load_bundle(
        write_tiny_bundle(tmp_path / "odd", image_shape=(2, 4, 6), unet=unet_graph((2, 4, 5), 8))
    )
    with pytest.raises(BundleError, match=r"unet.onnx: input x_t must be \[batch, 2, 4, 6\]"):
        StepNetwork(odd, HostDevice(), 1, max_rows=2)
    broken = Bundle(odd.manifest, odd.embedding_onnx, b"no graph at all")
    with pytest.raises(BundleError, match=r"unet.onnx does not load \("):
        StepNetwork(broken, HostDevice(), 1, max_rows=2)
