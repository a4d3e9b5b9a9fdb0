"""What a bundle says of itself beyond what the checkpoint knows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BundleSettings:
    """Name, version, and what a request gets that leaves these fields unset.

    The defaults of the last three are the cheapest setting whose images cannot be told from those
    of all T steps of DDPM: few steps that put noise back in, with x_0 clipped, repair errors on
    images that are nearly black and white.
    """

    name: str
    version: str = "1.0.0"
    sampler: str = "ddpm"
    num_steps: int = 10
    guidance_scale: float = 1.0
