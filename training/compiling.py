"""torch.compile, where it works; the network as it is, and one line that says why, where not."""

import logging
import subprocess
from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from training.device import Processes

logger = logging.getLogger(__name__)

COMPILER_ERRORS = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)
"""What PyTorch raises where there is no compiler, or none that it can use."""


def compiled_or_not(
    loss: nn.Module, trial: Callable[[nn.Module], None], processes: Processes, device: torch.device
) -> nn.Module:
    """``loss`` compiled, or itself if that fails in any process of the run.

    Args:
        loss: without DistributedDataParallel.
        trial: runs it forward and backward, in the shapes of the run: compilation happens here.
        processes: all of them compile, or none.
        device: of ``loss``.
    """
    # Dropout draws the same numbers as without compiling.
    from torch._inductor import config as inductor

    inductor.fallback_random = True
    compiled = cast("nn.Module", torch.compile(loss))
    failure = ""
    try:
        trial(compiled)
    except COMPILER_ERRORS as error:
        cause = getattr(error, "inner_exception", error)  # what the backend itself raised
        failure = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    if processes.any(bool(failure), device):
        if failure:
            logger.warning(
                "torch.compile does not work here, and the run goes on without it: %s", failure
            )
        torch.compiler.reset()
        return loss
    return compiled
