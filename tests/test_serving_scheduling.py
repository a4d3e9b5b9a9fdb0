"""Who runs next, and how many may wait."""

import threading

import numpy as np
import pytest

from serving.request import QueueFull
from serving.scheduling import AGEING, Admission, WorkQueue

NEVER = float("inf")


def nothing_runs(queue: WorkQueue) -> np.ndarray:
    return np.zeros(queue.slots)


def grant(queue: WorkQueue, lanes: int) -> list[tuple[int, int]]:
    return queue.grant(lanes, nothing_runs(queue))


def test_the_shortest_remaining_work_goes_first() -> None:
    queue = WorkQueue(8)
    large = queue.add(1, images=100, image_work=10, deadline_seconds=NEVER)
    few_images = queue.add(2, images=3, image_work=10, deadline_seconds=NEVER)
    few_steps = queue.add(3, images=5, image_work=2, deadline_seconds=NEVER)
    assert grant(queue, 20) == [(few_steps, 5), (few_images, 3), (large, 12)]
    assert queue.waiting[large] == 88


def test_work_that_runs_counts_as_remaining() -> None:
    queue = WorkQueue(4)
    first = queue.add(1, images=2, image_work=10, deadline_seconds=NEVER)
    second = queue.add(2, images=3, image_work=10, deadline_seconds=NEVER)
    running = nothing_runs(queue)
    running[first] = 50
    assert queue.grant(1, running) == [(second, 1)]


def test_equals_go_in_the_order_in_which_they_came_also_when_there_are_thousands() -> None:
    generator = np.random.default_rng(0)
    queue = WorkQueue(3000)
    slots = [queue.add(order, 1, 10, NEVER) for order in range(3000)]
    for slot in generator.permutation(slots):  # so that slots are handed out in another order
        queue.withdraw(int(slot))
        queue.free(int(slot))
    slots = [queue.add(order, 1, 10, NEVER) for order in range(3000)]
    assert slots != sorted(slots)
    granted = [slot for _ in range(30) for slot, _ in grant(queue, 100)]
    assert granted == slots


def test_a_large_request_is_not_starved_by_an_endless_stream_of_small_ones() -> None:
    """No small one passes it that came work / ageing rows later; then it has half the engine."""
    queue = WorkQueue(200)
    images, image_work, lanes, backlog = 100, 10, 8, 50
    large = queue.add(0, images, image_work, NEVER)
    order, rows, first_grant = 1, 0, None
    while queue.waiting[large]:
        while np.count_nonzero(queue.waiting) < backlog:
            queue.add(order, 1, image_work, NEVER)
            order += 1
        granted = grant(queue, lanes)
        for slot, _ in granted:
            if slot == large and first_grant is None:
                first_grant = rows
            if slot != large:
                queue.withdraw(slot)
                queue.free(slot)
        queue.worked(lanes * image_work)
        rows += lanes * image_work
        assert rows < 10 * images * image_work / AGEING, "starved"
    assert first_grant is not None
    work, before_the_turn = images * image_work, (backlog + lanes) * image_work
    # Passed over at first, so that the small ones are fast; then in its turn.
    assert work / 2 < first_grant <= work / AGEING + before_the_turn
    # While it has half the engine, the small ones wait twice as long and age twice as much.
    assert rows <= 2 * work / AGEING + before_the_turn / (1 - AGEING)


def test_without_ageing_the_same_stream_starves_it() -> None:
    """That the test above can fail."""
    queue = WorkQueue(200, ageing=0.0)
    large = queue.add(0, 100, 10, NEVER)
    for order in range(1, 2000):
        slot = queue.add(order, 1, 10, NEVER)
        assert grant(queue, 1) == [(slot, 1)]
        queue.withdraw(slot)
        queue.free(slot)
        queue.worked(10)
    assert queue.waiting[large] == 100


def test_a_request_that_is_served_gathers_no_credit_against_small_ones() -> None:
    queue = WorkQueue(4)
    large = queue.add(0, images=1000, image_work=10, deadline_seconds=NEVER)
    for _ in range(90):  # alone, it gets every lane
        assert grant(queue, 10) == [(large, 10)]
        queue.worked(100)
    small = queue.add(1, images=1, image_work=10, deadline_seconds=NEVER)
    assert grant(queue, 1) == [(small, 1)]


def test_expired_names_exactly_the_deadlines_that_have_come() -> None:
    queue = WorkQueue(4)
    queue.add(1, 1, 1, NEVER)
    early = queue.add(2, 1, 1, 10.0)
    late = queue.add(3, 1, 1, 20.0)
    assert queue.expired(9.99).tolist() == []
    assert queue.expired(10.0).tolist() == [early]
    assert queue.withdraw(early) == 1
    assert queue.expired(30.0).tolist() == [late]


def test_withdrawn_images_are_never_granted() -> None:
    queue = WorkQueue(2)
    slot = queue.add(1, 5, 1, NEVER)
    assert grant(queue, 2) == [(slot, 2)]
    assert queue.withdraw(slot) == 3
    assert grant(queue, 2) == []
    assert queue.waiting_work() == 0


@pytest.mark.parametrize("ageing", [-0.1, 1.1, float("nan")])
def test_ageing_out_of_range_is_refused(ageing: float) -> None:
    with pytest.raises(ValueError, match="ageing"):
        WorkQueue(2, ageing=ageing)


def test_the_queue_is_bounded_in_images() -> None:
    admission = Admission(10)
    admission.reserve(7, 70)
    with pytest.raises(QueueFull) as refusal:
        admission.reserve(4, 40)
    assert (refusal.value.limit, refusal.value.waiting) == (10, 7)
    admission.reserve(3, 30)
    assert admission.images_waiting == 10
    admission.left(4)
    admission.reserve(4, 40)
    with pytest.raises(QueueFull):
        admission.reserve(1, 10)


def test_retry_after_is_the_time_that_the_missing_room_takes_at_the_measured_pace() -> None:
    admission = Admission(100)
    admission.reserve(100, 1000)
    admission.measured(rows=50, seconds=5.0, images=100, work=1000)  # 0.1 s per row
    with pytest.raises(QueueFull) as refusal:
        admission.reserve(20, 200)
    # 20 images of 10 rows each have to go first.
    assert refusal.value.retry_after_seconds == pytest.approx(20 * 10 * 0.1)


def test_the_measured_pace_follows_the_engine() -> None:
    admission = Admission(1)
    assert admission.seconds_per_row is None
    admission.measured(rows=10, seconds=1.0, images=0, work=0)
    assert admission.seconds_per_row == pytest.approx(0.1)
    for _ in range(100):
        admission.measured(rows=10, seconds=2.0, images=0, work=0)
    assert admission.seconds_per_row == pytest.approx(0.2, rel=1e-3)
    admission.measured(rows=0, seconds=9.0, images=0, work=0)  # a step without a batch
    assert admission.seconds_per_row == pytest.approx(0.2, rel=1e-3)


def test_before_anything_is_measured_retry_after_is_a_sane_guess() -> None:
    admission = Admission(1)
    admission.reserve(1, 1)
    with pytest.raises(QueueFull) as refusal:
        admission.reserve(1, 1)
    assert 0.0 < refusal.value.retry_after_seconds <= 10.0


def test_many_threads_together_never_pass_the_bound() -> None:
    admission = Admission(500)
    accepted = []

    def client() -> None:
        for _ in range(100):
            try:
                admission.reserve(1, 1)
            except QueueFull:
                continue
            accepted.append(1)

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(accepted) == admission.images_waiting == 500


@pytest.mark.parametrize("limit", [0, -5])
def test_a_queue_without_room_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="max_queued_images"):
        Admission(limit)
