"""The PyTorch U-Net of a bundle, rebuilt from the weights in its unet.onnx.

The checkpoint that a bundle was exported from is not part of the repository; the bundle is. So the
peers that run in PyTorch run the bundle's own weights, and anybody can repeat that.
"""

from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from serving.bundle import Bundle
from training.config import ModelConfig
from training.unet import UNet

Array = np.ndarray[Any, Any]


class UnknownGraph(Exception):
    """A unet.onnx whose weights cannot be told apart; the message is one line."""


def load_unet(bundle: Bundle) -> UNet:
    """Builds the U-Net of training.unet with the weights of the bundle, in eval mode, float32.

    Raises:
        UnknownGraph: if the graph does not hold every weight.
    """
    graph = onnx.load_from_string(bundle.unet_onnx).graph
    unet = UNet(model_config(bundle))
    named = _as_trained({t.name: numpy_helper.to_array(t) for t in graph.initializer}, unet)
    state = unet.state_dict()
    missing = sorted(set(state) - set(named))
    if missing:
        raise UnknownGraph(
            f"bundle {bundle.manifest.name}: unet.onnx has no {missing[0]}"
            f" ({len(missing)} of {len(state)} weights are missing)"
        )
    wrong = [name for name in state if tuple(state[name].shape) != named[name].shape]
    if wrong:
        raise UnknownGraph(
            f"bundle {bundle.manifest.name}: {wrong[0]} in unet.onnx has the shape"
            f" {named[wrong[0]].shape}, the network {tuple(state[wrong[0]].shape)}"
        )
    unet.load_state_dict({name: torch.from_numpy(named[name].copy()) for name in state})
    return unet.eval()


def model_config(bundle: Bundle) -> ModelConfig:
    """The shape of the network, from the record of the training run in the manifest.

    Raises:
        UnknownGraph: if the manifest has no such record.
    """
    try:
        return ModelConfig(**bundle.manifest.provenance["config"]["model"])
    except (KeyError, TypeError) as error:
        raise UnknownGraph(
            f"bundle {bundle.manifest.name}: its manifest does not say what network it is"
        ) from error


def _as_trained(named: dict[str, Array], unet: UNet) -> dict[str, Array]:
    """Weights as the network is trained with them, from those of export.inference_form.

    A norm whose weights went into what follows keeps those it is made with, ones and zeros: it
    computes as much as before, and the same function.
    """
    named = dict(named)
    for name, module in unet.named_modules():
        if isinstance(module, nn.GroupNorm):
            for part, values in module.named_parameters():
                as_made = values.detach().numpy()
                named[f"{name}.{part}"] = named.get(f"{name}.1.{part}", as_made)
    turned = named.get("conv_out.weight")
    if turned is not None and turned.ndim == unet.conv_out.weight.ndim:
        named["conv_out.weight"] = np.flip(turned, (2, 3)).swapaxes(0, 1)
    return named
