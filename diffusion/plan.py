"""A plan: one sampler laid out for a number of steps, as tables of numbers.

Position k of a plan takes x at timesteps[k] to x at timesteps[k+1]; the last position takes it to
x_0 itself (abar = 1). Every sampler is the same two lines with other numbers (update.py):

    x_0 = clip((x_t - sigma * eps) / alpha)
    x   = A * x_t + B * x_0 + C * x_0_previous + S * noise

Where a plan is guided, eps is that of update.guide if guidance is asked for.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from diffusion.schedule import FloatArray, Schedule

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Plan:
    """Timesteps and coefficients of a reverse process with K = num_steps network calls.

    Coefficients are worked out in float64 (samplers.py) and kept, read-only, in float32, the
    precision in which they are used. C is 0 at position 0, where there is no x_0_previous.

    Args:
        timesteps: int64 [K], strictly decreasing; timesteps[k] is the t the network is given.
        alpha: float32 [K], sqrt(abar) at timesteps[k].
        sigma: float32 [K], sqrt(1 - abar) at timesteps[k].
        coefficients: float32 [K, 4], the columns A, B, C, S of the update above.
        guided: bool [K], where classifier-free guidance is applied if it is asked for.

    Raises:
        ValueError: if the shapes do not fit together or timesteps do not decrease.
    """

    timesteps: Int64Array
    alpha: Float32Array
    sigma: Float32Array
    coefficients: Float32Array
    guided: BoolArray

    def __post_init__(self) -> None:
        timesteps = np.array(self.timesteps, dtype=np.int64)
        columns: dict[str, npt.NDArray[Any]] = {
            "timesteps": timesteps,
            "alpha": np.array(self.alpha, dtype=np.float32),
            "sigma": np.array(self.sigma, dtype=np.float32),
            "coefficients": np.array(self.coefficients, dtype=np.float32),
            "guided": np.array(self.guided, dtype=np.bool_),
        }
        if timesteps.ndim != 1 or timesteps.size == 0:
            raise ValueError(f"timesteps must have shape [K], K >= 1, got {timesteps.shape}")
        if np.any(np.diff(timesteps) >= 0) or timesteps[-1] < 0:
            raise ValueError(f"timesteps must decrease strictly and end at 0 or above: {timesteps}")
        k = timesteps.size
        shapes = {"alpha": (k,), "sigma": (k,), "coefficients": (k, 4), "guided": (k,)}
        for name, shape in shapes.items():
            if columns[name].shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {columns[name].shape}")
        for name, column in columns.items():
            column.flags.writeable = False
            object.__setattr__(self, name, column)

    @property
    def num_steps(self) -> int:
        """K, the number of network calls per image (without guidance)."""
        return int(self.timesteps.size)


def check_num_steps(num_train_timesteps: int, num_steps: int) -> None:
    """Raises ValueError if num_steps is not in 1..T."""
    if not 1 <= num_steps <= num_train_timesteps:
        raise ValueError(f"num_steps must be in 1..{num_train_timesteps}, got {num_steps}")


def spaced_timesteps(num_train_timesteps: int, num_steps: int) -> Int64Array:
    """K timesteps spread evenly over T-1 .. 0, both ends included; [T-1] when K = 1.

    Returns:
        int64 [K], strictly decreasing.

    Raises:
        ValueError: if num_steps is not in 1..T.
    """
    check_num_steps(num_train_timesteps, num_steps)
    spaced: Int64Array = np.rint(np.linspace(num_train_timesteps - 1, 0, num_steps)).astype(
        np.int64
    )
    return spaced


def shifted_timesteps(num_train_timesteps: int, levels: FloatArray) -> Int64Array:
    """The timesteps nearest to `levels`, moved apart where two would be the same.

    Args:
        num_train_timesteps: T.
        levels: float64 [K], decreasing, as shares of T-1: 0 .. 1.

    Returns:
        int64 [K], strictly decreasing, within T-1 .. 0.

    Raises:
        ValueError: if K is not in 1..T.
    """
    num_steps = len(levels)
    check_num_steps(num_train_timesteps, num_steps)
    position = np.arange(num_steps)
    nearest = np.rint((num_train_timesteps - 1) * levels).astype(np.int64)
    decreasing = np.minimum.accumulate(nearest + position) - position
    shifted: Int64Array = np.maximum(decreasing, num_steps - 1 - position)  # room for the rest
    return shifted


def lay_out(
    schedule: Schedule,
    timesteps: Int64Array,
    coefficients: FloatArray,
    guided: BoolArray | None = None,
) -> Plan:
    """Puts float64 coefficients [K, 4] and the schedule's levels at `timesteps` into a Plan.

    `guided` is bool [K]; None guides every step.
    """
    return Plan(
        timesteps=timesteps,
        alpha=schedule.alpha[timesteps].astype(np.float32),
        sigma=schedule.sigma[timesteps].astype(np.float32),
        coefficients=coefficients.astype(np.float32),
        guided=np.ones(timesteps.shape, dtype=np.bool_) if guided is None else guided,
    )
