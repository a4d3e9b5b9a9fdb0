"""The U-Net on OpenVINO: the eps of ONNX Runtime, row by row, whatever the batch."""

import contextlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving import openvino_network
from serving.bundle import Bundle, BundleError, load_bundle
from serving.engine_model import EngineModel
from serving.network import OnnxNetwork, embedding_table, make_network, resolve_provider
from serving.onnx_session import ProviderError
from serving.openvino_network import ROWS_OF_A_THREAD, OpenVinoNetwork
from serving.self_test import run_self_test
from tests.fakes import unet_graph, write_tiny_bundle
from tests.server_process import MNIST

THREADS = 2
MOST = ROWS_OF_A_THREAD[-1] * THREADS


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(MNIST)


@pytest.fixture(scope="module")
def network(bundle: Bundle) -> OpenVinoNetwork:
    return OpenVinoNetwork(bundle, num_threads=THREADS)


@pytest.fixture(scope="module")
def rows(bundle: Bundle) -> tuple[np.ndarray, np.ndarray]:
    generator, count = np.random.default_rng(0), MOST + 3
    x_t = generator.normal(size=(count, *bundle.manifest.image_shape)).astype(np.float32)
    table = embedding_table(bundle)
    return x_t, table[np.linspace(999, 0, count).astype(int), np.arange(count) % 11]


@pytest.mark.parametrize("count", [1, 3, 5, 13, 24, 40, MOST, MOST + 3])
def test_it_gives_the_eps_of_onnx_runtime_in_float32(
    bundle: Bundle, network: OpenVinoNetwork, rows: tuple[np.ndarray, np.ndarray], count: int
) -> None:
    x_t, emb = (array[:count] for array in rows)
    eps = network(x_t, emb)
    assert eps.dtype == np.float32
    assert eps.shape == x_t.shape
    # bfloat16, which OpenVINO chooses by itself on new CPUs, is off by more than 1e-2.
    np.testing.assert_allclose(eps, OnnxNetwork(bundle)(x_t, emb), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "saturates", "refused"),
    [("mnist-int8", True, True), ("mnist-int8", False, False), ("mnist", True, False)],
)
def test_8_bits_are_refused_where_they_would_saturate(
    monkeypatch: pytest.MonkeyPatch, *, name: str, saturates: bool, refused: bool
) -> None:
    monkeypatch.setattr(openvino_network, "saturates_8_bits", lambda: saturates)
    monkeypatch.setattr(openvino_network, "ROWS_OF_A_THREAD", (1,))
    loaded = load_bundle(MNIST.with_name(name))
    with (
        pytest.raises(ProviderError, match="mnist-int8 is in 8 bits.*use --provider cpu")
        if refused
        else contextlib.nullcontext()
    ):
        OpenVinoNetwork(loaded, num_threads=1)


def test_a_row_is_the_same_to_the_bit_in_every_batch(
    network: OpenVinoNetwork, rows: tuple[np.ndarray, np.ndarray]
) -> None:
    x_t, emb = rows
    alone = np.concatenate([network(x_t[i : i + 1], emb[i : i + 1]) for i in range(len(x_t))])
    for count in (*network.buckets, 3, 5, 13, 40, len(x_t)):
        np.testing.assert_array_equal(network(x_t[:count], emb[:count]), alone[:count])


def test_no_row_sees_what_pads_its_batch(
    network: OpenVinoNetwork, rows: tuple[np.ndarray, np.ndarray]
) -> None:
    x_t, emb = (array[:5] for array in rows)
    expected = network(x_t, emb)
    network(np.full_like(rows[0][:8], np.nan), rows[1][:8])
    np.testing.assert_array_equal(network(x_t, emb), expected)


@pytest.mark.parametrize(
    ("rows", "padded"), [(1, 1), (3, 4), (25, 32), (64, 64), (65, 65), (67, 68), (200, 200)]
)
def test_batches_are_padded_to_the_next_call_that_is_compiled(
    network: OpenVinoNetwork, rows: int, padded: int
) -> None:
    assert network.padded_rows(rows) == padded


@pytest.mark.parametrize(
    ("threads", "buckets"), [(1, (1, 2, 4, 8, 12)), (3, (1, 2, 3, 6, 12, 24, 36))]
)
def test_any_number_of_threads_gives_the_same_eps(
    bundle: Bundle,
    network: OpenVinoNetwork,
    rows: tuple[np.ndarray, np.ndarray],
    threads: int,
    buckets: tuple[int, ...],
) -> None:
    x_t, emb = (array[:40] for array in rows)
    other = OpenVinoNetwork(bundle, num_threads=threads)
    assert other.buckets[: len(buckets)] == buckets
    np.testing.assert_array_equal(other(x_t, emb), network(x_t, emb))


@pytest.mark.parametrize("threads", [1, 2, 9])
def test_its_workers_compute_at_once_and_do_not_see_each_others_rows(
    bundle: Bundle,
    network: OpenVinoNetwork,
    rows: tuple[np.ndarray, np.ndarray],
    threads: int,
) -> None:
    other = OpenVinoNetwork(bundle, num_threads=threads)
    assert len(other.workers) == min(threads, 8)
    shares = [
        tuple(array[3 * number : 3 * number + 19] for array in rows)
        for number in range(len(other.workers))
    ]
    with ThreadPoolExecutor(len(other.workers)) as pool:
        for _ in range(5):
            got = pool.map(lambda worker, share: worker(*share), other.workers, shares)
            for eps, share in zip(got, shares, strict=True):
                np.testing.assert_array_equal(eps, network(*share))


def test_the_self_test_of_the_server_finds_it_equal_in_every_crowd(
    bundle: Bundle, network: OpenVinoNetwork
) -> None:
    model = EngineModel.from_manifest(bundle.manifest, embedding_table(bundle))
    report = run_self_test(model, network, max_lanes=8, batch_sizes=network.buckets)
    assert report.finite
    assert report.bit_equal
    assert [batch.rows for batch in report.batches] == [1, 2, 4, 8, 16]


def test_it_is_what_runs_when_it_is_asked_for(bundle: Bundle) -> None:
    assert resolve_provider("openvino") == "openvino"
    network = make_network(bundle, "openvino", 1)
    assert network.provider == "openvino"
    assert network.num_threads == 1


def test_where_it_is_not_installed_the_extra_is_named(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    for ask in (lambda: resolve_provider("openvino"), lambda: OpenVinoNetwork(bundle)):
        with pytest.raises(ProviderError, match="install the extra openvino"):
            ask()


def test_a_graph_that_is_not_the_manifests_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    path = write_tiny_bundle(folder, image_shape=(2, 4, 6), unet=unet_graph((1, 4, 4), 8))
    with pytest.raises(BundleError, match="input x_t must be"):
        OpenVinoNetwork(load_bundle(path))


def test_a_part_that_fails_leaves_no_other_one_running(
    bundle: Bundle, rows: tuple[np.ndarray, np.ndarray]
) -> None:
    class Failing:
        def start_async(self) -> None:
            """Begins well."""

        def wait(self) -> None:
            raise RuntimeError("no")

    network = OpenVinoNetwork(bundle, num_threads=THREADS)
    x_t, emb = (array[:24] for array in rows)
    expected = network(x_t, emb)
    call = network._calls[24]
    whole = list(call.parts)
    call.parts[0] = replace(call.parts[0], request=Failing())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no"):
        network(x_t, emb)
    call.parts[:] = whole
    np.testing.assert_array_equal(network(x_t, emb), expected)


REPLACED = """
import gc, os, signal
from serving.bundle import load_bundle
from serving.openvino_network import OpenVinoNetwork

caught = []
signal.signal(signal.SIGHUP, lambda number, _: caught.append(number))
bundle = load_bundle({bundle!r})
old, new = (OpenVinoNetwork(bundle, num_threads=1) for _ in range(2))
del old
gc.collect()
del new
gc.collect()
os.kill(os.getpid(), signal.SIGHUP)
assert caught == [signal.SIGHUP]
"""


def test_signals_arrive_after_networks_went_in_the_order_they_came(
    tmp_path: Path, repository: Path
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny")
    ended = subprocess.run(
        [sys.executable, "-c", REPLACED.format(bundle=str(bundle))],
        check=False, cwd=repository, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr or ended.returncode
