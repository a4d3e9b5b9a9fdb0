"""The kernel and the calls of CUDA, without a GPU: compiled by NVRTC, and run on the host."""

import gc
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import cuda_device
from serving.cuda_device import CudaDevice, DeviceError, compile_kernel
from serving.device import Control, HostDevice
from serving.engine import Engine
from serving.recording import CUDA
from serving.self_test import run_self_test
from serving.step_network import StepNetwork
from tests import test_serving_device
from tests.fakes import RecordingSink, assert_reference_pixels, spec
from tests.step_fakes import COMPILER, MODEL, FakeDriver, compiled_for_the_host, fake_bundle

bindings = pytest.importorskip("cuda.bindings", reason="no bindings of CUDA for this system")
nvrtc = pytest.importorskip("cuda.bindings.nvrtc")


def compiler_is_there() -> bool:
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError:
        return False
    return True


needs_nvrtc = pytest.mark.skipif(not compiler_is_there(), reason="NVRTC is not installed")
needs_host_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Any:
    return compiled_for_the_host(
        tmp_path_factory.mktemp("kernel"), repository / "serving/prepare.cu"
    )


@pytest.fixture
def driver(library: Any, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver(library)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    monkeypatch.setattr(bindings, "driver", fake, raising=False)
    monkeypatch.setattr(cuda_device, "_unused", deque())  # the driver before had its own memory
    return fake


@needs_nvrtc
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90", "sm_100"])
def test_the_kernel_compiles_for_gpus_from_turing_to_blackwell(architecture: str) -> None:
    assert compile_kernel(nvrtc, architecture).tobytes().startswith(b"\x7fELF")


@needs_nvrtc
def test_a_kernel_that_does_not_compile_says_so_in_one_line() -> None:
    with pytest.raises(DeviceError, match="CUDA failed|does not compile") as refused:
        compile_kernel(nvrtc, "sm_1")
    assert "\n" not in str(refused.value)


def test_without_a_driver_the_device_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NoDriver:
        def cuInit(self, flags: int) -> None:
            raise RuntimeError('"cuda" is an NVIDIA driver library\nand is not installed')

    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", NoDriver())
    monkeypatch.setattr(bindings, "driver", NoDriver(), raising=False)
    with pytest.raises(DeviceError) as refused:
        CudaDevice()
    assert str(refused.value) == '"cuda" is an NVIDIA driver library and is not installed'


def test_without_the_bindings_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(DeviceError, match="serving-gpu"):
        CudaDevice()


@needs_nvrtc
@needs_host_compiler
def test_the_kernel_does_what_numpy_does_to_the_bit(driver: FakeDriver) -> None:
    rows = test_serving_device.ROWS
    control = test_serving_device.control_of_a_mixture()
    results = []
    for device in (HostDevice(), CudaDevice()):
        tensors = test_serving_device.step_tensors(device)
        device.write(tensors.control, control.block)
        device.preparation(tensors, rows)()
        written = (tensors.x_t, tensors.x_0_previous, tensors.noise, tensors.emb)
        results.append([device.read(tensor, rows) for tensor in written])
    for of_numpy, of_kernel in zip(*results, strict=True):
        np.testing.assert_array_equal(of_numpy, of_kernel, strict=True)
    assert driver.launches == [rows]


@needs_nvrtc
@needs_host_compiler
def test_an_engine_draws_the_same_pixels_through_the_calls_of_cuda(
    driver: FakeDriver, tmp_path: Path
) -> None:
    device = CudaDevice()
    assert device.stream != 0
    device.provider = "cpu"  # the graph runs on the host, where this memory really is
    network = StepNetwork(fake_bundle(tmp_path), device, 1, max_rows=16)
    assert run_self_test(MODEL, network, max_lanes=8).step_difference == 0.0
    requests = [
        spec(count=5, sampler="ddpm", num_steps=6, seed=2**64 - 1),
        spec(count=2, sampler="dpmpp_2m", guidance_scale=3.0, first_index=7),
    ]
    engine, sinks = Engine(MODEL, network, max_lanes=8), [RecordingSink(), RecordingSink()]
    for request, sink in zip(requests, sinks, strict=True):
        engine.submit(request, sink)
    while engine.has_work:
        engine.step()
    for request, sink in zip(requests, sinks, strict=True):
        assert_reference_pixels(MODEL, request, sink.images)
    assert set(driver.launches) <= set(network.buckets)


@needs_nvrtc
@needs_host_compiler
def test_memory_starts_as_zeros_and_is_freed_with_its_tensor(driver: FakeDriver) -> None:
    device = CudaDevice()
    before = len(driver.allocated)
    tensor = device.allocate((3, 4), np.float32)
    assert not device.read(tensor, 3).any()
    assert len(driver.allocated) == before + 1
    with CUDA.record():  # freed later, and without a wait
        del tensor
        gc.collect()
    assert len(driver.allocated) == before + 1
    CudaDevice()
    assert len(driver.allocated) == 2 * before


@needs_nvrtc
@needs_host_compiler
@pytest.mark.parametrize("call", ["cuMemAlloc", "cuStreamCreate", "cuModuleLoadData"])
def test_a_call_that_fails_is_an_error_with_its_name(driver: FakeDriver, call: str) -> None:
    driver.failing.add(call)
    with pytest.raises(DeviceError, match="CUDA failed: CUDA_ERROR_UNKNOWN"):
        CudaDevice().allocate((Control.words(1),), np.int64)


@needs_nvrtc
@needs_host_compiler
def test_nothing_is_done_on_a_device_while_a_thread_records_a_graph(driver: FakeDriver) -> None:
    device = CudaDevice()
    tensor = device.allocate((3, 4), np.float32)
    done = threading.Event()

    def work() -> None:
        device.read(tensor, 3)
        done.set()

    thread = threading.Thread(target=work)
    with CUDA.record():
        thread.start()
        assert not done.wait(0.2)
    thread.join(30.0)
    assert done.is_set()
