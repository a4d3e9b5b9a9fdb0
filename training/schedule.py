"""The noise schedule that a configuration names."""

from diffusion.schedule import Schedule, cosine_schedule, linear_schedule
from training.config import TrainConfig


def make_schedule(config: TrainConfig) -> Schedule:
    """The noise schedule that the configuration names.

    Raises:
        ValueError: float64 has not as many noise levels as asked for.
    """
    make = {"cosine": cosine_schedule, "linear": linear_schedule}[config.schedule]
    try:
        return make(config.num_train_timesteps)
    except ValueError as error:
        raise ValueError(
            f"num_train_timesteps is {config.num_train_timesteps}; legal: fewer, with the "
            f"{config.schedule} schedule: {error}"
        ) from error
