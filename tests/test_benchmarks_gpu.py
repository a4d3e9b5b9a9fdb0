"""`make bench-gpu` up to CUDA itself: every part of it runs, on the device of the host."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import gpu
from benchmarks.report import on_gpu
from benchmarks.served import Served
from serving.bundle import Bundle
from serving.device import HostDevice
from serving.onnx_session import ProviderError
from serving.step_network import StepNetwork
from serving.step_networks import StepNetworks
from tests.fakes import fake_eps, reference_x_0, spec
from tests.step_fakes import MODEL, fake_bundle


def on_the_host(bundle: Bundle, provider: str, *, max_lanes: int) -> StepNetworks:
    assert provider == "cuda"
    workers = (StepNetwork(bundle, HostDevice(), 1, max_rows=max_lanes) for _ in range(2))
    return StepNetworks(tuple(workers))


def test_all_of_it_is_written_down_and_read_by_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_bundle(tmp_path)
    peer = {"variant": "compile-bf16", "images_per_second": {"64": 10.0, "512": 20.0}}
    monkeypatch.setattr(gpu, "make_network", on_the_host)
    monkeypatch.setattr(gpu, "refusal_without_a_device", lambda: "no device")
    monkeypatch.setattr(gpu, "of_peer", lambda *_: peer)
    asked = [
        "--model", str(tmp_path / "fake"), "--max-lanes", "4", "--quick",
        "--output", str(tmp_path), "--peer-python", "python",
    ]  # fmt: skip
    result = CliRunner().invoke(gpu.main, asked, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "gpu.json").read_text())["data"]
    [model] = data["models"]
    assert model["name"] == "tiny"
    assert model["step_difference"] == 0.0
    assert model["parity"]["equal_pixels"] == 1.0
    assert [bucket["rows"] for bucket in model["buckets"]] == [1, 2]
    times = ("replay_seconds", "both_seconds", "step_seconds")
    assert all(bucket[each] > 0 for bucket in model["buckets"] for each in times)
    section = on_gpu.section(data)
    assert "differ by 0" in section
    assert "\u201cno device\u201d" in section
    rate = model["images"] / model["plain_seconds"]["median"]
    assert "3x diffusers" in section
    assert (rate / 20.0 >= 3) == ("x, met." in section.splitlines()[-1])
    assert "200 in" in section
    assert "not measured" in section  # 200 images say nothing about 10,000


def test_a_machine_without_cuda_is_told_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ProviderError("CUDA does not work here")

    fake_bundle(tmp_path)
    monkeypatch.setattr(gpu, "make_network", refuse)
    result = CliRunner().invoke(gpu.main, ["--model", str(tmp_path / "fake")])
    assert result.exit_code == 1
    assert result.output == "Error: CUDA does not work here\n"


def test_images_come_in_the_order_of_the_requests() -> None:
    requests = [spec(label=4, count=3, seed=1), spec(label=2, count=2, guidance_scale=2.0)]
    served = Served(MODEL, fake_eps, 2, 9)
    images, seconds = served.draw(requests)
    served.close()
    x_0 = np.concatenate([reference_x_0(MODEL, request) for request in requests])
    assert images.shape == x_0.shape
    assert np.abs(images / 127.5 - 1 - np.clip(x_0, -1, 1)).max() <= 1 / 255 + 1e-6
    assert seconds > 0


def test_parity_tells_equal_pixels_and_the_largest_difference() -> None:
    of_cpu = np.zeros((2, 1, 2, 2), dtype=np.uint8)
    of_device = of_cpu.copy()
    of_device[1, 0, 1] = 255, 1
    assert gpu.parity(of_cpu, of_device) == {
        "images": 2, "equal_pixels": 0.75, "mean_difference": 32.0, "largest_difference": 255,
    }  # fmt: skip


def test_without_a_visible_device_cuda_is_refused_in_a_process_of_its_own() -> None:
    assert "CUDA" in gpu.refusal_without_a_device()
