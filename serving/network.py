"""The noise predictor of a bundle, as the engine calls it."""

from concurrent.futures import ThreadPoolExecutor, wait
from typing import cast

import numpy as np

from serving.bundle import EMBEDDING_NAME, UNET_NAME, Bundle, BundleError
from serving.cpu_count import shares_of_threads, usable_cpus
from serving.cuda_device import CudaDevice, DeviceError
from serving.device import Provider
from serving.lanes import Float32Array
from serving.onnx_session import (
    ProviderError,
    Session,
    one_line,
    unet_signature,
)
from serving.openvino_network import OpenVinoNetwork
from serving.providers import resolve_provider
from serving.step_network import StepNetwork
from serving.step_networks import WORKERS, StepNetworks

__all__ = [
    "AnyNetwork", "OnnxNetwork", "Provider", "ProviderError", "embedding_table", "make_network",
    "resolve_provider",
]  # fmt: skip

_MAX_LANES = 1024  # on CUDA, if it is not said how many; two rows each

_EMBEDDING_CHUNK = 1024  # rows; bounds the memory of embedding_table


ROWS_AT_ONCE = 16
"""Rows that a session computes together. What an operator writes of more is out of the cache before
the next one reads it, and fewer make no better use of a thread (benchmarks/LEVERS.md)."""


class UNet:
    """unet.onnx on the threads of one session, as a Network. From one thread at a time."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, x_t: Float32Array, emb: Float32Array, /) -> Float32Array:
        parts = -(-len(x_t) // ROWS_AT_ONCE)
        if parts <= 1:
            return self._run(x_t, emb)
        shares = zip(np.array_split(x_t, parts), np.array_split(emb, parts), strict=True)
        return np.concatenate([self._run(*share) for share in shares])

    def _run(self, x_t: Float32Array, emb: Float32Array) -> Float32Array:
        return cast("Float32Array", self._session.run("eps", {"x_t": x_t, "emb": emb}))


class OnnxNetwork:
    """unet.onnx on the CPU, as the engine's Network. To be called from one thread at a time.

    A batch is computed in parts, each by threads of its own, that wait for each other once, at the
    end: threads that share every operator of a graph wait for the slowest of them at each, and
    whoever else wants a processor for a moment holds up all. A batch that is too small for that is
    computed by all threads together.

    Attributes:
        provider: "cpu".
        num_threads: threads of one call.
        buckets: empty: any batch size is run as it is.
        workers: the parts, for who has batches for each of them (engine_model.workers_of).
    """

    provider: Provider = "cpu"
    buckets: tuple[int, ...] = ()

    def __init__(
        self, bundle: Bundle, *, num_threads: int | None = None, spin: bool = False
    ) -> None:
        """Loads the graph.

        Args:
            bundle: checked by load_bundle.
            num_threads: for one call; None for usable_cpus().
            spin: whether threads that compute a row together wait for each other awake.

        Raises:
            BundleError: if unet.onnx does not load or is not what the manifest says.
        """
        self.num_threads = num_threads or usable_cpus()
        inputs, outputs = unet_signature(bundle)

        def unet(threads: int) -> UNet:
            return UNet(
                Session(
                    bundle, UNET_NAME, bundle.unet_onnx, inputs, outputs, num_threads=threads,
                    spin=spin,
                )
            )  # fmt: skip

        self._whole = unet(self.num_threads)
        # One session for all would let them wait for each other's memory.
        shares = shares_of_threads(self.num_threads)
        alone = len(shares) == 1
        self.workers = (self._whole,) if alone else tuple(unet(len(share)) for share in shares)
        self._pool = ThreadPoolExecutor(len(shares), thread_name_prefix="network")

    def __call__(self, x_t: Float32Array, emb: Float32Array, /) -> Float32Array:
        """x_t float32 [B, C, H, W], emb float32 [B, E] -> eps float32 [B, C, H, W], a new array.

        Raises:
            Exception: whatever ONNX Runtime raises.
        """
        parts = len(self.workers)
        if parts == 1 or len(x_t) < parts:
            return self._whole(x_t, emb)
        shares = zip(
            self.workers, np.array_split(x_t, parts), np.array_split(emb, parts), strict=True
        )
        running = [self._pool.submit(worker, *share) for worker, *share in shares]
        wait(running)  # also where one has raised: they read what the caller will overwrite
        return np.concatenate([part.result() for part in running])

    def padded_rows(self, rows: int) -> int:
        """Rows that are computed for a batch of `rows`."""
        return rows


AnyNetwork = OnnxNetwork | OpenVinoNetwork | StepNetworks


def make_network(
    bundle: Bundle,
    provider: Provider,
    num_threads: int | None = None,
    *,
    spin: bool = False,
    max_lanes: int | None = None,
) -> AnyNetwork:
    """The network of a bundle, as it is fast where it runs.

    Args:
        bundle: checked by load_bundle.
        provider: from resolve_provider.
        num_threads: for one call on the CPU; None for usable_cpus().
        spin: whether threads that compute a row together wait for each other awake; OpenVINO's do
            as they like.
        max_lanes: images in one batch at most; None for as many as are useful. On the CPU there is
            no limit.

    Raises:
        BundleError: if unet.onnx does not load or is not what the manifest says.
        ProviderError: if it would not run on `provider`.
    """
    if provider == "cpu":
        return OnnxNetwork(bundle, num_threads=num_threads, spin=spin)
    if provider == "openvino":
        return OpenVinoNetwork(bundle, num_threads=num_threads)
    resolve_provider(provider)
    try:
        lanes = max_lanes or _MAX_LANES
        workers = min(WORKERS, lanes)
        rows = 2 * -(-lanes // workers)
        return StepNetworks(
            # A device each: what is done on one is done in order.
            tuple(StepNetwork(bundle, CudaDevice(), max_rows=rows) for _ in range(workers))
        )
    except DeviceError as error:
        raise ProviderError(str(error)) from error


def embedding_table(bundle: Bundle, num_threads: int | None = None) -> Float32Array:
    """Runs embedding.onnx for every timestep and label (null too), once, on the CPU.

    Returns:
        float32 [T, null_label + 1, E].

    Raises:
        BundleError: if embedding.onnx does not load or run, is not what the manifest says, or
            gives NaN or Inf.
    """
    manifest = bundle.manifest
    number = ("tensor(int64)", (None,))
    emb = ("tensor(float)", (None, manifest.embedding_width))
    session = Session(
        bundle,
        EMBEDDING_NAME,
        bundle.embedding_onnx,
        {"t": number, "label": number},
        {"emb": emb},
        num_threads=num_threads or usable_cpus(),
    )
    timesteps, labels = manifest.schedule.num_train_timesteps, manifest.null_label + 1
    t, label = np.divmod(np.arange(timesteps * labels, dtype=np.int64), labels)
    table: Float32Array = np.empty((t.size, manifest.embedding_width), dtype=np.float32)
    for first in range(0, t.size, _EMBEDDING_CHUNK):
        chunk = slice(first, first + _EMBEDDING_CHUNK)
        try:
            table[chunk] = session.run("emb", {"t": t[chunk], "label": label[chunk]})
        except Exception as error:
            raise BundleError(
                f"bundle {manifest.name}: {EMBEDDING_NAME} fails for t and label within their "
                f"ranges ({one_line(error)})"
            ) from error
    if not np.isfinite(table).all():
        raise BundleError(f"bundle {manifest.name}: {EMBEDDING_NAME} gives NaN or Inf")
    return table.reshape(timesteps, labels, -1)
