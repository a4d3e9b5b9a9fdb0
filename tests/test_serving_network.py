"""The graphs of a bundle on the CPU: what they are given, and what they must give."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from serving.bundle import Bundle, BundleError, load_bundle
from serving.cpu_count import usable_cpus
from serving.engine import Engine
from serving.engine_model import EngineModel
from serving.network import ROWS_AT_ONCE, OnnxNetwork, embedding_table
from serving.onnx_session import Session
from serving.request import Outcome
from serving.self_test import run_self_test
from tests.fakes import RecordingSink, embedding_graph, spec, unet_graph, write_tiny_bundle

SHAPE, WIDTH, TIMESTEPS, LABELS = (2, 4, 6), 8, 20, 4


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
    network = OnnxNetwork(bundle, num_threads=1)
    x_t, emb = rows(batch)
    eps = network(x_t, emb)
    assert eps.dtype == np.float32
    assert eps.shape == x_t.shape
    assert eps.flags.writeable
    assert network.padded_rows(batch) == batch
    alone = np.concatenate([network(x_t[i : i + 1], emb[i : i + 1]) for i in range(batch)])
    np.testing.assert_allclose(eps, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [16, 17, 33])
def test_no_more_rows_than_stay_in_the_cache_are_computed_together(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    network = OnnxNetwork(bundle, num_threads=1)
    together: list[int] = []

    def noted(session: Session, output: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        together.append(len(inputs["x_t"]))
        return run(session, output, inputs)

    run = Session.run
    monkeypatch.setattr(Session, "run", noted)
    x_t, emb = rows(batch)
    eps = network(x_t, emb)
    assert sum(together) == batch
    assert max(together) <= ROWS_AT_ONCE
    assert max(together) - min(together) <= 1
    for i in range(batch):
        np.testing.assert_array_equal(eps[i], network(x_t[i : i + 1], emb[i : i + 1])[0])


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("batch", [1, 2, 3, 17])
def test_a_batch_in_parts_gives_every_row_in_its_place(
    bundle: Bundle, batch: int, threads: int
) -> None:
    x_t, emb = rows(batch)
    eps = OnnxNetwork(bundle, num_threads=threads)(x_t, emb)
    assert eps.flags.writeable
    expected = OnnxNetwork(bundle, num_threads=1)(x_t, emb)
    np.testing.assert_allclose(eps, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 11])
def test_workers_give_every_row_what_the_whole_network_does(bundle: Bundle, threads: int) -> None:
    network = OnnxNetwork(bundle, num_threads=threads)
    assert len(network.workers) == min(threads, 8)
    x_t, emb = rows(5)
    for worker in network.workers:
        np.testing.assert_allclose(worker(x_t, emb), network(x_t, emb), rtol=1e-5, atol=1e-6)


def test_a_part_that_fails_fails_the_call_when_all_parts_have_ended(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = OnnxNetwork(bundle, num_threads=2)
    ended = threading.Event()

    def fail(*_: object) -> None:
        raise RuntimeError("no")

    def take_long(*_: object) -> None:
        time.sleep(0.2)
        ended.set()

    monkeypatch.setattr(network.workers[0]._session, "run", fail)
    monkeypatch.setattr(network.workers[1]._session, "run", take_long)
    with pytest.raises(RuntimeError, match="no"):
        network(*rows(4))
    assert ended.is_set()
    monkeypatch.undo()
    assert np.isfinite(network(*rows(4))).all()


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


def test_the_number_of_threads_is_set_and_they_spin_only_if_told_to_and_never_between_calls(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    make = onnxruntime.InferenceSession

    def spy(content: bytes, **settings: Any) -> Any:
        made.append(settings)
        return make(content, **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    assert OnnxNetwork(bundle, num_threads=11).num_threads == 11
    threads = [each["sess_options"].intra_op_num_threads for each in made]
    assert threads == [11, 2, 2, 2, 1, 1, 1, 1, 1]  # for all together, and for each part
    for settings in made:
        options = settings["sess_options"]
        assert options.inter_op_num_threads == 1
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert settings["providers"] == ["CPUExecutionProvider"]
        assert settings["enable_fallback"] == 0
    made.clear()
    assert OnnxNetwork(bundle, spin=True).num_threads == usable_cpus()
    spinning = made[0]["sess_options"]
    assert spinning.intra_op_num_threads == usable_cpus()
    assert spinning.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert spinning.get_session_config_entry("session.force_spinning_stop") == "1"


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
