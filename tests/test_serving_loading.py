"""From a bundle to an engine: how many lanes it has, and that its pace is known from the start."""

from pathlib import Path

import pytest

from serving import loading
from serving.bundle import BundleError
from serving.lane_count import CANDIDATES, LaneCount
from serving.loading import EngineSettings, load_model
from tests.fakes import write_tiny_bundle


@pytest.mark.parametrize(
    ("max_lanes", "tried", "usual", "most"),
    [("auto", CANDIDATES, 4, 6), (8, (1, 8), 8, 8), (200, (1, 64), 200, 200)],
)
def test_lanes_are_measured_or_fixed_and_the_pace_is_known_either_way(
    max_lanes: int,
    tried: tuple[int, ...] | None,
    usual: int,
    most: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[tuple[int, ...] | None] = []

    def measure(*_: object, candidates: tuple[int, ...] | None, together: bool | None) -> LaneCount:
        measured.append(candidates)
        return LaneCount(4, 6, {1: 0.5, 4: 0.8}, together=True, seconds=0.1)

    monkeypatch.setattr(loading, "measure_lane_count", measure)
    settings = EngineSettings(max_lanes=max_lanes)
    model = load_model(write_tiny_bundle(tmp_path / "tiny"), "cpu", 1, settings)
    assert measured == [tried]
    assert model.engine.statistics().lanes_capacity == usual
    assert (model.engine.usual_lanes, model.engine.max_lanes) == (usual, most)
    assert model.engine.longest_step_seconds == pytest.approx(2 * most / 4 * 0.8)


def test_lanes_that_were_measured_before_are_kept(tmp_path: Path) -> None:
    settings = EngineSettings(max_lanes=6, usual_lanes=4)
    engine = load_model(write_tiny_bundle(tmp_path / "tiny"), "cpu", 1, settings).engine
    assert (engine.usual_lanes, engine.max_lanes) == (4, 6)


def test_a_network_that_fails_while_it_is_measured_is_a_bad_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: object, candidates: tuple[int, ...] | None, together: bool | None) -> LaneCount:
        raise RuntimeError("the network failed for a batch of 2 rows")

    monkeypatch.setattr(loading, "measure_lane_count", measure)
    with pytest.raises(BundleError, match="failed for a batch of 2 rows"):
        load_model(write_tiny_bundle(tmp_path / "tiny"), "cpu", 1, EngineSettings())


@pytest.mark.parametrize(("spin", "together"), [(True, True), (False, None)])
def test_threads_that_wait_awake_are_to_compute_an_image_together(
    *, spin: bool, together: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def measure(*_: object, together: bool | None, **__: object) -> LaneCount:
        asked.append(together)
        return LaneCount(4, 6, {1: 0.5, 4: 0.8}, together=True, seconds=0.1)

    monkeypatch.setattr(loading, "measure_lane_count", measure)
    load_model(write_tiny_bundle(tmp_path / "tiny"), "cpu", 2, EngineSettings(), spin=spin)
    assert asked == [together]
