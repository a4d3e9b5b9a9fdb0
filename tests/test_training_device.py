"""Where a run computes, in which arithmetic, and which rows are whose."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_training import tiny_config
from training.device import (
    Processes,
    be_deterministic,
    join_processes,
    one_process_first,
    resolve_placement,
)

OUTPUT = Path("run")


@pytest.fixture
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def cuda_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)


@pytest.mark.usefixtures("cpu_only")
def test_cuda_without_a_device_is_refused_and_auto_takes_the_cpu() -> None:
    with pytest.raises(ValueError, match="device is cuda; PyTorch sees no CUDA device here"):
        resolve_placement(tiny_config(OUTPUT, device="cuda"))
    assert resolve_placement(tiny_config(OUTPUT, device="auto")).device == torch.device("cpu")


@pytest.mark.usefixtures("cuda_there")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_cuda_is_used_when_it_is_there_each_process_on_its_own(device: str) -> None:
    config = tiny_config(OUTPUT, device=device, precision="auto")
    placement = resolve_placement(config, local_rank=3)
    assert placement.device == torch.device("cuda", 3)
    assert placement.autocast_dtype == torch.bfloat16
    assert placement.memory_format == torch.channels_last


@pytest.mark.parametrize("has_avx512_bf16", [False, True])
@pytest.mark.parametrize("has_amx", [False, True])
def test_bf16_is_used_on_a_cpu_that_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, has_avx512_bf16: bool, has_amx: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    placement = resolve_placement(tiny_config(OUTPUT, precision="auto"))
    bf16 = has_avx512_bf16 or has_amx
    assert placement.autocast_dtype == (torch.bfloat16 if bf16 else None)
    expected = torch.contiguous_format if bf16 else torch.channels_last
    assert placement.memory_format == expected


def test_this_pytorch_can_say_whether_the_cpu_has_bf16() -> None:
    placement = resolve_placement(tiny_config(OUTPUT, precision="auto"))
    assert placement.autocast_dtype in {None, torch.bfloat16}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"precision": "fp32", "memory_format": "contiguous"}, "CPU, fp32, contiguous_format"),
        ({"precision": "bf16", "memory_format": "channels_last"}, "CPU, bf16 autocast, channels"),
    ],
)
def test_what_is_asked_for_is_used_and_said(changes: dict[str, Any], text: str) -> None:
    assert str(resolve_placement(tiny_config(OUTPUT, **changes))).startswith(text)


@pytest.fixture
def ordinary_algorithms() -> Iterator[None]:
    """Puts PyTorch's settings back."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("ordinary_algorithms")
@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_deterministic_means_every_operation_and_a_workspace_of_fixed_size(
    monkeypatch: pytest.MonkeyPatch, workspace: str | None
) -> None:
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.setenv(name, workspace or "")
    if workspace is None:
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    be_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ[name] == (workspace or ":4096:8")


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_processes_share_the_global_batch_without_gap_or_overlap(world_size: int) -> None:
    rows = list(range(8))
    shares = [rows[Processes(rank, world_size).share(8)] for rank in range(world_size)]
    assert [row for share in shares for row in share] == rows
    assert {len(share) for share in shares} == {8 // world_size}


def test_one_process_writes_the_files() -> None:
    assert [Processes(rank, 3).is_main for rank in range(3)] == [True, False, False]


def test_a_batch_that_does_not_divide_by_the_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="batch_size is 8; legal: multiples of the 3 processes"):
        join_processes(tiny_config(OUTPUT, batch_size=8))


def test_a_batch_that_does_not_divide_into_micro_batches_of_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    message = "batch_size is 8; legal: multiples of the 4 processes times gradient_accumulation, 4"
    with pytest.raises(ValueError, match=f"^{message}$"):
        join_processes(tiny_config(OUTPUT, batch_size=8, gradient_accumulation=4))


def test_several_processes_do_not_overfit_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="overfit_one_batch is 9; legal: 0, with more than one"):
        join_processes(tiny_config(OUTPUT, overfit_one_batch=9))


@pytest.mark.parametrize(("local_rank", "expected"), [(0, ["it", "wait"]), (1, ["wait", "it"])])
def test_one_process_of_each_machine_goes_first(
    monkeypatch: pytest.MonkeyPatch, local_rank: int, expected: list[str]
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(torch.distributed, "barrier", lambda: seen.append("wait"))
    with one_process_first(Processes(rank=2 + local_rank, world_size=4, local_rank=local_rank)):
        seen.append("it")
    assert seen == expected


def test_one_process_agrees_with_itself() -> None:
    assert Processes().agree(7, torch.device("cpu"))
    assert Processes().agree(0, torch.device("cpu"))


def test_one_process_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_processes(tiny_config(OUTPUT)) == Processes(0, 1, 0)
    assert not torch.distributed.is_initialized()
