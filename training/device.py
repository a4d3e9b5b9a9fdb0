"""Where a run computes and in which arithmetic; and the processes of a distributed run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from training.config import TrainConfig


@dataclass(frozen=True)
class Placement:
    """The resolved ``auto`` choices."""

    device: torch.device
    autocast_dtype: torch.dtype | None  # None: float32 throughout
    memory_format: torch.memory_format

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        layout = str(self.memory_format).removeprefix("torch.")
        return f"{name}, {'bf16 autocast' if self.autocast_dtype else 'fp32'}, {layout}"


def resolve_placement(config: TrainConfig, local_rank: int = 0) -> Placement:
    """Settle device, precision and memory format.

    Raises:
        ValueError: CUDA was asked for and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda; PyTorch sees no CUDA device here")
    use_cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    bf16 = config.precision == "bf16" or (config.precision == "auto" and has_bf16(device))
    channels_last = config.memory_format == "channels_last" or (
        config.memory_format == "auto" and (use_cuda or not bf16)
    )
    return Placement(
        device,
        torch.bfloat16 if bf16 else None,
        torch.channels_last if channels_last else torch.contiguous_format,
    )


def be_deterministic() -> None:
    """Have PyTorch use deterministic algorithms only, in this process, before its first CUDA call.

    An operation that has none raises RuntimeError; the network here has no such operation.
    """
    # cuBLAS is deterministic with a workspace of fixed size only, which it reads at its start.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # On a CPU without these instructions bf16 convolutions were 10 times slower than fp32.
    cpu = torch.cpu
    return cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()  # noqa: SLF001


@dataclass(frozen=True)
class Processes:
    """This process among those of the run. One process: rank 0 of 1, nothing initialised."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and draws the progress bar."""
        return self.rank == 0

    def share(self, batch_size: int) -> slice:
        """The rows of the global batch that this process computes."""
        per_process = batch_size // self.world_size
        return slice(self.rank * per_process, (self.rank + 1) * per_process)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean over processes."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process, so that all of them stop at the same step."""
        return bool(self._highest(int(flag), device))

    def agree(self, number: int, device: torch.device) -> bool:
        """Whether the number is the same in all processes; its size is below 2**62."""
        return self._highest(number, device) == -self._highest(-number, device)

    def _highest(self, number: int, device: torch.device) -> int:
        if self.world_size == 1:
            return number
        value = torch.tensor(number, dtype=torch.int64, device=device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return int(value.item())


def join_processes(config: TrainConfig) -> Processes:
    """Join the process group that ``torchrun`` describes in the environment, if there is one.

    Raises:
        ValueError: batch_size does not divide by the number of processes, and that by the number
            of micro-batches; or there are several, and a mode of one process was asked for.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    accumulation = config.gradient_accumulation
    if config.batch_size % (world_size * accumulation):
        times = f" times gradient_accumulation, {accumulation}" if accumulation > 1 else ""
        raise ValueError(
            f"batch_size is {config.batch_size}; legal: multiples of the {world_size} processes"
            + times
        )
    if world_size > 1 and config.overfit_one_batch:
        raise ValueError(
            f"overfit_one_batch is {config.overfit_one_batch}; legal: 0, with more than one process"
        )
    if world_size == 1:
        return Processes()
    use_cuda = config.device != "cpu" and torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if use_cuda:
        torch.cuda.set_device(local_rank)  # or NCCL guesses the device of its first barrier
    dist.init_process_group("nccl" if use_cuda else "gloo")
    return Processes(dist.get_rank(), world_size, local_rank)


@contextmanager
def one_process_first(processes: Processes) -> Iterator[None]:
    """Let one process on each machine run the body before the others there do."""
    is_first = processes.local_rank == 0
    if processes.world_size > 1 and not is_first:
        dist.barrier()
    yield
    if processes.world_size > 1 and is_first:
        dist.barrier()


def leave_processes(processes: Processes) -> None:
    """Undo :func:`join_processes`."""
    if processes.world_size > 1:
        dist.destroy_process_group()
