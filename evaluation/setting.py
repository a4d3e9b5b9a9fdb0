"""How images are drawn: sampler, number of steps and guidance, as a value and as text."""

import math
import re
from dataclasses import dataclass

from diffusion.samplers import SAMPLERS, network_rows
from training.config import require

FORM = "SAMPLER:NUM_STEPS[:GUIDANCE]"
"""What ``parse_setting`` reads."""
MAX_GUIDANCE_SCALE = 20.0


@dataclass(frozen=True, order=True)
class Setting:
    """How images are drawn.

    Args:
        sampler: a name in diffusion.samplers.SAMPLERS.
        num_steps: reverse steps per image, at least 1; a bundle allows its T at most.
        guidance_scale: 0 .. 20; 1 is the plain conditional model.

    Raises:
        ValueError: naming field, value and range.
    """

    sampler: str
    num_steps: int
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        require(self.sampler in SAMPLERS, "sampler", repr(self.sampler), ", ".join(SAMPLERS))
        require(self.num_steps >= 1, "num_steps", self.num_steps, "at least 1")
        scale = self.guidance_scale
        legal = math.isfinite(scale) and 0 <= scale <= MAX_GUIDANCE_SCALE
        require(legal, "guidance_scale", scale, f"0 .. {MAX_GUIDANCE_SCALE:g}")

    @property
    def rows_per_image(self) -> int:
        """Network rows that one image costs in all: guided steps take two."""
        return network_rows(self.sampler, self.num_steps, self.guidance_scale)

    def __str__(self) -> str:
        return f"{self.sampler}:{self.num_steps}:{self.guidance_scale:g}"


def parse_setting(text: str) -> Setting:
    """The setting that ``text`` names, as in ddpm:10 or ddim:20:1.5.

    Raises:
        ValueError: it is not of that form, or a value is out of range.
    """
    match = re.fullmatch(r"(\w+):(\d+)(?::(\d+(?:\.\d*)?|\.\d+))?", text)
    require(match is not None, "setting", repr(text), FORM)
    assert match is not None
    sampler, num_steps, guidance_scale = match.groups(default="1")
    return Setting(sampler, int(num_steps), float(guidance_scale))
