"""evaluation.evaluate and evaluation.measuring: complete, repeatable, continued, never mixed."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion.samplers import SAMPLERS
from evaluation import drawing
from evaluation.evaluate import evaluate, measure_settings
from evaluation.frechet import frechet_distance
from evaluation.measuring import GAUSSIANS, NOISE, TEST, TRAINING, Evaluator
from evaluation.results import Quality
from evaluation.setting import Setting
from serving.engine_model import Network
from serving.lanes import Float32Array
from tests.tiny_evaluation import tiny_evaluator, tiny_protocol, without_pace, write_bundle


def run(evaluator: Evaluator) -> Quality:
    return evaluate(evaluator, tiny_protocol(evaluator), lambda _: None)


class Interrupting:
    """A network that counts its rows, and is interrupted at a call."""

    def __init__(self, network: Network, at_call: int | None = None) -> None:
        self.network = network
        self.calls_left = at_call
        self.rows = 0

    def __call__(self, x_t: Float32Array, emb: Float32Array, /) -> Float32Array:
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise KeyboardInterrupt
        self.rows += len(x_t)
        return self.network(x_t, emb)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Quality:
    return run(tiny_evaluator(place, "undisturbed"))


def test_an_evaluation_has_every_part(undisturbed: Quality) -> None:
    assert [row.source for row in undisturbed.references] == [TEST, TRAINING, GAUSSIANS, NOISE]
    assert [row.seed for row in undisturbed.generated] == [7, 1007]
    assert undisturbed.judges.keys() == {"features", "labels-1", "labels-2", "labels-3"}
    assert undisturbed.summary["frechet"].mean == pytest.approx(
        np.mean([row.frechet for row in undisturbed.generated])
    )
    assert undisturbed.summary["frechet"].std == pytest.approx(
        np.std([row.frechet for row in undisturbed.generated], ddof=1)
    )
    assert len(undisturbed.labels) == 10
    assert undisturbed.memorisation.num_images == 100
    assert len(undisturbed.denoising_error.points) == 4
    assert undisturbed.curve is not None
    assert len(undisturbed.curve.rows) == 8
    assert [pace.setting.num_steps for pace in undisturbed.cost.images_per_second] == [1, 4]


def test_floors_are_measured_at_the_n_of_what_they_are_beside(undisturbed: Quality) -> None:
    [test, *others] = undisturbed.references
    assert test.frechet_ratio == 1.0
    for row in (*others, *undisturbed.generated):
        assert row.num_images == test.num_images
        assert row.frechet_ratio == pytest.approx(row.frechet / test.frechet)


def test_samplers_that_draw_the_same_images_keep_their_names(undisturbed: Quality) -> None:
    assert undisturbed.curve is not None
    rows = {row.setting: row for row in undisturbed.curve.rows}
    same = [rows[Setting(sampler, 1)] for sampler in ("ddpm", "ddim")]
    assert same[0].frechet == same[1].frechet  # one step of either goes straight to x_0
    assert len(rows) == 8


def test_the_curve_has_a_floor_at_each_n(place: Path) -> None:
    evaluator = tiny_evaluator(place, "undisturbed")
    protocol = tiny_protocol(evaluator)
    plan = protocol.curve
    assert plan is not None
    changed = plan.__class__(
        (Setting("ddpm", 2), Setting("ddpm", 3)), num_images=100, num_images_long=120, seed=7
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.protocol.LONG_NUM_STEPS", 3)
        curve = evaluate(
            evaluator, protocol.__class__(**(vars(protocol) | {"curve": changed})), lambda _: None
        ).curve
    assert curve is not None
    assert [row.num_images for row in curve.rows] == [100, 120]
    floors = {floor.num_images: floor.frechet for floor in curve.floors}
    for row in curve.rows:
        assert row.frechet_ratio == pytest.approx(row.frechet / floors[row.num_images])


def test_distances_are_those_of_the_features_to_the_training_set(place: Path) -> None:
    evaluator = tiny_evaluator(place, "undisturbed")
    features = evaluator.judges.features.features
    setting = Setting("ddim", 2)
    row = evaluator.generated(setting, 5, 100)
    drawn = evaluator.drawn(setting, 5, 100)
    train = features(evaluator.dataset.train.images[:, None])
    assert row.frechet == pytest.approx(frechet_distance(features(drawn.images), train))
    right = [judge.predict(drawn.images) == drawn.labels for judge in evaluator.judges.labels]
    assert row.label_accuracy_per_judge == [np.mean(of_judge) for of_judge in right]
    assert row.label_accuracy_per_label is not None
    for label in range(10):
        expected = np.mean(right[1][drawn.labels == label])
        assert row.label_accuracy_per_label[1][label] == pytest.approx(expected)


def test_the_training_floor_leaves_its_images_out_of_what_it_is_compared_with(place: Path) -> None:
    evaluator = tiny_evaluator(place, "undisturbed")
    row = evaluator.reference(TRAINING, 100)
    # Were they in it, each would be its own neighbour; and the Frechet distance would shrink.
    assert 0 < row.precision < 1
    features = evaluator.train_features
    order = np.random.default_rng(0).permutation(500)
    expected = frechet_distance(features[order[:100]], features[order[100:]])
    assert row.frechet == pytest.approx(expected)


def test_noise_is_farther_from_the_data_than_real_images(undisturbed: Quality) -> None:
    ratios = {row.source: row.frechet_ratio for row in undisturbed.references}
    assert ratios[NOISE] > ratios[GAUSSIANS] > ratios[TEST] == 1.0


@pytest.mark.parametrize("at_call", [0, 3, 9, 40])
def test_an_interrupted_run_continues_and_equals_an_undisturbed_one(
    tmp_path: Path, undisturbed: Quality, monkeypatch: pytest.MonkeyPatch, at_call: int
) -> None:
    monkeypatch.setattr(drawing, "_IMAGES_AT_ONCE", 30)
    first = tiny_evaluator(tmp_path)
    interrupted = Interrupting(first.source.network, at_call)
    first.source.network = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(first)
    again = tiny_evaluator(tmp_path)
    again.source.network = continued = Interrupting(again.source.network)
    assert without_pace(run(again)) == without_pace(undisturbed)
    # Only what was under way is done twice: a chunk of 30 images, of 4 steps and a row each.
    whole = tiny_evaluator(tmp_path, "whole")
    whole.source.network = alone = Interrupting(whole.source.network)
    run(whole)
    assert interrupted.rows + continued.rows - alone.rows <= 30 * 4


def test_a_finished_run_needs_the_network_no_more(place: Path, undisturbed: Quality) -> None:
    evaluator = tiny_evaluator(place, "undisturbed")
    evaluator.source.network = Interrupting(evaluator.source.network, 0)
    assert run(evaluator) == undisturbed  # the paces too


@pytest.mark.parametrize("change", [{"gain": 1.5}, {"num_train_timesteps": 30}])
def test_a_changed_bundle_is_never_mixed_with_stored_results(
    tmp_path: Path, undisturbed: Quality, change: dict
) -> None:
    run(tiny_evaluator(tmp_path, "shared"))
    other = write_bundle(tmp_path / "other", **change)
    beside = run(tiny_evaluator(tmp_path, "shared", other))
    alone = run(tiny_evaluator(tmp_path, "alone", other))
    assert without_pace(beside) == without_pace(alone)
    assert beside.generated != undisturbed.generated
    assert beside.denoising_error != undisturbed.denoising_error


def test_changed_judges_are_never_mixed_with_stored_results(tmp_path: Path) -> None:
    settings = [Setting("ddpm", 2)]
    results = {}
    for store, judges in (("shared", 0), ("shared", 1), ("alone", 1)):
        evaluator = tiny_evaluator(tmp_path, store, judge_seed=judges)
        results[store, judges] = measure_settings(evaluator, settings, 7, 100, lambda _: None)
    assert results["shared", 1].floor == results["alone", 1].floor != results["shared", 0].floor
    assert results["shared", 1].rows[0].frechet == results["alone", 1].rows[0].frechet
    assert results["shared", 1].judges == results["alone", 1].judges


def test_a_changed_sampler_is_never_mixed_with_stored_results(
    place: Path, undisturbed: Quality, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = tiny_evaluator(place, "undisturbed")
    before = evaluator.generated(Setting("ddpm", 3), 7, 100)
    changed = dict(SAMPLERS) | {"ddpm": SAMPLERS["ddim"]}
    monkeypatch.setattr("diffusion.samplers.SAMPLERS", changed)
    assert evaluator.generated(Setting("ddpm", 3), 7, 100).frechet != before.frechet


def test_a_cnn_that_learned_from_samples_is_beside_one_that_learned_from_real_images(
    place: Path, undisturbed: Quality, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[np.ndarray, np.ndarray]] = []

    def score(images: np.ndarray, labels: np.ndarray, *test: np.ndarray, **how: int) -> float:
        calls.append((images, labels))
        assert [len(array) for array in test] == [200, 200]
        assert how == {"seed": 0, "epochs": 1}
        return len(calls) / 4

    fake = SimpleNamespace(classification_accuracy_score=score)  # the real one trains for minutes
    monkeypatch.setitem(sys.modules, "evaluation.classification", fake)
    evaluator = tiny_evaluator(place, "undisturbed")
    protocol = tiny_protocol(evaluator, classification=True)
    found = evaluate(evaluator, protocol, lambda _: None).classification
    assert found is not None
    assert (found.generated, found.real) == (0.25, 0.5)
    assert (found.num_images, found.num_test_images, found.image_seed) == (200, 200, 7)
    drawn = evaluator.drawn(undisturbed.setting, 7, 200)
    assert np.array_equal(calls[0][0], drawn.images)
    assert np.array_equal(calls[0][1], drawn.labels)
    train = {image.tobytes() for image in evaluator.dataset.train.images}
    assert all(image.tobytes() in train for image in calls[1][0])
    assert evaluate(evaluator, protocol, lambda _: None).classification == found
    assert len(calls) == 2


def test_an_n_without_a_floor_is_refused(place: Path) -> None:
    evaluator = tiny_evaluator(place, "undisturbed")
    with pytest.raises(ValueError, match=r"num_images is 201; legal: 100 \.\. 200"):
        measure_settings(evaluator, [Setting("ddpm", 2)], 7, 201, lambda _: None)


def test_what_is_finished_is_said(place: Path, undisturbed: Quality) -> None:
    lines: list[str] = []
    evaluator = tiny_evaluator(place, "undisturbed")
    evaluate(evaluator, tiny_protocol(evaluator), lines.append)
    assert any(line.startswith("ddpm:4:1 seed 1007, N 100: labels ") for line in lines)
