"""The lane table: packed at all times, and no lane changed by another's leaving."""

import numpy as np
import pytest

from serving.lanes import LaneTable

ATTRIBUTES = (
    "x_0_previous", "seed", "index", "position", "num_steps", "plan", "label", "guidance_scale",
    "guided", "preview_every", "request", "rows_computed",
)  # fmt: skip


def fill(lanes: LaneTable, numbers: range) -> None:
    """Takes a lane per number and writes the number wherever it fits."""
    rows = lanes.take(len(numbers))
    for name in (*ATTRIBUTES, "x"):
        array = getattr(lanes, name)
        values = np.array(numbers).reshape(-1, *(1,) * (array.ndim - 1))
        array[rows] = values % 2 if name == "guided" else values


def test_any_lanes_leaving_leaves_the_others_whole_and_packed() -> None:
    generator = np.random.default_rng(0)
    lanes = LaneTable(16, (1, 2, 2))
    expected: set[int] = set()
    next_number = 1
    for _ in range(300):
        joining = int(generator.integers(0, lanes.free + 1))
        fill(lanes, range(next_number, next_number + joining))
        expected |= set(range(next_number, next_number + joining))
        next_number += joining
        leaving = generator.random(lanes.count) < generator.choice([0.0, 0.1, 0.5, 1.0])
        gone = lanes.index[: lanes.count][leaving].tolist()
        expected -= set(gone)
        assert lanes.leave(leaving) == sum(gone)  # rows_computed holds the same numbers
        numbers = lanes.index[: lanes.count]
        assert lanes.count == len(expected)
        assert set(numbers.tolist()) == expected
        for name in (*ATTRIBUTES, "x"):
            array = getattr(lanes, name)[: lanes.count]
            expected_values = numbers % 2 if name == "guided" else numbers
            np.testing.assert_array_equal(array, np.broadcast_to(expected_values, array.T.shape).T)


def test_images_in_use_are_one_contiguous_batch_with_room_for_null_rows_behind() -> None:
    lanes = LaneTable(4, (1, 2, 2), rows=8)
    fill(lanes, range(1, 5))
    lanes.leave(np.array([True, False, True, False]))
    assert lanes.x[: 2 * lanes.count].flags.c_contiguous
    assert len(lanes.x) == 2 * lanes.capacity


def test_a_lane_taken_again_starts_from_nothing() -> None:
    lanes = LaneTable(2, (1, 1, 1))
    fill(lanes, range(5, 7))
    lanes.x_0_previous[:] = np.nan
    lanes.leave(np.array([True, True]))
    lanes.take(2)
    assert lanes.position.tolist() == lanes.rows_computed.tolist() == [0, 0]
    assert (lanes.x_0_previous == 0.0).all()


def test_more_lanes_than_there_are_is_an_error() -> None:
    lanes = LaneTable(3, (1, 1, 1))
    lanes.take(2)
    with pytest.raises(ValueError, match="2 lanes asked for, 1 free"):
        lanes.take(2)


def test_lanes_received_from_another_table_are_the_same_lanes() -> None:
    source, target = LaneTable(6, (1, 2, 2)), LaneTable(4, (1, 2, 2), rows=8)
    fill(source, range(1, 7))
    fill(target, range(11, 12))
    target.receive(source, np.array([4, 1]))
    assert target.index[: target.count].tolist() == [11, 5, 2]
    for name in (*ATTRIBUTES, "x"):
        theirs = getattr(source, name)[[4, 1]]
        np.testing.assert_array_equal(getattr(target, name)[1:3], theirs)
    assert source.count == 6


def test_more_lanes_than_are_free_are_not_received() -> None:
    source, target = LaneTable(3, (1, 1, 1)), LaneTable(2, (1, 1, 1))
    fill(source, range(3))
    with pytest.raises(ValueError, match="3 lanes asked for, 2 free"):
        target.receive(source, np.arange(3))
    assert target.count == 0
