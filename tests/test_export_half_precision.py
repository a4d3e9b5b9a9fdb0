"""A network in half precision: a bundle like any other, near the one it was made from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from export.graphs import Graphs, export_unet
from export.half_precision import (
    IN_HALF_PRECISION,
    in_half_precision,
    layer_norms,
    main,
    with_weights,
)
from export.precision import write_in_precision
from export.report import Check
from export.settings import BundleSettings
from export.structure import GraphError, check_signature, external_tensors, fixed_batch_axes
from export.writing import ExportError, export_bundle, write_bundle
from serving.bundle import UNET_NAME, Bundle, load_bundle
from serving.engine_model import EngineModel
from serving.network import OnnxNetwork, embedding_table
from serving.self_test import run_self_test
from tests.fakes import tensor
from tests.tiny_export import changed, random_checkpoint, saved, small_graphs, small_model

ROWS = 5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its network predicts v, so that eps is combined with x_t."""
    folder = tmp_path_factory.mktemp("float")
    settings = BundleSettings("small", "2.1.0", num_steps=4, guidance_scale=2.0)
    checkpoint = saved(random_checkpoint(prediction="v"), folder)
    export_bundle(checkpoint, folder / "small", settings, report=lambda _: None)
    return load_bundle(folder / "small")


@pytest.fixture(scope="module")
def halved(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("fp16") / "small-fp16"
    write_in_precision(bundle, IN_HALF_PRECISION, output, "small-fp16", report=lambda _: None)
    return output


@pytest.fixture(scope="module")
def unet(halved: Path) -> onnx.ModelProto:
    return onnx.load(halved / UNET_NAME)


@pytest.fixture(scope="module")
def with_instance_norms() -> onnx.ModelProto:
    """As bundles before LayerNormalization have them; of the network as it is trained."""
    model = small_model()
    return onnx.load_from_string(export_unet(model.unet, model.config))


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def eps_of(model: onnx.ModelProto) -> np.ndarray:
    generator = np.random.default_rng(0)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    given = {
        each.name: generator.normal(size=(ROWS, *each.shape[1:])).astype(np.float32)
        for each in session.get_inputs()
    }
    return session.run(["eps"], given)[0]


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of all tensors."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True).graph
    infos = (*inferred.input, *inferred.value_info, *inferred.output)
    return {info.name: info.type.tensor_type.elem_type for info in infos} | {
        constant.name: constant.data_type for constant in inferred.initializer
    }


def test_weights_behind_a_norm_go_into_it_and_change_nothing(bundle: Bundle) -> None:
    before = layer_norms(onnx.load_from_string(bundle.unet_onnx))
    after = with_weights(before)
    count = operators(before).count("BatchNormalization")
    assert count > 0
    assert "BatchNormalization" not in operators(after)
    norms = [node for node in after.graph.node if node.op_type == "LayerNormalization"]
    assert [len(node.input) for node in norms].count(3) == count
    np.testing.assert_allclose(eps_of(after), eps_of(before), rtol=0, atol=2e-5)
    read = {name for node in after.graph.node for name in node.input}
    assert {constant.name for constant in after.graph.initializer} <= read


def test_a_batch_normalisation_that_normalises_stays(bundle: Bundle) -> None:
    model = layer_norms(onnx.load_from_string(bundle.unet_onnx))
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    variance = next(each for each in model.graph.initializer if each.name == norms[0].input[4])
    shared = [node for node in norms if node.input[4] == variance.name]
    twice = numpy_helper.from_array(2 * numpy_helper.to_array(variance), variance.name)
    variance.CopyFrom(twice)
    assert operators(with_weights(model)).count("BatchNormalization") == len(shared)


def test_the_new_bundle_is_served_like_any_other(bundle: Bundle, halved: Path) -> None:
    loaded = load_bundle(halved)
    assert (loaded.manifest.name, loaded.manifest.version) == ("small-fp16", "2.1.0")
    assert loaded.manifest.defaults == bundle.manifest.defaults
    assert loaded.embedding_onnx == bundle.embedding_onnx
    assert len(loaded.unet_onnx) < 0.9 * len(bundle.unet_onnx)
    model = EngineModel.from_manifest(loaded.manifest, embedding_table(loaded))
    report = run_self_test(model, OnnxNetwork(loaded, num_threads=1), max_lanes=4)
    assert report.finite
    assert report.bit_equal


def test_inputs_and_output_are_those_of_the_old_one(bundle: Bundle, unet: onnx.ModelProto) -> None:
    shape = bundle.manifest.image_shape
    given = {
        "x_t": (TensorProto.FLOAT, shape),
        "emb": (TensorProto.FLOAT, (bundle.manifest.embedding_width,)),
    }
    check_signature(unet, given, {"eps": (TensorProto.FLOAT, shape)})
    assert not fixed_batch_axes(unet)
    assert not external_tensors(unet)
    onnx.checker.check_model(unet, full_check=True)


def test_all_between_the_three_casts_is_in_half_precision(unet: onnx.ModelProto) -> None:
    casts = [node for node in unet.graph.node if node.op_type == "Cast"]
    assert [list(cast.input) for cast in casts[:2]] == [["x_t"], ["emb"]]
    assert len(casts) == 3
    made = kinds(unet)
    nodes = list(unet.graph.node)
    before, after = nodes[: nodes.index(casts[2])], nodes[nodes.index(casts[2]) + 1 :]
    in_float = {name for node in before for name in node.output if made[name] == TensorProto.FLOAT}
    assert not in_float
    weights = {
        name for node in before for name in node.input if made.get(name) == TensorProto.FLOAT
    }
    scales = {node.input[2] for node in before if node.op_type == "Resize"}
    assert weights == scales | {"x_t", "emb"}
    assert {made[name] for node in after for name in node.output} == {TensorProto.FLOAT}


def test_eps_is_combined_in_float32_from_the_exact_x_t(unet: onnx.ModelProto) -> None:
    made_by = {name: node for node in unet.graph.node for name in node.output}
    total = made_by["eps"]
    of_x_t, of_network = (made_by[name] for name in total.input)
    assert [node.op_type for node in (total, of_x_t, of_network)] == ["Add", "Mul", "Mul"]
    assert "x_t" in of_x_t.input
    assert "Cast" in {made_by[name].op_type for name in of_network.input}
    made = kinds(unet)
    assert {made[name] for node in (of_x_t, of_network) for name in node.input} == {
        TensorProto.FLOAT
    }


def test_a_network_that_predicts_eps_itself_has_its_cast_at_the_end() -> None:
    model = onnx.load_from_string(small_graphs().unet_onnx)
    half = in_half_precision(model)
    assert operators(half).count("Cast") == 3
    assert half.graph.node[-1].op_type == "Cast"
    assert list(half.graph.node[-1].output) == ["eps"]
    assert np.abs(eps_of(half) - eps_of(model)).max() < 0.01


def test_what_both_parts_read_is_not_rounded_for_the_last() -> None:
    """eps = k x_t + tanh(k x_t + b) with a and b cut from emb by one node."""
    k = 1.0 + 2.0**-12  # 1 in float16
    nodes = [
        helper.make_node("Split", ["emb"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("Mul", ["a", "k"], ["scale"]),
        helper.make_node("Mul", ["x_t", "scale"], ["first"]),
        helper.make_node("Add", ["first", "b"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["h"]),
        helper.make_node("Add", ["first", "h"], ["eps"]),
    ]
    x_t, emb, eps = (
        tensor(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x_t", 3), ("emb", 2), ("eps", 3))
    )
    constant = numpy_helper.from_array(np.float32(k), "k")
    graph = helper.make_graph(nodes, "unet", [x_t, emb], [eps], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    half = in_half_precision(model)
    assert operators(half).count("Split") == 2
    given = {
        "x_t": np.full((1, 3), k, dtype=np.float32),
        "emb": np.array([[1.0, -np.inf]], dtype=np.float32),  # the tanh is -1
    }
    session = onnxruntime.InferenceSession(
        half.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(
        session.run(["eps"], given)[0], given["x_t"] * np.float32(k) - np.float32(1)
    )


def test_norms_are_layer_norms_and_the_same_function(with_instance_norms: onnx.ModelProto) -> None:
    norms = operators(with_instance_norms).count("InstanceNormalization")
    model = layer_norms(with_instance_norms)
    assert operators(model).count("LayerNormalization") == norms > 0
    assert "InstanceNormalization" not in operators(model)
    np.testing.assert_allclose(eps_of(model), eps_of(with_instance_norms), atol=1e-5)


def test_bundles_from_before_layer_norms_can_be_converted(
    with_instance_norms: onnx.ModelProto,
) -> None:
    half = in_half_precision(with_instance_norms)
    assert "InstanceNormalization" not in operators(half)
    assert operators(half).count("Cast") == 3
    assert np.abs(eps_of(half) - eps_of(with_instance_norms)).max() < 0.01


def test_a_norm_that_is_no_layer_norm_is_refused(with_instance_norms: onnx.ModelProto) -> None:
    def weigh(model: onnx.ModelProto) -> None:
        norm = next(n for n in model.graph.node if n.op_type == "InstanceNormalization")
        [ones] = [each for each in model.graph.initializer if each.name == norm.input[1]]
        twice = 2 * numpy_helper.to_array(ones)
        ones.CopyFrom(numpy_helper.from_array(twice, ones.name))

    weighted = changed(with_instance_norms.SerializeToString(), weigh)
    with pytest.raises(GraphError, match="cannot be written as a LayerNormalization"):
        in_half_precision(onnx.load_from_string(weighted))


def test_it_says_how_near_it_is_and_what_it_was_made_from_and_nothing_of_quality(
    bundle: Bundle, halved: Path
) -> None:
    manifest = load_bundle(halved).manifest
    change, rows = manifest.verification["checks"]
    assert 0 < change["measured"] <= change["at_most"]
    assert rows["measured"] == 0
    made_from = manifest.provenance["halved_from_unet_sha256"]
    assert made_from == bundle.manifest.files[UNET_NAME].sha256
    assert manifest.quality == {}


def test_the_same_bundle_gives_the_same_bytes(bundle: Bundle, halved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    write_in_precision(bundle, IN_HALF_PRECISION, again, "small-fp16", report=lambda _: None)
    for file in halved.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()


def test_a_network_that_changes_too_much_is_not_written(bundle: Bundle, tmp_path: Path) -> None:
    strict = replace(IN_HALF_PRECISION, largest_change=1e-9)
    told: list[Sequence[Check]] = []
    with pytest.raises(ExportError, match="in half precision the network is another one: eps"):
        write_in_precision(bundle, strict, tmp_path / "fp16", "fp16", report=told.append)
    assert not (tmp_path / "fp16").exists()
    assert not told[0][0].passed


def test_the_command_writes_a_bundle_and_replaces_none(
    bundle: Bundle, halved: Path, tmp_path: Path
) -> None:
    write_bundle(
        bundle.manifest,
        Graphs(bundle.embedding_onnx, bundle.unet_onnx),
        tmp_path / "small",
        force=False,
    )
    asked = ["--model", str(tmp_path / "small"), "--output", str(tmp_path / "small-fp16")]
    written = CliRunner().invoke(main, asked)
    assert written.exit_code == 0, written.output
    assert load_bundle(tmp_path / "small-fp16").unet_onnx == load_bundle(halved).unet_onnx
    refused = CliRunner().invoke(main, asked)
    assert refused.exit_code == 1
    assert "holds a bundle already; --force replaces it" in refused.output
