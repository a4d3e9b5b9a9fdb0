"""What an engine can run at all."""

import math

from diffusion.samplers import SAMPLERS
from serving.engine_model import EngineModel
from serving.request import GenerateSpec


def check_spec(spec: GenerateSpec, model: EngineModel, max_count: int) -> None:
    """Refuses a spec that no engine of this model could run.

    Args:
        spec: what is asked for. The edge has validated it before; this is the second lock.
        model: what the network draws.
        max_count: images that fit into the queue.

    Raises:
        ValueError: naming the field.
    """
    num_train_timesteps = model.schedule.num_train_timesteps
    ranges = {
        "label": (spec.label, 0, model.null_label),
        "count": (spec.count, 1, max_count),
        "first_index": (spec.first_index, 0, 2**32 - spec.count),
        "seed": (spec.seed, 0, 2**64 - 1),
        "num_steps": (spec.num_steps, 1, num_train_timesteps),
        "preview_every": (spec.preview_every, 0, num_train_timesteps),
    }
    for name, (value, least, most) in ranges.items():
        if not least <= value <= most:
            raise ValueError(f"{name} must be in {least}..{most}, got {value}")
    if spec.sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {spec.sampler!r}")
    if not math.isfinite(spec.guidance_scale):
        raise ValueError(f"guidance_scale must be finite, got {spec.guidance_scale}")
