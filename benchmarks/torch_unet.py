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

_NORM_PARTS = {"Mul": "weight", "Add": "bias"}


class UnknownGraph(Exception):
    """A unet.onnx whose weights cannot be told apart; the message is one line."""


def load_unet(bundle: Bundle) -> UNet:
    """Builds the U-Net of training.unet with the weights of the bundle, in eval mode, float32.

    Raises:
        UnknownGraph: if the graph does not hold every weight.
    """
    graph = onnx.load_from_string(bundle.unet_onnx).graph
    unet = UNet(model_config(bundle))
    named = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    norms = [
        (name, module)
        for name, module in _in_order_of_calls(unet)
        if isinstance(module, nn.GroupNorm)
    ]
    for (name, _), parts in zip(norms, _norm_weights(graph, named), strict=False):
        named |= {f"{name}.{part}": values.reshape(-1) for part, values in parts.items()}
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


def _in_order_of_calls(unet: UNet) -> list[tuple[str, nn.Module]]:
    """Every module without children, by name, in the order in which a call comes to them."""
    order: list[tuple[str, nn.Module]] = []

    def noted(name: str) -> Any:
        return lambda module, _, __: order.append((name, module))

    hooks = [
        module.register_forward_hook(noted(name))
        for name, module in unet.named_modules()
        if not list(module.children())
    ]
    config_width = unet.embedding_width + (0 if unet.predicts_eps else 2)
    pixels, patch = unet.conv_in.in_channels, unet.patch_size
    side = patch * 2 ** len(unet.down) * 2
    with torch.no_grad():
        unet(torch.zeros(1, pixels // patch**2, side, side), torch.zeros(1, config_width))
    for hook in hooks:
        hook.remove()
    return order


def _norm_weights(
    graph: onnx.GraphProto, named: dict[str, np.ndarray[Any, Any]]
) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Weight and bias of every GroupNorm, in the order of the graph.

    The exporter writes a GroupNorm as InstanceNormalization over groups, a Reshape, and a Mul and
    an Add with weights [C, 1, 1] that it gives names of its own.
    """
    found = []
    for i, node in enumerate(graph.node):
        if node.op_type != "InstanceNormalization":
            continue
        parts: dict[str, np.ndarray[Any, Any]] = {}
        output = node.output[0]
        for follower in graph.node[i + 1 :]:
            if len(parts) == len(_NORM_PARTS):
                break
            if output not in follower.input:
                continue
            part = _NORM_PARTS.get(follower.op_type)
            weights = [named[name] for name in follower.input if name in named]
            if part is not None and weights and part not in parts:
                parts[part] = weights[0]
            output = follower.output[0]
        found.append(parts)
    return found
