"""Which execution provider runs the network: the one asked for, or the reason why it cannot."""

import logging

from serving.device import PROVIDER_CHOICES, Provider
from serving.onnx_session import ProviderError, require_cuda
from serving.openvino_network import require_openvino

_log = logging.getLogger(__name__)


def resolve_provider(requested: str) -> Provider:
    """The provider to use for --provider. Only "auto" may end at the CPU unasked.

    Args:
        requested: of PROVIDER_CHOICES. auto is CUDA where it works, else the CPU.

    Raises:
        ProviderError: what was asked for does not work here, saying what is missing; or there is
            no such provider.
    """
    if requested == "cpu":
        return "cpu"
    if requested == "cuda":
        require_cuda()
        return "cuda"
    if requested == "openvino":
        require_openvino()
        return "openvino"
    if requested != "auto":
        raise ProviderError(
            f"provider must be one of {', '.join(PROVIDER_CHOICES)}, got {requested!r}"
        )
    try:
        require_cuda()
    except ProviderError as error:
        _log.info("provider auto: cpu, because %s", error)
        return "cpu"
    _log.info("provider auto: cuda, because a probe ran on it")
    return "cuda"
