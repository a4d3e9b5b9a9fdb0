"""A bundle, judges and real images so small that a whole evaluation takes a second."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from evaluation.judge import FEATURES, LABELS, load_judges
from evaluation.measuring import Evaluator
from evaluation.protocol import Protocol, plan_curve
from evaluation.results import Quality
from evaluation.sampling import ImageSource
from evaluation.store import Store
from tests.fakes import tensor, unet_graph, write_tiny_bundle
from training.datasets import Dataset, load_dataset

SAMPLE = Path(__file__).parent / "data" / "mnist-sample"
NUM_FEATURES = 6


def real_images() -> Dataset:
    """500 training and 200 test images."""
    return load_dataset("mnist", SAMPLE, verify=False)


def write_bundle(directory: Path, gain: float = 1.0, num_train_timesteps: int = 20) -> Path:
    """A bundle of digits' shape; `gain` multiplies what its network's kernel holds."""
    unet = unet_graph((1, 28, 28), 8)
    kernel = unet.graph.initializer[0]
    kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel) * np.float32(gain),
                                            kernel.name))  # fmt: skip
    return write_tiny_bundle(
        directory,
        image_shape=(1, 28, 28),
        label_names=tuple("0123456789"),
        num_train_timesteps=num_train_timesteps,
        unet=unet,
    )


def write_judges(directory: Path, seed: int = 0) -> Path:
    """Random linear judges in DIRECTORY/mnist; returns `directory`."""
    random = np.random.default_rng(seed)
    (directory / "mnist").mkdir(parents=True, exist_ok=True)
    for name in (FEATURES, *LABELS):
        weights = [
            numpy_helper.from_array(random.normal(0, scale, shape).astype(np.float32), of)
            for of, shape, scale in (
                ("project", (784, NUM_FEATURES), 0.1), ("read", (NUM_FEATURES, 10), 1.0),
            )
        ]  # fmt: skip
        nodes = [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "project"], ["features"]),
            helper.make_node("MatMul", ["features", "read"], ["logits"]),
        ]
        image = tensor("image", TensorProto.FLOAT, ["batch", 1, 28, 28])
        outputs = [
            tensor("logits", TensorProto.FLOAT, ["batch", 10]),
            tensor("features", TensorProto.FLOAT, ["batch", NUM_FEATURES]),
        ]
        graph = helper.make_graph(nodes, name, [image], outputs, weights)
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=8)
        helper.set_model_props(model, {"dataset": "mnist", "network": f"linear {name}"})
        onnx.save(model, directory / "mnist" / f"{name}.onnx")
    return directory


def tiny_evaluator(
    directory: Path, store: str = "store", bundle: Path | None = None, judge_seed: int = 0
) -> Evaluator:
    """An evaluator of DIRECTORY/bundle, or of another bundle, with its store in DIRECTORY/STORE."""
    if bundle is None:
        bundle = directory / "bundle"
        if not bundle.exists():
            write_bundle(bundle)
    judges = write_judges(directory / f"judges-{judge_seed}", judge_seed)
    return Evaluator(
        ImageSource(bundle, "cpu"),
        real_images(),
        "mnist",
        load_judges("mnist", judges, num_threads=1),
        Store(directory / store),
    )


def tiny_protocol(evaluator: Evaluator, *, classification: bool = False) -> Protocol:
    """Every measurement, with the least of images."""
    return Protocol(
        quick=False,
        num_images=100,
        seeds=(7, 1007),
        classification_images=200 if classification else 0,
        classification_epochs=1,
        denoising_images=20,
        denoising_timesteps=4,
        pace_images=10,
        pace_num_steps=(1,),
        closest_pairs=3,
        curve=plan_curve(["ddpm", "ddim"], (1, 3), (1.0, 2.0), 100, 100, 7, evaluator.dataset, 20),
    )


def without_pace(quality: Quality) -> Quality:
    """The same without what the clock says."""
    rows = {"images_per_second": None}
    curve = quality.curve
    assert curve is not None
    return quality.model_copy(
        update={
            "generated": [row.model_copy(update=rows) for row in quality.generated],
            "cost": quality.cost.model_copy(update={"images_per_second": []}),
            "curve": curve.model_copy(
                update={"rows": [row.model_copy(update=rows) for row in curve.rows]}
            ),
        }
    )
