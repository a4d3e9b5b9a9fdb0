"""The client of the DiffusionService: a library, and the command `python -m serving.client`."""

from serving.client.async_client import AsyncClient
from serving.client.connection import Tls
from serving.client.errors import (
    CallCancelledError,
    ClientError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    ModelChangedError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from serving.client.results import Catalog, GeneratedImage, Generation, Model, Preview, Summary
from serving.client.retry import RetryPolicy
from serving.client.streams import AsyncImageStream, ImageStream
from serving.client.sync_client import Client

__all__ = [
    "AsyncClient",
    "AsyncImageStream",
    "CallCancelledError",
    "Catalog",
    "Client",
    "ClientError",
    "DeadlineExceededError",
    "GeneratedImage",
    "Generation",
    "ImageStream",
    "InternalError",
    "InvalidArgumentError",
    "Model",
    "ModelChangedError",
    "NotFoundError",
    "PermissionDeniedError",
    "Preview",
    "ResourceExhaustedError",
    "RetryPolicy",
    "Summary",
    "Tls",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
]
