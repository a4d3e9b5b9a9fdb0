"""Verification: graphs that are the model pass, and any other does not."""

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from diffusion.schedule import Schedule, cosine_schedule
from export.graphs import Graphs
from export.report import Check
from export.sessions import OnnxModel
from export.verification import (
    BATCH_SIZES,
    MAX_EPS_DIFFERENCE,
    MIN_EQUAL_PIXELS,
    NUM_TIMESTEPS,
    Trajectory,
    Verification,
    VerificationFailed,
    _eps_checks,
    _trajectory_check,
    verify,
)
from tests.tiny_export import changed, random_model, small_graphs, small_model, with_weight
from tests.tiny_training import tiny_model_config

# The first test that needs the graphs exports them, which a busy machine takes a while for.
pytestmark = pytest.mark.timeout(400)

DEFAULT = Trajectory("ddpm", 10)


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    return cosine_schedule(20)


@pytest.fixture(scope="module")
def passed(schedule: Schedule) -> Verification:
    return verify(small_model(), schedule, small_graphs(), Trajectory("ddim", 4, 2.5))


def with_unet(change: Callable[[onnx.ModelProto], None]) -> Graphs:
    graphs = small_graphs()
    return dataclasses.replace(graphs, unet_onnx=changed(graphs.unet_onnx, change))


def test_the_bounds_are_those_that_were_asked_for() -> None:
    assert BATCH_SIZES == (1, 2, 3, 17, 64)
    assert NUM_TIMESTEPS >= 50
    assert MAX_EPS_DIFFERENCE == 1e-4
    assert MIN_EQUAL_PIXELS == 0.999


def test_faithful_graphs_pass_every_check(passed: Verification) -> None:
    checks = {check.name: check for check in passed.checks}
    assert len(checks) == len(passed.checks)
    assert all(check.passed for check in passed.checks)
    for size in BATCH_SIZES:
        for what in (
            "embedding.onnx: max |emb difference|",
            "unet.onnx: max |eps difference|",
            "both together: max |eps difference|",
        ):
            check = checks[f"{what}, batch {size}"]
            assert check.at_most == MAX_EPS_DIFFERENCE
    for trajectory in ("ddpm, 20 steps", "dpmpp_2m, 20 steps", "ddim, 4 steps, guidance 2.5"):
        check = checks[f"images ({trajectory}): share of pixels within 1/255"]
        assert check.at_least == MIN_EQUAL_PIXELS
    assert checks["unet.onnx: rows that depend on the batch size, to the bit"].measured == 0


def test_the_comparison_is_of_numbers_that_matter(schedule: Schedule) -> None:
    model = small_model()
    eps = OnnxModel(small_graphs())(
        np.ones((3, 1, 14, 14), np.float32), np.array([0, 9, 19]), np.array([0, 1, 2])
    )
    assert eps.std() > 0.1
    assert np.abs(np.diff(eps, axis=0)).max() > 100 * MAX_EPS_DIFFERENCE
    assert model.config.num_labels == 3


def test_the_report_goes_into_json(passed: Verification) -> None:
    report = json.loads(json.dumps(passed.to_dict(), allow_nan=False))
    assert report["passed"] is True
    assert report["timesteps"] == 20
    assert report["labels"] == 4  # null is one
    assert report["batch_sizes"] == [1, 2, 3, 17, 64]
    assert {"torch", "onnx", "onnxruntime", "opset"} <= report.keys()
    assert len(report["checks"]) == len(passed.checks)


def test_every_timestep_of_a_spread_of_50_meets_every_label_and_null(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: set[tuple[int, int]] = set()

    class Stop(Exception):
        pass

    def watch(_model: object, _schedule: object, _onnx: object, t: np.ndarray, label: np.ndarray):  # type: ignore[no-untyped-def]
        seen.update(zip(t.tolist(), label.tolist(), strict=True))
        raise Stop

    monkeypatch.setattr("export.verification._eps_checks", watch)
    with pytest.raises(Stop):
        verify(small_model(), cosine_schedule(1000), small_graphs(), DEFAULT)
    timesteps = {t for t, _ in seen}
    assert len(timesteps) == 50
    assert {0, 999} <= timesteps
    assert seen == {(t, label) for t in timesteps for label in range(4)}


def nudge(array: np.ndarray) -> None:
    array.flat[array.size // 2] += 0.05


def spoil_null(table: np.ndarray) -> None:
    table[-1] += 0.01


@pytest.mark.parametrize(
    ("part", "weight", "change", "failing"),
    [
        ("unet_onnx", "conv_in.weight", nudge, "unet.onnx: max"),
        ("unet_onnx", "middle.0.film.bias", nudge, "unet.onnx: max"),
        ("unet_onnx", "attention.projection.bias", nudge, "unet.onnx: max"),
        ("embedding_onnx", "mlp.0.bias", nudge, "embedding.onnx: max"),
        ("embedding_onnx", "label.weight", spoil_null, "embedding.onnx: max"),
    ],
)
def test_a_changed_weight_fails(
    part: str,
    weight: str,
    change: Callable[[np.ndarray], None],
    failing: str,
    schedule: Schedule,
) -> None:
    content = with_weight(getattr(small_graphs(), part), weight, change)
    graphs = dataclasses.replace(small_graphs(), **{part: content})
    with pytest.raises(VerificationFailed) as caught:
        verify(small_model(), schedule, graphs, DEFAULT)
    assert str(caught.value).startswith(f"verification failed: {failing}")
    assert "\n" not in str(caught.value)
    names = [check.name for check in caught.value.verification.checks if not check.passed]
    assert [name for name in names if name.startswith("both together")]
    assert caught.value.verification.to_dict()["passed"] is False


def test_nan_fails(schedule: Schedule) -> None:
    content = with_weight(
        small_graphs().unet_onnx, "conv_in.bias", lambda array: array.fill(np.nan)
    )
    graphs = dataclasses.replace(small_graphs(), unet_onnx=content)
    onnx_model = OnnxModel(graphs)
    t, label = np.zeros(1, np.int64), np.zeros(1, np.int64)
    checks = list(_eps_checks(small_model(), schedule, onnx_model, t, label))
    assert {check.name.split(":")[0] for check in checks if not check.passed} == {
        "unet.onnx",
        "both together",
    }


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_images_of_another_network_are_not_equal(sampler: str, schedule: Schedule) -> None:
    trajectory = Trajectory(sampler, 20)
    onnx_model = OnnxModel(small_graphs())
    assert _trajectory_check(small_model(), schedule, onnx_model, trajectory).passed
    other = random_model(tiny_model_config(num_labels=3, image_size=14), seed=5)
    check = _trajectory_check(other, schedule, onnx_model, trajectory)
    assert not check.passed


def test_a_trajectory_notices_what_is_amiss_at_one_label_only(schedule: Schedule) -> None:
    content = with_weight(small_graphs().embedding_onnx, "label.weight", spoil_null_much)
    onnx_model = OnnxModel(dataclasses.replace(small_graphs(), embedding_onnx=content))
    check = _trajectory_check(small_model(), schedule, onnx_model, DEFAULT)
    assert 0.5 < check.measured < MIN_EQUAL_PIXELS


def spoil_null_much(table: np.ndarray) -> None:
    table[-1] += 1.0


def test_a_fixed_batch_axis_fails_by_name(schedule: Schedule) -> None:
    def fix(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2

    with pytest.raises(VerificationFailed, match=r"unet\.onnx: fixed batch axes is 1"):
        verify(small_model(), schedule, with_unet(fix), DEFAULT)


def test_a_batch_that_is_fixed_inside_fails_at_once(schedule: Schedule) -> None:
    def fix(model: onnx.ModelProto) -> None:
        del model.graph.value_info[:]
        targets = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
        for tensor in model.graph.initializer:
            array = np.array(numpy_helper.to_array(tensor))
            if tensor.name in targets and array[0] == -1:
                array[0] = 2
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    with pytest.raises(VerificationFailed, match=r"unet\.onnx does not run with 1 rows"):
        verify(small_model(), schedule, with_unet(fix), DEFAULT)


def test_external_data_fails_by_name(schedule: Schedule) -> None:
    def move_out(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="weights.bin")

    with pytest.raises(VerificationFailed, match=r"unet\.onnx: tensors outside the file is 1"):
        verify(small_model(), schedule, with_unet(move_out), DEFAULT)


def test_a_renamed_output_fails_by_name(schedule: Schedule) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.output[0].name = "noise"

    with pytest.raises(VerificationFailed, match=r"unet\.onnx: outputs must be eps, found noise"):
        verify(small_model(), schedule, with_unet(rename), DEFAULT)


def test_the_default_of_the_bundle_is_drawn_once(
    schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def note(_model: object, _schedule: object, _onnx: object, trajectory: Trajectory) -> Check:
        drawn.append(trajectory)
        return Check("images", 1.0)

    monkeypatch.setattr("export.verification._trajectory_check", note)
    monkeypatch.setattr("export.verification._eps_checks", lambda *arguments: ())
    for default in (Trajectory("ddpm", 10), Trajectory("dpmpp_2m", 20)):
        verify(small_model(), schedule, small_graphs(), default)
    twenty = [Trajectory("ddpm", 20), Trajectory("dpmpp_2m", 20)]
    assert drawn == [*twenty, Trajectory("ddpm", 10), *twenty]
