"""What metrics refuse: arrays that are not what they compare. Messages name field, value, range."""

import numpy as np
from numpy.typing import NDArray

from training.config import require


def check_images(
    name: str, images: NDArray[np.uint8], shape: tuple[int, int, int], at_least: int = 1
) -> None:
    """Images have to be uint8 [N, *shape], N at least ``at_least``.

    Raises:
        ValueError: they are not.
    """
    fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1:] == shape
    legal = f"uint8 [N, {', '.join(map(str, shape))}]"
    require(fits, name, f"{images.dtype} {list(images.shape)}", legal)
    require(len(images) >= at_least, f"number of {name}", len(images), f"at least {at_least}")


def check_labels(
    name: str, labels: NDArray[np.integer], num_images: int, at_most: int | None = None
) -> None:
    """Labels have to be integers [num_images], 0 .. at_most.

    Raises:
        ValueError: they are not.
    """
    fits = np.issubdtype(labels.dtype, np.integer) and labels.shape == (num_images,)
    require(fits, name, f"{labels.dtype} {list(labels.shape)}", f"integers [{num_images}]")
    lowest, highest = int(labels.min()), int(labels.max())
    legal = "at least 0" if at_most is None else f"0 .. {at_most}"
    require(lowest >= 0, name, lowest, legal)
    require(at_most is None or highest <= at_most, name, highest, legal)


def check_features(name: str, features: NDArray[np.floating], at_least: int) -> None:
    """Features have to be finite numbers [N, D], N at least ``at_least``.

    Raises:
        ValueError: they are not.
    """
    fits = features.ndim == 2 and features.shape[1] > 0
    require(fits, name, f"of shape {list(features.shape)}", "[N, D] with D of at least 1")
    require(len(features) >= at_least, f"number of {name}", len(features), f"at least {at_least}")
    require(bool(np.isfinite(features).all()), name, "not finite", "finite numbers")


def check_same_width(
    a_name: str, a: NDArray[np.floating], b_name: str, b: NDArray[np.floating]
) -> None:
    """Two sets of features have to have the same D.

    Raises:
        ValueError: they have not.
    """
    require(
        a.shape[1] == b.shape[1], f"width of {b_name}", b.shape[1], f"{a.shape[1]}, as {a_name}"
    )
