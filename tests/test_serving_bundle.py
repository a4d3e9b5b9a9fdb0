"""A bundle is what its manifest says, or it is refused with one clear line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import convert_model_to_external_data
from pydantic import ValidationError

from serving.bundle import Bundle, BundleError, Manifest, file_entry, load_bundle, write_manifest
from tests.fakes import unet_graph, write_tiny_bundle


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny")


def refusal(path: Path | str) -> str:
    """The line with which a bundle is refused."""
    with pytest.raises(BundleError) as refused:
        load_bundle(path)
    line = str(refused.value)
    assert "\n" not in line
    assert line.startswith(f"bundle {str(path)!r}: ")
    rest = line.removeprefix(f"bundle {str(path)!r}: ")
    assert str(Path(path).resolve().parent) not in rest, "a path that nobody typed"
    assert len(rest) < 300
    return rest


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_good_bundle_is_loaded_whole(directory: Path) -> None:
    bundle = load_bundle(directory)
    assert isinstance(bundle, Bundle)
    assert bundle.manifest.image_shape == (1, 4, 4)
    assert bundle.manifest.null_label == 3
    assert bundle.embedding_onnx == (directory / "embedding.onnx").read_bytes()
    assert bundle.unet_onnx == (directory / "unet.onnx").read_bytes()


def test_the_manifest_keeps_every_bit_of_the_schedule_and_is_written_the_same_every_time(
    directory: Path, tmp_path: Path
) -> None:
    manifest = load_bundle(directory).manifest
    first = (directory / "manifest.json").read_bytes()
    assert write_manifest(manifest, tmp_path).read_bytes() == first
    assert first.endswith(b"}\n")
    assert b'\n  "name": "tiny"' in first
    schedule = manifest.schedule.to_schedule()
    again = Manifest.model_validate_json(first).schedule.to_schedule()
    np.testing.assert_array_equal(schedule.alphas_cumprod, again.alphas_cumprod)


def test_report_sections_are_of_free_form(directory: Path) -> None:
    report = {"eps": {"max_abs_difference": 1e-6}, "rows": [1, 2, None], "text": "größer"}
    edit(directory, lambda manifest: manifest.update(verification=report))
    manifest = load_bundle(directory).manifest
    assert manifest.verification == report
    assert "größer" in manifest.to_json()


@pytest.mark.parametrize(
    ("told", "counts"),
    [
        ([30, 0, 20], (30, 0, 20)),
        (None, ()),
        ([30, 20], ()),
        ([30, -1, 20], ()),
        ([30, 1.5, 20], ()),
        ([30, 2**63, 20], ()),
        ("30", ()),
    ],
)
def test_label_counts_are_told_where_the_provenance_has_them(
    directory: Path, told: object, counts: tuple[int, ...]
) -> None:
    edit(directory, lambda manifest: manifest.update(provenance={"dataset_label_counts": told}))
    assert load_bundle(directory).manifest.train_label_counts == counts


def test_a_report_that_json_has_no_form_for_is_not_written(directory: Path) -> None:
    manifest = load_bundle(directory).manifest
    broken = manifest.model_copy(update={"quality": {"accuracy": float("nan")}})
    with pytest.raises(ValueError, match="JSON"):
        broken.to_json()


def test_a_missing_directory_manifest_or_file_is_named(directory: Path, tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").startswith("no such directory; name one that")
    assert refusal(directory / "unet.onnx") == "not a directory"
    (directory / "unet.onnx").unlink()
    assert refusal(directory) == "unet.onnx is missing"
    (directory / "manifest.json").unlink()
    assert refusal(directory) == "manifest.json is missing"


def test_the_path_is_named_as_it_was_typed(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory.parent)
    (directory / "manifest.json").write_text("{")
    with pytest.raises(BundleError) as refused:
        load_bundle("tiny")
    assert str(refused.value).startswith("bundle 'tiny': manifest.json is not valid JSON")
    assert str(directory) not in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"format_version": 1,', b"\xff\xfe", b"null\n", b"[1]", b"[" * 100_000],
    ids=["empty", "truncated", "cut", "binary", "null", "list", "deep"],
)
def test_a_manifest_that_is_not_a_json_object_is_refused(directory: Path, content: bytes) -> None:
    (directory / "manifest.json").write_bytes(content)
    assert "manifest.json" in refusal(directory)


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.5])
def test_an_unknown_format_version_is_said_before_anything_else(
    directory: Path, version: object
) -> None:
    edit(directory, lambda manifest: [manifest.popitem() for _ in list(manifest)])
    edit(directory, lambda manifest: manifest.update(format_version=version))
    assert "format_version" in refusal(directory)
    assert "this server reads 1" in refusal(directory)


def test_a_truncated_graph_is_refused_by_its_size(directory: Path) -> None:
    path = directory / "unet.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(directory).startswith("unet.onnx has ")


def test_a_graph_with_bytes_added_is_refused_unread(directory: Path) -> None:
    path = directory / "embedding.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    assert refusal(directory).startswith("embedding.onnx has ")


def test_one_flipped_bit_is_refused_by_the_sha256(directory: Path) -> None:
    path = directory / "unet.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert refusal(directory) == "unet.onnx is not the file of manifest.json: its sha256 differs"


def test_external_data_is_refused(tmp_path: Path) -> None:
    model = unet_graph((1, 4, 4), 8)
    convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save_model(model, str(tmp_path / "with_external_data.onnx"))
    split = onnx.load(str(tmp_path / "with_external_data.onnx"), load_external_data=False)
    directory = write_tiny_bundle(tmp_path / "split", unet=split)
    assert "external data" in refusal(directory)


def cut_schedule(manifest: dict[str, Any]) -> None:
    manifest["schedule"]["alphas_cumprod"].pop()


def swap_schedule(manifest: dict[str, Any]) -> None:
    abar = manifest["schedule"]["alphas_cumprod"]
    abar[3], abar[4] = abar[4], abar[3]


def set_in(*path: object, value: object) -> Callable[[dict[str, Any]], None]:
    def change(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (cut_schedule, "19 values, num_train_timesteps is 20"),
        (swap_schedule, "strictly decreasing"),
        (set_in("schedule", "alphas_cumprod", 0, value=1.0), r"(0, 1)"),
        (set_in("schedule", "alphas_cumprod", 19, value=0.0), r"(0, 1)"),
        (set_in("schedule", "alphas_cumprod", 5, value="0.5"), "schedule.alphas_cumprod.5"),
        (set_in("schedule", "alphas_cumprod", 5, value=float("nan")), "alphas_cumprod.5"),
        (set_in("schedule", "num_train_timesteps", value=0), "num_train_timesteps"),
        (set_in("null_label", value=2), "null_label must be 3"),
        (set_in("label_names", value=[]), "label_names"),
        (set_in("label_names", value=["a", "a", "b"]), "twice"),
        (set_in("label_names", value=["a", "", "b"]), "label_names.1"),
        (set_in("image", "channels", value=0), "image.channels"),
        (set_in("image", "height", value="4"), "image.height"),
        (set_in("image", "value_range", value=[0.0, 1.0]), "image.value_range"),
        (set_in("embedding_width", value=0), "embedding_width"),
        (set_in("defaults", "sampler", value="euler"), "ddpm, ddim, dpmpp_2m"),
        (set_in("defaults", "num_steps", value=21), "defaults.num_steps must be in 1..20"),
        (set_in("defaults", "num_steps", value=0), "defaults.num_steps"),
        (set_in("defaults", "guidance_scale", value=20.5), "defaults.guidance_scale"),
        (set_in("defaults", "guidance_scale", value=float("inf")), "defaults.guidance_scale"),
        (set_in("name", value="../evil"), "name"),
        (set_in("version", value=""), "version"),
        (set_in("files", "unet.onnx", "sha256", value="abc"), "sha256"),
        (set_in("files", "unet.onnx", "size_bytes", value=-1), "size_bytes"),
        (set_in("files", "../../etc/passwd", value={"sha256": "0" * 64, "size_bytes": 1}), "files"),
        (set_in("surprise", value=1), "surprise"),
        (lambda manifest: manifest["files"].pop("unet.onnx"), "files must be"),
        (lambda manifest: manifest.pop("schedule"), "schedule"),
    ],
)
def test_a_manifest_that_does_not_add_up_is_refused_by_the_name_of_the_field(
    directory: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    edit(directory, change)
    line = refusal(directory)
    assert line.startswith("manifest.json: ")
    assert named in line


def test_an_enormous_manifest_is_not_read(directory: Path) -> None:
    with (directory / "manifest.json").open("r+b") as file:
        file.truncate(64 * 2**20)
    assert "manifest.json has 67108864 bytes" in refusal(directory)


def test_a_manifest_cannot_be_made_inconsistent(directory: Path) -> None:
    fields = load_bundle(directory).manifest.model_dump()
    with pytest.raises(ValidationError, match="null_label"):
        Manifest(**{**fields, "null_label": 7})


def test_a_file_entry_describes_the_bytes() -> None:
    entry = file_entry(b"abc")
    assert entry.size_bytes == 3
    assert entry.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
