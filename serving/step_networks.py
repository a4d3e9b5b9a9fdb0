"""The step networks of one device, a worker of the engine each (serving.step_network)."""

import numpy as np

from serving.device import Provider
from serving.lanes import Float32Array
from serving.step_network import StepNetwork

WORKERS = 2
"""While the device computes the step of one, the host ends and begins that of the other."""


class StepNetworks:
    """Step networks of one bundle on one device, side by side, each with memory of its own.

    It is a Network as well, for those who want eps alone; then from one thread at a time.

    Attributes:
        workers: each may be called while the others are, from one thread at a time.
        provider: where all of them are.
        num_threads: threads of one call on the CPU.
        buckets: the batch sizes that each of them runs.
        lane_counts: of all together, that fit if all lanes take two rows.
    """

    def __init__(self, workers: tuple[StepNetwork, ...]) -> None:
        """`workers` of one bundle and with the same buckets."""
        self.workers = workers
        first = workers[0]
        self.provider: Provider = first.provider
        self.num_threads = first.num_threads
        self.buckets = first.buckets
        self.lane_counts = tuple(len(workers) * lanes for lanes in first.lane_counts)

    def __call__(self, x_t: Float32Array, emb: Float32Array, /) -> Float32Array:
        """x_t float32 [B, C, H, W], emb float32 [B, E] -> eps float32 [B, C, H, W], a new array.

        By the first worker, if they fit there.

        Raises:
            ValueError: if there are more rows than fit into all of them.
            Exception: whatever ONNX Runtime or the device raises.
        """
        parts = -(-len(x_t) // self.buckets[-1])
        if parts > len(self.workers):
            most = len(self.workers) * self.buckets[-1]
            raise ValueError(f"a batch has up to {most} rows here, got {len(x_t)}")
        shares = zip(
            self.workers, np.array_split(x_t, parts), np.array_split(emb, parts), strict=False
        )
        return np.concatenate([worker(*share) for worker, *share in shares])

    def padded_rows(self, rows: int) -> int:
        """Rows that all of them compute for a batch of `rows` that they share evenly.

        Raises:
            ValueError: if they do not fit.
        """
        workers = len(self.workers)
        return workers * self.workers[0].padded_rows(-(-rows // workers))


DeviceNetwork = StepNetwork | StepNetworks
"""What steps on the memory of a device."""
