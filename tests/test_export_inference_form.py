"""The network as it is exported is the network as it was trained, with fewer passes."""

from typing import Any

import onnx
import pytest
import torch

from export.inference_form import inference_form
from tests.tiny_export import random_model, small_graphs, small_model
from tests.tiny_training import tiny_model_config
from training.config import ModelConfig
from training.unet import ResidualBlock, UNet

ROWS = 5


def eps_of(unet: UNet, config: ModelConfig) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x_t, emb = (
        torch.randn(ROWS, *shape, generator=generator, dtype=torch.float64)
        for shape in ((config.image_channels, 28, 28), (config.condition_width,))
    )
    return unet(x_t, emb)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": False},
        {"image_channels": 3, "prediction": "v"},
        {"patch_size": 2, "prediction": "residual_eps"},
        {"blocks_per_resolution": 2, "middle_blocks": 2, "groups": 4},
    ],
    ids=str,
)
def test_it_is_the_same_function(changes: dict[str, Any]) -> None:
    config = tiny_model_config(image_size=28, **changes)
    unet = random_model(config).unet.double()
    trained, exported = (eps_of(each, config) for each in (unet, inference_form(unet)))
    assert trained.std() > 0.1
    # In double precision, where what is left is no rounding of float32.
    torch.testing.assert_close(exported, trained, rtol=0, atol=1e-12)


def test_the_trained_network_is_left_as_it_is() -> None:
    unet = random_model(tiny_model_config()).unet
    before = {name: values.clone() for name, values in unet.state_dict().items()}
    inference_form(unet)
    after = unet.state_dict()
    assert list(after) == list(before)
    for name, values in before.items():
        torch.testing.assert_close(after[name], values, rtol=0, atol=0)


def test_weights_keep_their_names_but_for_the_norms() -> None:
    unet = random_model(tiny_model_config()).unet
    names = {name for name, _ in unet.named_parameters()}
    exported = {name for name, _ in inference_form(unet).named_parameters()}
    gone, new = names - exported, exported - names
    assert all("norm" in name for name in gone | new)
    assert {
        name.replace("norm_in.1.", "norm_in.").replace("norm_out.1.", "norm_out.") for name in new
    } < gone
    assert {name for name in gone if name.startswith("attention")} == {
        "attention.norm.weight", "attention.norm.bias",
    }  # fmt: skip


def test_nothing_is_multiplied_by_the_weights_of_a_norm_twice() -> None:
    graph = onnx.load_from_string(small_graphs().unet_onnx).graph
    operators = [node.op_type for node in graph.node]
    blocks = sum(isinstance(module, ResidualBlock) for module in small_model().modules())
    assert operators.count("Gemm") == blocks > 0
    assert operators.count("InstanceNormalization") == 2 * blocks + 2
    assert operators.count("BatchNormalization") == blocks + 1
    assert operators.count("ConvTranspose") == 1
    sigmoids = operators.count("Sigmoid")
    assert sigmoids == 2 * blocks + 1
    assert operators.count("Mul") == sigmoids + blocks + 2  # SiLU, FiLM, attention


def test_what_is_exported_is_not_trained_by_accident() -> None:
    exported = inference_form(random_model(tiny_model_config()).unet)
    assert not any(parameter.requires_grad for parameter in exported.parameters())
    assert not any(module.training for module in exported.modules())
