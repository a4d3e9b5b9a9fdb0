"""Which measurements an evaluation makes: at which N, with which seeds and settings."""

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.setting import Setting
from training.config import require
from training.datasets import Dataset

PROTOCOL_VERSION = 2
"""Numbers of different versions do not compare. 1 had one judge of labels and no diversity."""
NEIGHBOURS = 5
"""k of precision, recall, density and coverage."""
KERNEL_SUBSETS, KERNEL_SUBSET_SIZE = 100, 1000
"""Of the kernel distance; at most N points are in a subset."""
REFERENCE_SEED = 0
"""Of every choice among real images and of the ceilings; the same for every model."""
LEAST_IMAGES = 100
SEED_DISTANCE = 1000
"""Between seeds. Label y is drawn with seed + y: nearer ones would share noise between labels."""

CURVE_NUM_STEPS = (1, 2, 4, 6, 8, 10, 15, 20, 50, 100, 250, 1000)
QUICK_CURVE_NUM_STEPS = (1, 2, 5, 10, 20)
SETTING_NUM_IMAGES = CURVE_NUM_IMAGES = 2000
QUICK_CURVE_NUM_IMAGES = 500
LONG_NUM_STEPS = 100
"""From here on the curve may be measured at another N, and at its first guidance scale only."""


@dataclass(frozen=True)
class CurvePlan:
    """Quality against num_steps, of every sampler at every guidance scale.

    From LONG_NUM_STEPS on guidance is left at the first scale: these cells cost the most, and say
    least about guidance.

    Attributes:
        settings: what is measured, cheapest first.
        num_images: N below LONG_NUM_STEPS.
        num_images_long: N from there on.
        seed: label y is drawn with seed + y.
    """

    settings: tuple[Setting, ...]
    num_images: int
    num_images_long: int
    seed: int

    def num_images_at(self, setting: Setting) -> int:
        """N at a setting."""
        return self.num_images_long if setting.num_steps >= LONG_NUM_STEPS else self.num_images


@dataclass(frozen=True)
class Protocol:
    """What is measured.

    Attributes:
        quick: whether less is measured than the protocol asks for.
        num_images: N of floors, ceilings and samples.
        seeds: of the samples, one set of N for each.
        classification_images: generated images that the classification accuracy score learns from;
            0 leaves it out.
        classification_epochs: of that score.
        denoising_images: test images at each noise level.
        denoising_timesteps: how many noise levels.
        pace_images: drawn for each of the paces, images per second.
        pace_num_steps: at these numbers of steps, and at the default.
        closest_pairs: in the gallery.
        curve: None leaves it out.
    """

    quick: bool
    num_images: int
    seeds: tuple[int, ...]
    classification_images: int
    classification_epochs: int
    denoising_images: int
    denoising_timesteps: int
    pace_images: int
    pace_num_steps: tuple[int, ...]
    closest_pairs: int = 20
    curve: CurvePlan | None = None


def full_protocol(
    dataset: Dataset, seed: int, num_images: int | None = None, curve: CurvePlan | None = None
) -> Protocol:
    """The protocol: N = 10,000, three seeds, as many images to learn from as the training set has.

    Args:
        dataset: bounds every N.
        seed: of the first set of samples.
        num_images: N; None: as many as there are test images, 10,000 at most.
        curve: None leaves it out.

    Raises:
        ValueError: num_images or seed is out of range.
    """
    num_test_images = len(dataset.test.labels)
    num_images = min(10_000, num_test_images) if num_images is None else num_images
    require_num_images("num_images", num_images, dataset)
    return Protocol(
        quick=False,
        num_images=num_images,
        seeds=tuple(require_seed(seed) + i * SEED_DISTANCE for i in range(3)),
        classification_images=len(dataset.train.labels),
        classification_epochs=10,
        denoising_images=min(2000, num_test_images),
        denoising_timesteps=40,
        pace_images=256,
        pace_num_steps=(1, 2, 5, 10, 20, 50),
        curve=curve,
    )


def quick_protocol(
    dataset: Dataset, seed: int, num_images: int | None = None, curve: CurvePlan | None = None
) -> Protocol:
    """A look at every measurement but the classification accuracy score, in minutes.

    Args and errors are those of ``full_protocol``; N is 1,000 unless given.
    """
    num_test_images = len(dataset.test.labels)
    num_images = min(1000, num_test_images) if num_images is None else num_images
    require_num_images("num_images", num_images, dataset)
    return Protocol(
        quick=True,
        num_images=num_images,
        seeds=(require_seed(seed),),
        classification_images=0,
        classification_epochs=0,
        denoising_images=min(200, num_test_images),
        denoising_timesteps=12,
        pace_images=128,
        pace_num_steps=(1, 10),
        curve=curve,
    )


def plan_curve(
    samplers: Sequence[str],
    num_steps: Sequence[int],
    guidance_scales: Sequence[float],
    num_images: int,
    num_images_long: int,
    seed: int,
    dataset: Dataset,
    num_train_timesteps: int,
) -> CurvePlan:
    """The curve; numbers of steps that the bundle has not are left out.

    Args:
        samplers: names in diffusion.samplers.SAMPLERS.
        num_steps: at least one within 1 .. num_train_timesteps.
        guidance_scales: at least one, each 0 .. 20; from LONG_NUM_STEPS on the first alone.
        num_images: N.
        num_images_long: N from LONG_NUM_STEPS on.
        seed: label y is drawn with seed + y.
        dataset: bounds N.
        num_train_timesteps: the bundle's T.

    Raises:
        ValueError: naming field, value and range.
    """
    require_num_images("curve_num_images", num_images, dataset)
    require_num_images("curve_num_images_long", num_images_long, dataset)
    usable = [steps for steps in num_steps if steps <= num_train_timesteps]
    legal = f"1 .. {num_train_timesteps}, one at least"
    require(bool(usable), "curve_num_steps", list(num_steps), legal)
    settings = {
        Setting(sampler, steps, scale)
        for sampler in samplers
        for steps in usable
        for scale in (guidance_scales if steps < LONG_NUM_STEPS else guidance_scales[:1])
    }
    cheapest_first = sorted(settings, key=lambda setting: (setting.rows_per_image, setting))
    return CurvePlan(tuple(cheapest_first), num_images, num_images_long, require_seed(seed))


def require_num_images(name: str, num_images: int, dataset: Dataset) -> None:
    """Refuse an N for which there is no floor.

    Raises:
        ValueError: N is not in 100 .. the number of test images.
    """
    most = min(len(dataset.test.labels), len(dataset.train.labels) // 2)
    require(LEAST_IMAGES <= num_images <= most, name, num_images, f"{LEAST_IMAGES} .. {most}")


def require_seed(seed: int) -> int:
    """``seed``, if it and the seeds that are made of it are within what a request may have."""
    require(0 <= seed < 2**63, "seed", seed, "0 .. 2^63 - 1")
    return seed
