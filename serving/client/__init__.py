"""The client of the DiffusionService: a library, and the command `python -m serving.client`."""

from serving.client.diffusion_client import DiffusionClient, GeneratedImage, Generation
from serving.client.errors import ClientError

__all__ = ["ClientError", "DiffusionClient", "GeneratedImage", "Generation"]
