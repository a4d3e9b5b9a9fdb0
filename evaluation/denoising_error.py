"""Held-out error of the noise prediction, by noise level, of a network as it is shipped.

The loss of training (Ho et al. 2020, "Denoising Diffusion Probabilistic Models", arXiv:2006.11239,
Eq. 14) on images that were not trained on, through ONNX Runtime. The noise is a function of
(seed, image, t) alone, so every model gets the same images with the same noise, and differences
between models are far more certain than the numbers themselves.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from diffusion.noise import standard_normal
from evaluation.checks import check_images, check_labels
from serving.bundle import load_bundle
from serving.engine_model import EngineModel, Network
from serving.network import embedding_table, make_network, resolve_provider
from training.config import require

_ROWS = 100
"""Images in a call of the network."""


def load_network(path: str | Path, provider: str = "auto") -> tuple[EngineModel, Network]:
    """A bundle as ``denoising_error`` takes it.

    Args:
        path: models/NAME.
        provider: one of ``serving.device.PROVIDER_CHOICES``.

    Raises:
        BundleError, ProviderError: as the server would.
    """
    bundle = load_bundle(path)
    model = EngineModel.from_manifest(bundle.manifest, embedding_table(bundle))
    return model, make_network(bundle, resolve_provider(provider))


def denoising_error(
    model: EngineModel,
    network: Network,
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    *,
    timesteps: Iterable[int],
    seed: int = 0,
    progress: bool = True,
) -> NDArray[np.float64]:
    """Mean squared error of the predicted eps at given noise levels, over all images at each.

    What is measured at a timestep does not depend on which others are asked for.

    Args:
        model: schedule and embeddings; see ``load_network``.
        network: (x_t, emb) -> eps.
        images: uint8 [N, C, H, W], held out.
        labels: int [N], in 0 .. null_label; the null label measures the unconditional prediction.
        timesteps: t, each in 0 .. T-1.
        seed: of the noise, 0 .. 2^64 - 1.
        progress: whether to show a bar.

    Returns:
        float64, one error per timestep: about 1 for a network that always answers 0.

    Raises:
        ValueError: arguments are not as above, or the network gives NaN or Inf.
    """
    chosen = np.fromiter(timesteps, np.int64)
    _check(model, images, labels, chosen, seed)
    errors = np.empty(len(chosen))
    with _bar(len(chosen) * len(images), progress) as bar:
        for i, t in enumerate(chosen):
            of_images = np.full(len(images), t)
            errors[i] = _errors(model, network, images, labels, of_images, seed, bar).mean()
    return errors


def mean_denoising_error(
    model: EngineModel,
    network: Network,
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    *,
    seed: int = 0,
    progress: bool = True,
) -> float:
    """Mean squared error of the predicted eps over all timesteps: training's loss, held out.

    Each image is taken at one timestep. These are spread evenly over 0 .. T-1 and dealt to the
    images at random, so that N images cost N rows of the network and leave little variance: the
    stratified estimate of training (Kingma et al. 2021, arXiv:2107.00630, appendix I.1).

    Args and errors are those of ``denoising_error``.

    Returns:
        The mean, at least 0.
    """
    total = model.schedule.num_train_timesteps
    spread = spread_timesteps(total, len(images))
    _check(model, images, labels, spread, seed)
    timesteps = np.random.default_rng(seed).permutation(spread)
    with _bar(len(images), progress) as bar:
        return float(_errors(model, network, images, labels, timesteps, seed, bar).mean())


def spread_timesteps(num_train_timesteps: int, count: int) -> NDArray[np.int64]:
    """Middles of ``count`` equal parts of 0 .. T-1, rising: int64 [count].

    Raises:
        ValueError: an argument is below 1.
    """
    require(num_train_timesteps >= 1, "num_train_timesteps", num_train_timesteps, "at least 1")
    require(count >= 1, "count", count, "at least 1")
    return (2 * np.arange(count, dtype=np.int64) + 1) * num_train_timesteps // (2 * count)


def _errors(
    model: EngineModel,
    network: Network,
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    timesteps: NDArray[np.int64],
    seed: int,
    bar: "tqdm[None]",
) -> NDArray[np.float64]:
    """Squared error of each image at its timestep, mean over pixels: float64 [N]."""
    alpha = model.schedule.alpha.astype(np.float32)[:, None, None, None]
    sigma = model.schedule.sigma.astype(np.float32)[:, None, None, None]
    errors = np.empty(len(images))
    for start in range(0, len(images), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(images)))
        t = timesteps[rows]
        x_0 = images[rows].astype(np.float32) / 127.5 - 1
        seeds = np.full(len(rows), seed, np.uint64)
        eps = standard_normal(seeds, rows, t, x_0[0].size).reshape(x_0.shape)
        x_t = alpha[t] * x_0 + sigma[t] * eps  # Ho et al. Eq. 4
        predicted = network(x_t, np.ascontiguousarray(model.embedding_table[t, labels[rows]]))
        errors[rows] = np.square(predicted - eps, dtype=np.float64).mean(axis=(1, 2, 3))
        bar.update(len(rows))
    finite = bool(np.isfinite(errors).all())
    require(finite, "what the network gave", "not finite", "finite numbers")
    return errors


def _check(
    model: EngineModel,
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    timesteps: NDArray[np.int64],
    seed: int,
) -> None:
    check_images("images", images, model.image_shape)
    check_labels("labels", labels, len(images), model.null_label)
    last = model.schedule.num_train_timesteps - 1
    require(len(timesteps) > 0, "number of timesteps", 0, "at least 1")
    for t in (int(timesteps.min()), int(timesteps.max())):
        require(0 <= t <= last, "timesteps", t, f"0 .. {last}")
    require(0 <= seed < 2**64, "seed", seed, "0 .. 2^64 - 1")


def _bar(total: int, progress: bool) -> "tqdm[None]":
    return tqdm(total=total, desc="eps-MSE", unit="row", disable=None if progress else True)
