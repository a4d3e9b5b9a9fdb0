"""The PyTorch network that is rebuilt from a bundle's ONNX graph is the bundle's network."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from benchmarks.torch_unet import UnknownGraph, load_unet
from serving.bundle import Bundle, load_bundle
from serving.network import OnnxNetwork, embedding_table

MNIST = Path(__file__).resolve().parent.parent / "models" / "mnist"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(MNIST)


def test_it_predicts_the_same_eps(bundle: Bundle) -> None:
    x_t = np.random.default_rng(0).standard_normal((5, 1, 28, 28), dtype=np.float32)
    emb = embedding_table(bundle)[[0, 100, 500, 900, 999], [0, 3, 10, 7, 9]]
    with torch.no_grad():
        eps = load_unet(bundle)(torch.from_numpy(x_t), torch.from_numpy(emb)).numpy()
    assert np.abs(eps - OnnxNetwork(bundle)(x_t, emb)).max() < 1e-4


def test_a_graph_without_a_weight_is_refused(bundle: Bundle) -> None:
    model = onnx.load_from_string(bundle.unet_onnx)
    [bias] = [tensor for tensor in model.graph.initializer if tensor.name == "conv_out.bias"]
    model.graph.initializer.remove(bias)
    with pytest.raises(UnknownGraph, match=r"no conv_out\.bias \(1 of "):
        load_unet(dataclasses.replace(bundle, unet_onnx=model.SerializeToString()))


def test_a_graph_with_a_weight_of_another_shape_is_refused(bundle: Bundle) -> None:
    model = onnx.load_from_string(bundle.unet_onnx)
    [bias] = [tensor for tensor in model.graph.initializer if tensor.name == "conv_in.bias"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.zeros(3, dtype=np.float32), bias.name))
    with pytest.raises(UnknownGraph, match=r"conv_in\.bias .* shape \(3,\), the network \(32,\)"):
        load_unet(dataclasses.replace(bundle, unet_onnx=model.SerializeToString()))


def test_a_manifest_that_does_not_say_what_network_it_is_is_refused(bundle: Bundle) -> None:
    manifest = bundle.manifest.model_copy(update={"provenance": {}})
    with pytest.raises(UnknownGraph, match="does not say what network"):
        load_unet(dataclasses.replace(bundle, manifest=manifest))
