"""Images for evaluation, drawn by serving's engine: the code that users' images come from."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion.samplers import make_plan
from evaluation.setting import Setting
from serving.bundle import Manifest, load_bundle
from serving.engine import Engine
from serving.engine_model import EngineModel, Network
from serving.network import embedding_table, make_network, resolve_provider
from serving.request import GenerateSpec, Outcome, Pixels
from serving.rounds import Rounds

_MAX_LANES = {"cpu": 64, "openvino": 64, "cuda": 512}


class _Collector:
    """A sink that keeps the images of one request."""

    def __init__(self, images: NDArray[np.uint8], first_index: int) -> None:
        self.images = images
        self.first_index = first_index
        self.outcome: Outcome | None = None

    def started(self) -> None:
        pass

    def image(self, index: int, pixels: Pixels) -> None:
        self.images[index - self.first_index] = pixels

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
        provider: one of ``serving.device.PROVIDER_CHOICES``.
        max_lanes: images in one batch; None for what suits the provider.

    Attributes:
        bundle: checked.
        manifest: the bundle's.
        provider: what draws.
        model: what the engine knows of the bundle.
        network: eps of (x_t, emb), as the engine calls it.

    Raises:
        BundleError, ProviderError: as the server would.
    """

    def __init__(self, path: Path, provider: str = "auto", max_lanes: int | None = None) -> None:
        self.bundle = load_bundle(path)
        self.manifest: Manifest = self.bundle.manifest
        self.provider = resolve_provider(provider)
        self.model = EngineModel.from_manifest(self.manifest, embedding_table(self.bundle))
        self.network: Network = make_network(
            self.bundle, self.provider, max_lanes=max_lanes or _MAX_LANES[self.provider]
        )
        self._max_lanes = max_lanes or _MAX_LANES[self.provider]

    def identity(self, setting: Setting | None = None) -> dict[str, Any]:
        """All that determines the pixels that this source draws, but label, seed and index.

        Args:
            setting: how they are drawn; None for the model alone.

        Raises:
            ValueError: the bundle has no plan for ``setting``.
        """
        manifest = self.manifest
        identity: dict[str, Any] = {
            "files": {name: entry.sha256 for name, entry in sorted(manifest.files.items())},
            "image_shape": list(manifest.image_shape),
            "alphas_cumprod": _sha256(np.array(manifest.schedule.alphas_cumprod)),
            "provider": self.provider,
        }
        if setting is not None:
            # The numbers of the plan: a sampler that is changed under its name draws other images.
            plan = make_plan(setting.sampler, self.model.schedule, setting.num_steps)
            identity["sampler"], identity["num_steps"] = setting.sampler, setting.num_steps
            identity["plan"] = _sha256(plan.timesteps, plan.coefficients, plan.guided)
            identity["guidance_scale"] = setting.guidance_scale
        return identity

    def draw(
        self,
        counts: NDArray[np.int64],
        seed: int,
        sampler: str,
        num_steps: int,
        guidance_scale: float,
        first_indexes: NDArray[np.int64] | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images of every label, as ``Generate(label, counts[label], seed + label)`` gives them.

        Args:
            counts: int64 [num_labels], images of each label.
            seed: label y is drawn with seed + y.
            sampler: as of ``Setting``.
            num_steps: as of ``Setting``.
            guidance_scale: as of ``Setting``.
            first_indexes: int64 [num_labels], index of each label's first image; None for 0.
            on_rows: told after every engine step how many network rows it took.

        Returns:
            images uint8 [N, C, H, W] and their labels int64 [N], ascending, N = counts.sum().

        Raises:
            RuntimeError: the network failed.
            ValueError: a value out of range.
        """
        total = int(counts.sum())
        engine = Engine(
            self.model, self.network, max_lanes=self._max_lanes, max_queued_images=max(total, 1)
        )
        images = np.zeros((total, *self.manifest.image_shape), np.uint8)
        labels = np.repeat(np.arange(len(counts)), counts)
        first = np.zeros_like(counts) if first_indexes is None else first_indexes
        collectors = []
        start = 0
        for label, (count, first_index) in enumerate(
            zip(counts.tolist(), first.tolist(), strict=True)
        ):
            if count:
                collectors.append(_Collector(images[start : start + count], first_index))
                spec = GenerateSpec(
                    label, count, first_index, seed + label, sampler, num_steps, guidance_scale
                )
                engine.submit(spec, collectors[-1])
            start += count
        rounds = Rounds(engine.workers)
        while engine.has_work:
            rows = sum(stats.rows_useful for stats in rounds.step(engine))
            if on_rows is not None:
                on_rows(rows)
        rounds.close()
        failed = [c.outcome for c in collectors if c.outcome is not Outcome.FINISHED]
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(collectors)} requests ended as {failed[0]}")
        return images, labels


def _sha256(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
