"""The graph of a whole step: the U-Net of a bundle, and behind it guidance and the update."""

import dataclasses
from importlib import resources

import numpy as np

from serving.bundle import UNET_NAME, Bundle
from serving.device import INTEGERS, NUMBERS, Control, Device, StepTensors, Tensor
from serving.onnx_session import BoundCall, Session, Signature, unet_signature

_IMAGE = ("tensor(float)", None)
_INPUTS: Signature = {
    "step.null_row": ("tensor(int64)", None),
    "step.x_0_previous": _IMAGE,
    "step.noise": _IMAGE,
    **{f"step.{name}": ("tensor(float)", None) for name in NUMBERS},
}
_OUTPUTS: Signature = {
    "step.x": _IMAGE,
    "step.x_0": _IMAGE,
    "step.checksum": ("tensor(float)", None),
}


class StepGraph:
    """The step graph of a bundle, loaded. To be called from one thread at a time."""

    def __init__(self, bundle: Bundle, device: Device, num_threads: int) -> None:
        """Loads it.

        Raises:
            BundleError: if unet.onnx does not load or is not what the manifest says.
            ProviderError: if it would not run on the device.
        """
        inputs, outputs = unet_signature(bundle)
        # Two messages, one after the other, are their merged message: see export.update_graph.
        update = resources.files("serving").joinpath("update.onnx").read_bytes()
        self._session = Session(
            bundle,
            UNET_NAME,
            bundle.unet_onnx + update,
            inputs | _INPUTS,
            outputs | _OUTPUTS,
            num_threads=num_threads,
            device=device,
        )

    def bind(self, tensors: StepTensors, control: Control, rows: int, number: int) -> BoundCall:
        """The call for the first rows of the tensors.

        Args:
            tensors: what is read and written.
            control: how the numbers lie in tensors.control.
            rows: of the batch.
            number: see Session.bind.
        """
        inputs = {
            "x_t": tensors.x_t,
            "emb": tensors.emb,
            "step.x_0_previous": tensors.x_0_previous,
            "step.noise": tensors.noise,
        }
        outputs = {
            "eps": tensors.eps,
            "step.x": tensors.x,
            "step.x_0": tensors.x_0,
            "step.checksum": tensors.checksum,
        }
        numbers = {
            f"step.{name}": _row(tensors.control, control, name, rows)
            for name in ("null_row", *NUMBERS)
        }
        return self._session.bind(
            number,
            {name: _first_rows(tensor, rows) for name, tensor in inputs.items()} | numbers,
            {name: _first_rows(tensor, rows) for name, tensor in outputs.items()},
        )


def _first_rows(tensor: Tensor, rows: int) -> Tensor:
    return dataclasses.replace(tensor, shape=(rows, *tensor.shape[1:]))


def _row(block: Tensor, control: Control, name: str, rows: int) -> Tensor:
    """A row of a control block as an input of the graph."""
    integer = name in INTEGERS
    return Tensor(
        block.pointer + control.offset_bytes(name),
        (rows,) if integer else (rows, 1, 1, 1),
        np.dtype(np.int64 if integer else np.float32),
        block.memory,
    )
