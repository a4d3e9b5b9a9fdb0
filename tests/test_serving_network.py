"""ONNX Runtime behind one module: what it is given, what it must give, and where it runs."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from serving import network as network_module
from serving.bundle import Bundle, BundleError, load_bundle
from serving.cpu_count import usable_cpus
from serving.denoiser import EngineModel
from serving.engine import Engine
from serving.network import (
    BUCKETS,
    OnnxNetwork,
    ProviderError,
    embedding_table,
    resolve_provider,
)
from serving.request import Outcome
from serving.self_test import run_self_test
from tests.fakes import RecordingSink, embedding_graph, spec, unet_graph, write_tiny_bundle

SHAPE, WIDTH, TIMESTEPS, LABELS = (2, 4, 6), 8, 20, 4
HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(
        write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", image_shape=SHAPE)
    )


def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(count)
    x_t = generator.normal(size=(count, *SHAPE)).astype(np.float32)
    return x_t, generator.normal(size=(count, WIDTH)).astype(np.float32)


def bundle_of(tmp_path: Path, **graphs: Any) -> Bundle:
    return load_bundle(write_tiny_bundle(tmp_path / "odd", image_shape=SHAPE, **graphs))


def test_the_embedding_table_holds_the_graph_at_every_t_and_label(bundle: Bundle) -> None:
    table = embedding_table(bundle)
    assert table.dtype == np.float32
    graph = onnx.load_from_string(bundle.embedding_onnx).graph.initializer
    of_t, of_label = (numpy_helper.to_array(tensor) for tensor in graph)
    np.testing.assert_array_equal(table, of_t[:, None] + of_label[None], strict=True)


def test_a_table_longer_than_one_chunk_is_whole(tmp_path: Path) -> None:
    labels = tuple(f"label {n}" for n in range(130))
    bundle = load_bundle(write_tiny_bundle(tmp_path, label_names=labels))
    table = embedding_table(bundle, num_threads=1)
    assert table.shape == (TIMESTEPS, 131, WIDTH)
    session = onnxruntime.InferenceSession(
        bundle.embedding_onnx, providers=["CPUExecutionProvider"]
    )
    t, label = np.array([19, 7]), np.array([130, 0])
    np.testing.assert_array_equal(session.run(None, {"t": t, "label": label})[0], table[t, label])


@pytest.mark.parametrize("batch", [1, 2, 3, 17, 64])
def test_any_batch_size_runs_unpadded_on_the_cpu(bundle: Bundle, batch: int) -> None:
    network = OnnxNetwork(bundle, "cpu", num_threads=1)
    x_t, emb = rows(batch)
    eps = network(x_t, emb)
    assert eps.dtype == np.float32
    assert eps.shape == x_t.shape
    assert eps.flags.writeable
    assert network.padded_rows(batch) == batch
    alone = np.concatenate([network(x_t[i : i + 1], emb[i : i + 1]) for i in range(batch)])
    np.testing.assert_allclose(eps, alone, rtol=1e-5, atol=1e-6)


def test_a_padded_batch_gives_the_rows_that_were_asked_for(bundle: Bundle) -> None:
    network = OnnxNetwork(bundle, "cpu", num_threads=1)
    x_t, emb = rows(300)
    expected = {size: network(x_t[:size], emb[:size]) for size in (1, 3, 128, 129, 300, 5)}
    network.buckets = BUCKETS
    for size, eps in expected.items():
        assert network.padded_rows(size) >= size
        np.testing.assert_allclose(network(x_t[:size], emb[:size]), eps, rtol=1e-5, atol=1e-6)
    sizes = [network.padded_rows(size) for size in (1, 3, 128, 129, 257)]
    assert sizes == [1, 4, 128, 256, 384]


def test_the_tiny_bundle_is_drawn_from_end_to_end(bundle: Bundle) -> None:
    network = OnnxNetwork(bundle)
    model = EngineModel.from_manifest(bundle.manifest, embedding_table(bundle))
    assert run_self_test(model, network, max_lanes=4).finite
    engine, sink = Engine(model, network, max_lanes=4), RecordingSink()
    engine.submit(spec(label=1, count=6, guidance_scale=2.0), sink)
    while engine.has_work:
        engine.step()
    assert sink.outcome is Outcome.FINISHED
    assert {pixels.shape for pixels in sink.images.values()} == {SHAPE}


def test_the_number_of_threads_is_set_and_spinning_is_off(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    make = onnxruntime.InferenceSession

    def spy(content: bytes, **settings: Any) -> Any:
        made.append(settings)
        return make(content, **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    assert OnnxNetwork(bundle, num_threads=3).num_threads == 3
    assert OnnxNetwork(bundle).num_threads == usable_cpus()
    options = made[0]["sess_options"]
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert made[0]["providers"] == ["CPUExecutionProvider"]
    assert made[0]["enable_fallback"] == 0
    assert made[1]["sess_options"].intra_op_num_threads == usable_cpus()


def without(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with an input or output renamed."""
    text = model.SerializeToString().replace(
        bytes([len(name)]) + name.encode(), bytes([len(name)]) + b"z" * len(name)
    )
    return onnx.load_from_string(text)


def retyped(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """The embedding with its t declared, and cast from, another type."""
    model.graph.input[0].type.tensor_type.elem_type = kind
    cast = onnx.helper.make_node("Cast", ["t"], ["t64"], to=TensorProto.INT64)
    model.graph.node[0].input[1] = "t64"
    model.graph.node.insert(0, cast)
    return model


@pytest.mark.parametrize(
    ("unet", "named"),
    [
        (unet_graph(SHAPE, WIDTH, batch=4), "input x_t must be [batch, 2, 4, 6], got [4, 2, 4, 6]"),
        (unet_graph((2, 4, 5), WIDTH), "input x_t must be [batch, 2, 4, 6]"),
        (unet_graph((1, 4, 6), WIDTH), "input x_t must be [batch, 2, 4, 6]"),
        (unet_graph(SHAPE, WIDTH + 1), "input emb must be [batch, 8]"),
        (without(unet_graph(SHAPE, WIDTH), "emb"), "inputs must be x_t, emb, got x_t, zzz"),
        (without(unet_graph(SHAPE, WIDTH), "eps"), "outputs must be eps, got zzz"),
    ],
)
def test_a_unet_that_is_not_what_the_manifest_says_is_refused(
    tmp_path: Path, unet: onnx.ModelProto, named: str
) -> None:
    with pytest.raises(BundleError) as refused:
        OnnxNetwork(bundle_of(tmp_path, unet=unet))
    assert named in str(refused.value)
    assert str(refused.value).startswith("bundle tiny: unet.onnx: ")


@pytest.mark.parametrize(
    ("embedding", "named"),
    [
        (embedding_graph(TIMESTEPS, LABELS, WIDTH, batch=2), "input t must be [batch], got [2]"),
        (embedding_graph(TIMESTEPS, LABELS, WIDTH + 1), "output emb must be [batch, 8]"),
        (
            retyped(embedding_graph(TIMESTEPS, LABELS, WIDTH), TensorProto.INT32),
            "input t must be tensor(int64), got tensor(int32)",
        ),
        (embedding_graph(TIMESTEPS - 1, LABELS, WIDTH), "fails for t and label within"),
        (embedding_graph(TIMESTEPS, LABELS - 1, WIDTH), "fails for t and label within"),
    ],
)
def test_an_embedding_that_is_not_what_the_manifest_says_is_refused(
    tmp_path: Path, embedding: onnx.ModelProto, named: str
) -> None:
    with pytest.raises(BundleError) as refused:
        embedding_table(bundle_of(tmp_path, embedding=embedding))
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_embedding_with_nan_is_refused(tmp_path: Path) -> None:
    graph = embedding_graph(TIMESTEPS, LABELS, WIDTH)
    table = numpy_helper.to_array(graph.graph.initializer[1]).copy()
    table[2, 3] = np.nan
    graph.graph.initializer[1].CopyFrom(numpy_helper.from_array(table, "table_label"))
    with pytest.raises(BundleError, match="NaN or Inf"):
        embedding_table(bundle_of(tmp_path, embedding=graph))


def test_bytes_that_are_no_graph_are_refused_in_one_line(bundle: Bundle) -> None:
    for content in (b"", b"no graph at all", bundle.unet_onnx[: len(bundle.unet_onnx) // 2]):
        broken = Bundle(bundle.manifest, bundle.embedding_onnx, content)
        with pytest.raises(BundleError) as refused:
            OnnxNetwork(broken)
        line = str(refused.value)
        assert line.startswith("bundle tiny: unet.onnx does not load (")
        assert "\n" not in line
        assert "ONNXRuntimeError" not in line


def test_cpu_is_cpu_and_other_names_are_refused() -> None:
    assert resolve_provider("cpu") == "cpu"
    with pytest.raises(ProviderError, match="'tpu'"):
        resolve_provider("tpu")


@pytest.mark.skipif(HAS_CUDA, reason="this is the wheel with CUDA")
def test_cuda_with_the_cpu_wheel_says_what_is_missing(bundle: Bundle) -> None:
    with pytest.raises(ProviderError, match="serving-gpu"):
        resolve_provider("cuda")
    with pytest.raises(ProviderError, match="serving-gpu"):
        OnnxNetwork(bundle, "cuda")


@pytest.mark.skipif(HAS_CUDA, reason="this is the wheel with CUDA")
def test_auto_without_cuda_is_cpu_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="serving.network"):
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


def test_heavy_operators_left_on_the_cpu_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_cuda_wheel(monkeypatch, lambda: FakeSession(CUDA_FIRST, on_cpu=("Shape", "Conv")))
    with pytest.raises(ProviderError, match=r"these operators: Conv$"):
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
    asked = with_cuda_wheel(monkeypatch, lambda: FakeSession(CUDA_FIRST, on_cpu=("Shape",)))
    assert resolve_provider("auto") == "cuda"
    settings = asked[0][1]
    [(name, options)] = settings["providers"]
    assert name == "CUDAExecutionProvider"
    assert options["use_tf32"] == "0"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert settings["enable_fallback"] == 0


def test_the_probe_is_a_graph_that_runs() -> None:
    onnx.checker.check_model(onnx.load_from_string(network_module._PROBE_ONNX))
    session = network_module._session(network_module._PROBE_ONNX, "cpu", 1)
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
        "import serving.network\n"
        f"assert seen == [{after!r}], seen\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    if before is not None:
        environment["ORT_DISABLE_TELEMETRY"] = before
    subprocess.run(
        [sys.executable, "-c", script], cwd=repository, env=environment, check=True, timeout=60
    )
