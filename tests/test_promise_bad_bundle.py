"""Promise: a bundle that is not whole is refused with one line, before anything is served."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from serving.bundle import file_entry
from tests.fault_figures import Record
from tests.server_process import MNIST, run_server

Damage = Callable[[Path], None]


def rewrite_graph(bundle: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Changes unet.onnx, and what the manifest says of the file."""
    graph = onnx.load(bundle / "unet.onnx")
    change(graph)
    content = graph.SerializeToString()
    (bundle / "unet.onnx").write_bytes(content)
    entry = file_entry(content).model_dump()
    rewrite_manifest(bundle, lambda manifest: manifest["files"].update({"unet.onnx": entry}))


def rewrite_manifest(bundle: Path, change: Callable[[dict], None]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def truncated(bundle: Path) -> None:
    path = bundle / "unet.onnx"
    path.write_bytes(path.read_bytes()[:-1000])


def altered(bundle: Path) -> None:
    path = bundle / "embedding.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def of_another_shape(bundle: Path) -> None:
    rewrite_manifest(bundle, lambda manifest: manifest["image"].update({"height": 32}))


def of_another_type(bundle: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        graph.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE

    rewrite_graph(bundle, change)


def with_external_data(bundle: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        weight = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="../elsewhere.bin")

    rewrite_graph(bundle, change)


def of_the_future(bundle: Path) -> None:
    rewrite_manifest(bundle, lambda manifest: manifest.update({"format_version": 99}))


def without_a_file(bundle: Path) -> None:
    (bundle / "unet.onnx").unlink()


def without_json(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{")


FULL = pytest.mark.fault
DAMAGES = [
    pytest.param(truncated, id="truncated"),
    pytest.param(with_external_data, id="external data"),
    pytest.param(altered, id="sha256 mismatch", marks=FULL),
    pytest.param(of_another_shape, id="wrong shape", marks=FULL),
    pytest.param(of_another_type, id="wrong type", marks=FULL),
    pytest.param(of_the_future, id="unknown format version", marks=FULL),
    pytest.param(without_a_file, id="missing file", marks=FULL),
    pytest.param(without_json, id="no manifest", marks=FULL),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_refused_with_one_line(
    tmp_path: Path, figure: Record, damage: Damage
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(MNIST, bundle)
    damage(bundle)
    ended = run_server("--model", str(bundle), "--port", "0", "--http-port", "0")
    assert ended.returncode == 1
    lines = [line for line in ended.stderr.splitlines() if " INFO " not in line]
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: bundle ")
    assert "ready: " not in ended.stderr
    figure("refused with", lines[0].split(": ", 2)[2], "one clear line")
