"""Convolutions in 8 bits: a bundle like any other, near the one it was made from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from export.precision import network_calls, write_in_precision
from export.quantization import IN_8_BITS, main
from export.report import Check
from export.settings import BundleSettings
from export.writing import ExportError, export_bundle
from serving.bundle import UNET_NAME, Bundle, load_bundle
from serving.cpu_features import saturates_8_bits
from serving.engine_model import EngineModel
from serving.network import OnnxNetwork, embedding_table
from serving.openvino_network import OpenVinoNetwork
from serving.self_test import run_self_test
from tests.tiny_export import random_checkpoint, saved


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("float")
    settings = BundleSettings("small", "2.1.0", num_steps=4, guidance_scale=2.0)
    checkpoint = saved(random_checkpoint(), folder)
    export_bundle(checkpoint, folder / "small", settings, report=lambda _: None)
    return load_bundle(folder / "small")


@pytest.fixture(scope="module")
def quantised(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("int8") / "small-int8"
    write_in_precision(bundle, IN_8_BITS, output, "small-int8", report=lambda _: None)
    return output


def test_the_ranges_come_from_every_label_guided_and_at_every_step(bundle: Bundle) -> None:
    calls = network_calls(bundle, seed=0)
    assert len(calls) == 4 * 2  # with the label and without, at each of four steps
    assert all(len(call["x_t"]) == len(call["emb"]) == 2 * 3 for call in calls)
    again = network_calls(bundle, seed=0)
    np.testing.assert_array_equal(calls[-1]["x_t"], again[-1]["x_t"])
    assert not np.array_equal(network_calls(bundle, seed=1)[0]["x_t"], calls[0]["x_t"])


def test_the_new_bundle_is_served_like_any_other(bundle: Bundle, quantised: Path) -> None:
    loaded = load_bundle(quantised)
    assert (loaded.manifest.name, loaded.manifest.version) == ("small-int8", "2.1.0")
    assert loaded.manifest.defaults == bundle.manifest.defaults
    assert loaded.embedding_onnx == bundle.embedding_onnx
    operators = [node.op_type for node in onnx.load_from_string(loaded.unet_onnx).graph.node]
    assert operators.count("QuantizeLinear") > 2
    assert len(loaded.unet_onnx) < len(bundle.unet_onnx)
    model = EngineModel.from_manifest(loaded.manifest, embedding_table(loaded))
    report = run_self_test(model, OnnxNetwork(loaded, num_threads=1), max_lanes=4)
    assert report.finite
    assert report.bit_equal


@pytest.mark.skipif(saturates_8_bits(), reason="OpenVINO is refused 8 bits on this CPU")
def test_it_is_as_near_on_openvino(bundle: Bundle, quantised: Path) -> None:
    exact, network = OnnxNetwork(bundle, num_threads=1), OpenVinoNetwork(load_bundle(quantised))
    squares = [
        np.mean((network(call["x_t"], call["emb"]) - exact(call["x_t"], call["emb"])) ** 2)
        for call in network_calls(bundle, seed=2)
    ]
    assert 0 < np.sqrt(np.mean(squares)) <= IN_8_BITS.largest_change


def test_it_says_how_near_it_is_and_what_it_was_made_from_and_nothing_of_quality(
    bundle: Bundle, quantised: Path
) -> None:
    manifest = load_bundle(quantised).manifest
    change, rows = manifest.verification["checks"]
    assert 0 < change["measured"] <= change["at_most"]
    assert rows["measured"] == 0
    made_from = manifest.provenance["quantized_from_unet_sha256"]
    assert made_from == bundle.manifest.files[UNET_NAME].sha256
    assert manifest.quality == {}


def test_the_same_bundle_gives_the_same_bytes(
    bundle: Bundle, quantised: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    write_in_precision(bundle, IN_8_BITS, again, "small-int8", report=lambda _: None)
    for file in quantised.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes()


def test_a_network_that_changes_too_much_is_not_written(bundle: Bundle, tmp_path: Path) -> None:
    strict = replace(IN_8_BITS, largest_change=1e-9)
    told: list[Sequence[Check]] = []
    with pytest.raises(ExportError, match="another one: eps: root mean square"):
        write_in_precision(bundle, strict, tmp_path / "int8", "int8", report=told.append)
    assert not (tmp_path / "int8").exists()
    assert not told[0][0].passed


def test_the_command_writes_a_bundle_and_replaces_none(
    bundle: Bundle, quantised: Path, tmp_path: Path
) -> None:
    asked = ["--model", str(quantised), "--output", str(quantised)]
    refused = CliRunner().invoke(main, asked)
    assert refused.exit_code == 1
    assert "holds a bundle already; --force replaces it" in refused.output
    missing = CliRunner().invoke(main, ["--model", "nowhere", "--output", str(tmp_path / "out")])
    assert missing.exit_code == 1
    assert missing.output.startswith("error: bundle 'nowhere'")
