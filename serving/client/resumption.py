"""What of a stream has come, and what to ask for when it breaks."""

from serving.client import errors
from serving.client.results import (
    GeneratedImage,
    Preview,
    Summary,
    parse_image,
    parse_preview,
    parse_summary,
)
from simple_diffusion.v1 import diffusion_pb2 as pb


class Resumption:
    """Follows the messages of one request over any number of broken streams.

    Each image is handed on once. Image i is the same whatever count and first_index are, so what is
    missing can be asked for alone.

    Attributes:
        summary: how the images were made; None until the last message has come.
    """

    def __init__(self, request: pb.GenerateRequest) -> None:
        self._request = request
        first = request.first_index
        # A count that no server takes is one image here: the server refuses it all the same.
        self._missing = set(range(first, first + max(1, request.count)))
        self._model_version = ""
        self.summary: Summary | None = None

    @property
    def seed(self) -> int:
        """The seed of the images."""
        return self._request.seed

    @property
    def complete(self) -> bool:
        """Whether all images and the summary have come."""
        return not self._missing and self.summary is not None

    def request(self) -> pb.GenerateRequest:
        """Returns what is to be sent now: the whole request, or the span of what is missing.

        The span may hold images that have come already (they are drawn again and dropped), so that
        one stream is enough. If only the summary is missing, the last image is asked for again.
        """
        request = pb.GenerateRequest()
        request.CopyFrom(self._request)
        whole = max(1, self._request.count)
        if len(self._missing) < whole:
            last = self._request.first_index + whole - 1
            request.first_index = min(self._missing, default=last)
            request.count = max(self._missing, default=last) - request.first_index + 1
        return request

    def take(self, response: pb.GenerateStreamResponse) -> GeneratedImage | Preview | None:
        """Returns what a message holds for the caller; None for the summary and for repetitions.

        Raises:
            ModelChangedError: if it is of another version of the model than those before.
        """
        version = response.model_version  # empty from servers of before this field
        if version and version != (self._model_version or version):
            raise errors.model_changed(self._model_version, version)
        self._model_version = version or self._model_version
        match response.WhichOneof("event"):
            case "image" if response.image.index in self._missing:
                self._missing.remove(response.image.index)
                return parse_image(response.image)
            case "preview" if response.preview.image.index in self._missing:
                return parse_preview(response.preview)
            case "summary":
                self.summary = parse_summary(self._request.label, response.summary)
        return None
