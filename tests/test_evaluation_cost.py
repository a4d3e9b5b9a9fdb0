"""evaluation.cost: what the manifest says, and sums that follow from it."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from evaluation.cost import cost
from serving.bundle import Bundle, load_bundle

MODEL = Path(__file__).parent.parent / "models" / "mnist"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(MODEL)


def with_provenance(bundle: Bundle, provenance: dict[str, Any]) -> Bundle:
    manifest = bundle.manifest.model_copy(update={"provenance": provenance})
    return dataclasses.replace(bundle, manifest=manifest)


def test_the_embedded_model_says_what_it_costs(bundle: Bundle) -> None:
    measured = cost(bundle)
    provenance = bundle.manifest.provenance
    assert measured.parameters == provenance["parameters"]
    assert measured.training_seconds == provenance["wall_seconds"]
    assert provenance["placement"] in str(measured.training_machine)
    assert measured.file_bytes == len(bundle.embedding_onnx) + len(bundle.unet_onnx)


def test_the_graphs_hold_the_parameters_and_few_constants_besides(bundle: Bundle) -> None:
    measured = cost(bundle)
    assert measured.parameters is not None
    # A table of the schedule may be among them: a few numbers per timestep.
    constants = 4 * bundle.manifest.schedule.num_train_timesteps
    assert measured.parameters <= measured.stored_floats <= measured.parameters + constants
    assert 4 * measured.stored_floats <= measured.file_bytes


def test_training_takes_three_calls_per_image_and_two_flop_per_multiply_add(
    bundle: Bundle,
) -> None:
    counted = {"unet.onnx": 1000, "embedding.onnx": 10}
    provenance = {"multiply_adds_per_image_and_call": counted, "images_seen": 7}
    measured = cost(with_provenance(bundle, provenance))
    assert measured.training_flop == 2 * 3 * 1010 * 7
    assert (measured.multiply_adds_per_call, measured.multiply_adds_per_embedding) == (1000, 10)


def test_an_image_costs_what_its_rows_cost(bundle: Bundle) -> None:
    counted = {"unet.onnx": 1000, "embedding.onnx": 10}
    measured = cost(with_provenance(bundle, {"multiply_adds_per_image_and_call": counted}))
    assert measured.flop_per_image(10) == 2 * 1000 * 10
    with pytest.raises(ValueError, match="rows_per_image is 0; legal: at least 1"):
        measured.flop_per_image(0)


def test_what_a_manifest_does_not_say_is_none(bundle: Bundle) -> None:
    measured = cost(with_provenance(bundle, {}))
    said = {field: value for field, value in vars(measured).items() if value is not None}
    assert set(said) == {"stored_floats", "file_bytes"}
    assert measured.flop_per_image(10) is None


def test_one_process_is_named_like_many(bundle: Bundle) -> None:
    provenance = {"placement": "CPU, fp32, channels_last"}
    machine = cost(with_provenance(bundle, provenance)).training_machine
    assert machine == "CPU, fp32, channels_last; processes: 1"


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "many", True, [3]])
def test_a_number_that_is_none_is_refused(bundle: Bundle, value: object) -> None:
    with pytest.raises(ValueError, match="provenance: images_seen is .*; legal: numbers"):
        cost(with_provenance(bundle, {"images_seen": value}))
