"""Two questions that tell early whether training is wired up right.

Is the loss of the untrained network what the mathematics says? And can it learn one batch by heart?
"""

import dataclasses
import logging

import numpy as np
import torch

from diffusion.schedule import Schedule
from training.config import TrainConfig
from training.datasets import Dataset
from training.device import Placement, Processes
from training.objective import loss_weights
from training.trainer import Trainer

logger = logging.getLogger(__name__)

OVERFIT_IMAGES = 16
"""Images of the one batch, at most: enough to need the whole network, and quick on a CPU."""
OVERFIT_SHARE = 0.1
"""Share of the first loss that the last one must fall below."""


class OverfitFailed(Exception):
    """The network did not learn one batch by heart."""


def expected_initial_loss(config: TrainConfig, schedule: Schedule, mean_square: float) -> float:
    """Loss of the network before the first train step, whose last convolution starts at zero.

    Its prediction of eps is 0 where that convolution gives eps, so the squared error has mean
    E[eps^2] = 1 at every timestep. With the other predictions it is sigma x_t (UNet), and
    eps - sigma x_t = alpha^2 eps - alpha sigma x_0 has mean square
    alpha^4 + alpha^2 sigma^2 E[x_0^2]. The loss is the mean over t with the weights of the loss.

    Args:
        config: prediction and weighting.
        schedule: the noise levels.
        mean_square: E[x_0^2] over images and pixels, in [0, 1].
    """
    error = np.ones_like(schedule.alpha)
    if config.model.prediction != "eps":
        error = schedule.alpha**4 + schedule.alpha**2 * schedule.sigma**2 * mean_square
    return float(np.mean(loss_weights(config.loss_weighting, schedule) * error))


def check_initial_loss(loss: float, expected: float) -> None:
    """Log one warning if the first loss is not within half and twice the expected one."""
    if not 0.5 * expected <= loss <= 2 * expected:
        logger.warning(
            "the loss before training is %.3g, and an untrained network should have about %.3g: "
            "the images, the noise or the network are not what they should be",
            loss, expected,
        )  # fmt: skip


def overfit_one_batch(config: TrainConfig, dataset: Dataset, placement: Placement) -> None:
    """Train ``config.overfit_one_batch`` steps on one batch with one set of random numbers.

    The same images, timesteps, noise and dropped labels at every step, with the run's network,
    loss, optimiser and learning rate. Nothing is written.

    Raises:
        OverfitFailed: the last loss is not below OVERFIT_SHARE of the first.
    """
    train_steps = config.overfit_one_batch
    batch_size = min(OVERFIT_IMAGES, config.batch_size)
    config = dataclasses.replace(
        config,
        batch_size=batch_size,
        gradient_accumulation=1,
        epochs=train_steps * batch_size / len(dataset.train.images),
    )
    trainer = Trainer(config, dataset, placement, Processes())
    batch = trainer.micro_batches(1)
    losses = [trainer.run_train_step(batch) for _ in range(train_steps)]
    first, *_, last = torch.stack([losses[0], *losses]).tolist()
    outcome = (
        f"one batch of {batch_size}: loss {first:.4g} before train step 1, {last:.4g} before "
        f"train step {train_steps}"
    )
    if not last < OVERFIT_SHARE * first:
        raise OverfitFailed(
            f"{outcome}; it should fall below a tenth. Either {train_steps} train steps are too "
            "few, the learning rate does not suit, or loss, network and images do not fit together"
        )
    logger.info("%s: below a tenth, as it should be", outcome)
