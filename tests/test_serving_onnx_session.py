"""ONNX Runtime behind one module: where graphs run, and calls on memory that does not move."""

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from serving import onnx_session
from serving.bundle import UNET_NAME, Bundle, load_bundle
from serving.device import HostDevice
from serving.network import embedding_table, make_network
from serving.onnx_session import ProviderError, Session, unet_signature
from serving.providers import resolve_provider
from serving.recording import CUDA
from tests.step_fakes import MODEL, fake_bundle

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return fake_bundle(tmp_path_factory.mktemp("bundle"))


def test_cpu_is_cpu_and_other_names_are_refused() -> None:
    assert resolve_provider("cpu") == "cpu"
    with pytest.raises(ProviderError, match="'tpu'"):
        resolve_provider("tpu")


@pytest.mark.skipif(HAS_CUDA, reason="this is the wheel with CUDA")
def test_cuda_with_the_cpu_wheel_says_what_is_missing(bundle: Bundle) -> None:
    with pytest.raises(ProviderError, match="serving-gpu"):
        resolve_provider("cuda")
    with pytest.raises(ProviderError, match="serving-gpu"):
        make_network(bundle, "cuda")


@pytest.mark.skipif(HAS_CUDA, reason="this is the wheel with CUDA")
def test_auto_without_cuda_is_cpu_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="serving.providers"):
        assert resolve_provider("auto") == "cpu"
    assert "auto: cpu, because" in caplog.text
    assert "without CUDA" in caplog.text


class FakeSession:
    """A session that ended up where it was told not to."""

    def __init__(self, providers: list[str], on_cpu: tuple[str, ...] = ()) -> None:
        self._providers = providers
        nodes = [SimpleNamespace(op_type=name) for name in on_cpu]
        self._parts = [SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: nodes)]

    def get_providers(self) -> list[str]:
        return self._providers

    def get_provider_graph_assignment_info(self) -> list[SimpleNamespace]:
        return self._parts

    def run(self, *_: object) -> None:
        pass


CUDA_FIRST = ["CUDAExecutionProvider", "CPUExecutionProvider"]


def with_cuda_wheel(
    monkeypatch: pytest.MonkeyPatch, make: Any
) -> list[tuple[bytes, dict[str, Any]]]:
    """As if this were the wheel with CUDA, whose sessions come from `make`."""
    asked: list[tuple[bytes, dict[str, Any]]] = []

    def session(content: bytes, **settings: Any) -> Any:
        asked.append((content, settings))
        return make()

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(CUDA_FIRST))
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return asked


def test_a_session_that_fell_back_silently_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cuda_wheel(monkeypatch, lambda: FakeSession(["CPUExecutionProvider"]))
    with pytest.raises(ProviderError, match="fell back to the CPU"):
        resolve_provider("cuda")
    assert resolve_provider("auto") == "cpu"


def test_operators_left_on_the_cpu_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_cuda_wheel(monkeypatch, lambda: FakeSession(CUDA_FIRST, on_cpu=("Conv", "Shape", "Conv")))
    with pytest.raises(ProviderError, match=r"these operators: Conv, Shape$"):
        resolve_provider("cuda")


def test_a_missing_device_is_refused_with_the_reason_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise RuntimeError(
            "/build/onnxruntime/core/cuda_call.cc:129\nCUDA failure 100: no CUDA-capable device"
        )

    with_cuda_wheel(monkeypatch, fail)
    with pytest.raises(ProviderError) as refused:
        resolve_provider("cuda")
    assert str(refused.value) == (
        "CUDA does not work here (CUDA failure 100: no CUDA-capable device)"
    )


def test_cuda_is_asked_for_alone_without_tf32_and_without_fall_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = with_cuda_wheel(monkeypatch, lambda: FakeSession(CUDA_FIRST))
    assert resolve_provider("auto") == "cuda"
    settings = asked[0][1]
    [(name, options)] = settings["providers"]
    assert name == "CUDAExecutionProvider"
    assert options["use_tf32"] == "0"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert settings["enable_fallback"] == 0


def test_the_probe_is_a_graph_that_runs() -> None:
    onnx.checker.check_model(onnx.load_from_string(onnx_session._PROBE_ONNX))
    session = onnx_session._session(onnx_session._PROBE_ONNX, "cpu", 1, {})
    assert session.run(None, {"x": np.ones(1, dtype=np.float32)})[0].tolist() == [-1.0]


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_telemetry_is_off_before_onnx_runtime_is_imported_unless_the_user_says_otherwise(
    repository: Path, before: str | None, after: str
) -> None:
    script = (
        "import builtins, os\n"
        "importing = builtins.__import__\n"
        "def spy(name, *rest):\n"
        "    if name == 'onnxruntime' and not seen: seen.append(os.environ.get(VARIABLE))\n"
        "    return importing(name, *rest)\n"
        "seen, VARIABLE = [], 'ORT_DISABLE_TELEMETRY'\n"
        "builtins.__import__ = spy\n"
        "import serving.onnx_session\n"
        f"assert seen == [{after!r}], seen\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    if before is not None:
        environment["ORT_DISABLE_TELEMETRY"] = before
    subprocess.run(
        [sys.executable, "-c", script], cwd=repository, env=environment, check=True, timeout=60
    )


@pytest.mark.parametrize("t", [0, 111])
def test_8_bits_are_the_same_with_and_without_vnni(t: int) -> None:
    """Held against each 8-bit product in float32, which no processor saturates.

    What differs is where values are rounded to 8 bits again.
    """
    bundle = load_bundle(Path("models/mnist-int8"))
    table = embedding_table(bundle)
    x_t = np.random.default_rng(1).standard_normal((16, 1, 28, 28), dtype=np.float32)
    calls = {"x_t": 0.5 * x_t, "emb": table[t, np.arange(16) % 10]}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    in_float32 = onnxruntime.InferenceSession(
        bundle.unet_onnx, options, providers=["CPUExecutionProvider"]
    ).run(["eps"], calls)[0]
    change = session_of(bundle).run("eps", calls) - in_float32
    assert np.sqrt(np.square(change).mean()) < 0.04  # 0.025 here, 0.24 and 0.09 if they saturate


@pytest.mark.parametrize("saturates", [True, False])
def test_8_bits_are_widened_only_where_they_would_saturate(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, *, saturates: bool
) -> None:
    monkeypatch.setattr(onnx_session, "saturates_8_bits", lambda: saturates)
    options = session_of(bundle)._session.get_session_options()
    if saturates:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:  # it is slower
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.x64quantprecision")


class GpuDevice(HostDevice):
    """What Session looks at of a GPU."""

    provider = "cuda"
    stream = 4711


def session_of(bundle: Bundle, device: HostDevice | None = None) -> Session:
    inputs, outputs = unet_signature(bundle)
    return Session(
        bundle, UNET_NAME, bundle.unet_onnx, inputs, outputs, num_threads=1, device=device
    )


def test_a_session_on_a_gpu_records_graphs_on_the_stream_of_its_device(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = with_cuda_wheel(monkeypatch, lambda: FakeSession(CUDA_FIRST))
    monkeypatch.setattr(onnx_session, "_check_signature", lambda *_: None)
    session_of(bundle, GpuDevice())
    [(name, options)] = asked[0][1]["providers"]
    assert name == "CUDAExecutionProvider"
    assert options == {
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": "1",
        "user_compute_stream": "4711",
    }


def test_a_session_on_a_gpu_whose_nodes_are_not_all_there_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_cuda_wheel(monkeypatch, lambda: FakeSession(CUDA_FIRST, on_cpu=("Gather",)))
    with pytest.raises(ProviderError, match="CUDA does not run these operators: Gather"):
        session_of(bundle, GpuDevice())


def test_a_bound_call_reads_and_writes_the_memory_that_it_was_given(bundle: Bundle) -> None:
    device, session = HostDevice(), session_of(bundle)
    width = MODEL.embedding_table.shape[2]
    x_t = device.allocate((3, *MODEL.image_shape), np.float32)
    emb = device.allocate((3, width), np.float32)
    eps = device.allocate((3, *MODEL.image_shape), np.float32)
    call = session.bind(1, {"x_t": x_t, "emb": emb}, {"eps": eps})
    generator = np.random.default_rng(0)
    for _ in range(2):
        given = {
            "x_t": generator.normal(size=x_t.shape).astype(np.float32),
            "emb": generator.normal(size=emb.shape).astype(np.float32),
        }
        device.write(x_t, given["x_t"])
        device.write(emb, given["emb"])
        call()
        np.testing.assert_array_equal(device.read(eps, 3), session.run("eps", given), strict=True)


def test_of_a_failed_call_of_cuda_only_what_cuda_says_is_shown() -> None:
    raised = RuntimeError(
        "/src/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void, Status> "
        "onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError] CUDA failure 100: "
        "no CUDA-capable device\n is detected ; GPU=-1 ; hostname=here ; file=/src/x.cc ; line=9"
    )
    said = "CUDA failure 100: no CUDA-capable device is detected"
    assert onnx_session.one_line(raised) == said


class _Binding:
    def bind_input(self, *_: object) -> None: ...
    def bind_output(self, *_: object) -> None: ...


class _Recorder:
    """A session that notes whether somebody else could use CUDA while it runs."""

    def __init__(self) -> None:
        self.alone: list[bool] = []

    def io_binding(self) -> _Binding:
        return _Binding()

    def run_with_iobinding(self, *_: object) -> None:
        used = threading.Event()

        def use() -> None:
            with CUDA.use():
                used.set()

        threading.Thread(target=use, daemon=True).start()
        self.alone.append(not used.wait(0.5))


def test_on_cuda_the_first_call_of_each_thread_is_made_while_nobody_uses_the_device() -> None:
    session = _Recorder()
    call = onnx_session.BoundCall(session, "cuda", 1, {}, {})  # type: ignore[arg-type]

    def twice() -> None:
        call()
        call()

    twice()
    thread = threading.Thread(target=twice)
    thread.start()
    thread.join()
    assert session.alone == [True, False, True, False]


def test_a_recording_that_fails_is_tried_again_as_one() -> None:
    session = _Recorder()
    failing = SimpleNamespace(io_binding=session.io_binding, run_with_iobinding=None)
    call = onnx_session.BoundCall(failing, "cuda", 1, {}, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        call()
    failing.run_with_iobinding = session.run_with_iobinding
    call()
    assert session.alone == [True]
