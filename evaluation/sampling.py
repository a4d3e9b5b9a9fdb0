"""Images for evaluation, drawn by serving's engine: the code that users' images come from."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Manifest, load_bundle
from serving.denoiser import EngineModel
from serving.engine import Engine
from serving.network import OnnxNetwork, embedding_table, resolve_provider
from serving.request import GenerateSpec, Outcome, Pixels


class _Collector:
    """A sink that keeps the images of one request."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images
        self.outcome: Outcome | None = None

    def started(self) -> None:
        pass

    def image(self, index: int, pixels: Pixels) -> None:
        self.images[index] = pixels

    def preview(self, index: int, position: int, pixels: Pixels) -> None:
        raise AssertionError("no previews were asked for")

    def done(
        self, outcome: Outcome, queue_seconds: float, compute_seconds: float, detail: str
    ) -> None:
        self.outcome = outcome


class ImageSource:
    """A bundle in an engine driven by hand.

    Args:
        path: models/NAME.
        provider: auto, cpu or cuda.
        max_lanes: images in one batch.

    Raises:
        BundleError, ProviderError: as the server would.
    """

    def __init__(self, path: Path, provider: str = "auto", max_lanes: int = 64) -> None:
        bundle = load_bundle(path)
        self.manifest: Manifest = bundle.manifest
        self._model = EngineModel.from_manifest(bundle.manifest, embedding_table(bundle))
        self._network = OnnxNetwork(bundle, provider=resolve_provider(provider))
        self._max_lanes = max_lanes

    def draw(
        self,
        counts: NDArray[np.int64],
        seed: int,
        sampler: str,
        num_steps: int,
        guidance_scale: float,
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images of every label, as ``Generate(label, counts[label], seed + label)`` gives them.

        Returns:
            images uint8 [N, C, H, W] and their labels int64 [N], N = counts.sum().

        Raises:
            RuntimeError: the network failed.
        """
        engine = Engine(
            self._model,
            self._network,
            max_lanes=self._max_lanes,
            max_queued_images=int(counts.sum()),
        )
        images = np.zeros((int(counts.sum()), *self.manifest.image_shape), np.uint8)
        labels = np.repeat(np.arange(len(counts)), counts)
        collectors = []
        for label, count in enumerate(counts.tolist()):
            if count:
                collectors.append(_Collector(images[labels == label]))
                spec = GenerateSpec(
                    label, count, 0, seed + label, sampler, num_steps, guidance_scale
                )
                engine.submit(spec, collectors[-1])
        while engine.has_work:
            engine.step()
        failed = [c.outcome for c in collectors if c.outcome is not Outcome.FINISHED]
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(collectors)} requests ended as {failed[0]}")
        return np.concatenate([c.images for c in collectors]), labels
