"""Promise: the provider that is asked for is used, or the server says why not and ends."""

import numpy as np
import onnxruntime
import pytest

from serving.client import Client
from tests.fault_figures import Record
from tests.server_process import MNIST, run_server, running_server, total

CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.mark.skipif(CUDA, reason="this ONNX Runtime is built with CUDA")
def test_cuda_that_cannot_be_had_ends_the_server_with_the_reason(figure: Record) -> None:
    ended = run_server(
        "--model", str(MNIST), "--provider", "cuda", "--port", "0", "--http-port", "0"
    )
    assert ended.returncode == 1
    [line] = [line for line in ended.stderr.splitlines() if " INFO " not in line]
    assert line.startswith("error: ")
    assert "CUDA" in line
    figure("--provider cuda on the CPU wheel", line, "the reason, exit code 1")


@pytest.mark.skipif(not CUDA, reason="this ONNX Runtime is built without CUDA")
def test_cuda_that_was_asked_for_is_what_runs(figure: Record) -> None:
    with running_server(MNIST, flags=("--provider", "cuda")) as server:
        assert total(server.metrics(), "diffusion_model_info", provider="cuda") == 1
    figure("--provider cuda with CUDA", "cuda", "cuda")


@pytest.mark.skipif(CUDA, reason="this ONNX Runtime is built with CUDA")
def test_auto_says_that_it_runs_on_the_cpu_and_why(figure: Record) -> None:
    with running_server(MNIST, flags=("--provider", "auto", "--max-lanes", "8")) as server:
        assert total(server.metrics(), "diffusion_model_info", provider="cpu") == 1
        lines = [line for line in server.log.splitlines() if "cpu" in line and "CUDA" in line]
    assert lines, "auto chose the CPU in silence"
    figure("--provider auto on the CPU wheel", "cpu, with the reason in the log", "said")


def test_openvino_that_was_asked_for_is_what_runs_and_draws_the_same(figure: Record) -> None:
    images = {}
    for provider in ("cpu", "openvino"):
        flags = ("--provider", provider, "--max-lanes", "8")
        with running_server(MNIST, flags=flags) as server, Client(server.target) as client:
            assert total(server.metrics(), "diffusion_model_info", provider=provider) == 1
            drawn = client.generate(3, 8, seed=1).images
            images[provider] = np.stack([image.pixels for image in drawn]).astype(int)
    difference = np.abs(images["cpu"] - images["openvino"])
    assert (difference <= 1).mean() > 0.999
    figure("--provider openvino: largest difference of a pixel", difference.max(), "about 1 of 255")
