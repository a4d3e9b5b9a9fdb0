"""Who may wait, and for how long."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission import Admission
from serving.backlog import Backlog
from serving.filling_up import FillingUp
from serving.pace import Pace
from serving.request import DeadlineUnmeetable, QueueFull
from tests.fakes import spec

NOW = 1000.0


def admission(
    images: int = 100, requests: int = 100, *, lanes: int = 10, policy: str = "srpt"
) -> tuple[Admission, Pace]:
    pace = Pace(2 * lanes)
    return (
        Admission(
            max_queued_images=images,
            max_queued_requests=requests,
            lanes=lanes,
            policy=policy,
            pace=pace,
            filling_up=FillingUp(pace),
        ),
        pace,
    )


def backlog(*work: int, waiting: int | None = None) -> Backlog:
    """Requests of so much work each; `waiting` images wait: all but one, unless it is said."""
    rows = np.array(work, dtype=np.int64)
    return Backlog(
        urgency=rows,
        size=rows,
        work=rows,
        width=np.full(len(work), 1000.0),
        images=len(work),
        images_waiting=max(len(work) - 1, 0) if waiting is None else waiting,
        requests_waiting=0,
    )


def test_the_queue_is_bounded_in_images() -> None:
    queue, _ = admission(images=10)
    first = spec(count=7)
    queue.reserve(first, NOW)
    with pytest.raises(QueueFull, match="7 of at most 10 images wait") as refusal:
        queue.reserve(spec(count=4), NOW)
    assert (refusal.value.what, refusal.value.limit, refusal.value.waiting) == ("images", 10, 7)
    queue.reserve(spec(count=3), NOW)
    assert queue.images_waiting == 10
    queue.enqueued(first)
    queue.publish(backlog(7 * 4, waiting=3))  # four of them have lanes
    assert queue.images_waiting == 6
    queue.reserve(spec(count=4), NOW)
    with pytest.raises(QueueFull):
        queue.reserve(spec(), NOW)


def test_the_queue_is_bounded_in_requests() -> None:
    queue, _ = admission(requests=2)
    for _ in range(2):
        queue.reserve(spec(), NOW)
    with pytest.raises(QueueFull, match="2 of at most 2 requests wait") as refusal:
        queue.reserve(spec(), NOW)
    assert refusal.value.what == "requests"
    queue.enqueued(spec())
    queue.publish(backlog(4))  # it has a lane
    queue.reserve(spec(), NOW)


def test_retry_after_is_the_time_that_the_missing_room_takes_at_the_measured_pace() -> None:
    queue, pace = admission(images=100)
    pace.observe(rows=50, seconds=5.0)  # 0.1 s per row
    queue.reserve(spec(count=100, num_steps=10), NOW)
    with pytest.raises(QueueFull) as refusal:
        queue.reserve(spec(count=20), NOW)
    # 20 images of 10 rows each have to go first.
    assert refusal.value.retry_after_seconds == pytest.approx(20 * 10 * 0.1)


def test_before_anything_is_measured_retry_after_is_a_sane_guess_and_no_deadline_is_judged() -> (
    None
):
    queue, _ = admission(images=1)
    assert queue.estimate_seconds(spec()) is None
    queue.reserve(spec(deadline_seconds=NOW + 1e-9), NOW)
    with pytest.raises(QueueFull) as refusal:
        queue.reserve(spec(), NOW)
    assert 0.0 < refusal.value.retry_after_seconds <= 10.0


def test_a_deadline_that_cannot_be_met_is_refused_with_the_estimate() -> None:
    queue, pace = admission()
    pace.observe(rows=10, seconds=1.0)
    needed = 10 * 0.1
    queue.reserve(spec(num_steps=10, deadline_seconds=NOW + 1.01 * needed), NOW)
    queue.enqueued(spec(num_steps=10))
    queue.publish(backlog())
    with pytest.raises(DeadlineUnmeetable, match="about 1.00 s and has 0.50 s") as refusal:
        queue.reserve(spec(num_steps=10, deadline_seconds=NOW + 0.5 * needed), NOW)
    assert refusal.value.estimate_seconds == pytest.approx(needed)
    assert refusal.value.left_seconds == pytest.approx(0.5 * needed)
    assert refusal.value.retry_after_seconds == pytest.approx(0.5 * needed)
    assert queue.images_waiting == 0, "a refused request left a trace"


@given(st.data())
def test_the_bound_that_spares_the_estimate_is_never_below_it(data: st.DataObject) -> None:
    policy = data.draw(st.sampled_from(["srpt", "fifo"]))
    lanes = data.draw(st.integers(1, 20))
    queue, pace = admission(10_000, 1000, lanes=lanes, policy=policy)
    pace.observe(rows=data.draw(st.integers(1, 2 * lanes)), seconds=data.draw(st.floats(0.01, 1)))
    rows = st.integers(1, 20_000)
    work = data.draw(st.lists(rows, max_size=6))
    here = backlog(*work, waiting=data.draw(st.integers(0, len(work))))
    elder = data.draw(st.none() | st.integers(0, len(work) - 1)) if work else None
    widths = data.draw(st.lists(st.floats(1, 2000), min_size=len(work), max_size=len(work)))
    sizes = np.array([data.draw(st.integers(each, 40_000)) for each in work], dtype=np.int64)
    queue.publish(replace(here, size=sizes, width=np.array(widths), elder=elder))
    requests = st.builds(
        spec,
        count=st.integers(1, 50),
        num_steps=st.integers(1, 250),
        guidance_scale=st.sampled_from([1.0, 2.0]),
    )
    for reserved in data.draw(st.lists(requests, max_size=4)):
        queue.reserve(reserved, NOW)
    wanted = data.draw(requests)
    estimate = queue.estimate_seconds(wanted)
    assert estimate is not None
    assert queue._longest_estimate_seconds(wanted) >= estimate * (1 - 1e-9)


def test_the_estimate_counts_what_goes_before_and_not_what_comes_after() -> None:
    queue, pace = admission(lanes=1)
    pace.observe(rows=1, seconds=0.1)
    queue.publish(backlog(1000))
    after_the_step_under_way = queue.estimate_seconds(spec(num_steps=10))
    assert after_the_step_under_way == pytest.approx((10 + 0.5) * 0.1)
    queue.publish(backlog(5, 6, 1000))
    assert queue.estimate_seconds(spec(num_steps=10)) == pytest.approx((11 + 10 + 0.5) * 0.1)
    fifo, pace = admission(lanes=1, policy="fifo")
    pace.observe(rows=1, seconds=0.1)
    fifo.publish(backlog(1000))
    assert fifo.estimate_seconds(spec(num_steps=10)) == pytest.approx((1000 + 10 + 0.5) * 0.1)


def test_requests_that_the_engine_has_not_seen_yet_count_too() -> None:
    queue, pace = admission(lanes=1)
    pace.observe(rows=1, seconds=0.1)
    for num_steps in (7, 50, 8):
        queue.reserve(spec(num_steps=num_steps), NOW)
    assert queue.estimate_seconds(spec(num_steps=10)) == pytest.approx((15 + 10) * 0.1)


def test_many_threads_together_never_pass_the_bound() -> None:
    queue, _ = admission(images=500, requests=1000)
    accepted = []

    def client() -> None:
        for _ in range(100):
            try:
                queue.reserve(spec(), NOW)
            except QueueFull:
                continue
            accepted.append(1)

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(accepted) == queue.images_waiting == 500


@pytest.mark.parametrize("limit", [0, -5])
@pytest.mark.parametrize("name", ["images", "requests"])
def test_a_queue_without_room_is_refused(name: str, limit: int) -> None:
    with pytest.raises(ValueError, match=f"max_queued_{name} must be at least 1, got {limit}"):
        admission(**{name: limit})
