"""Who runs next."""

import math

import numpy as np
import pytest

from serving.ageing import AGEING
from serving.filling_up import (
    EFFICIENCY,
    EXPECTED_SECONDS,
    LEAST_STRETCH,
    LIKE_SIZE,
    MEMORY_SECONDS,
    STRETCH_PER_SHARE,
    FillingUp,
)
from serving.pace import Pace
from serving.scheduling import WorkQueue

NEVER = float("inf")


def add(queue: WorkQueue, order: int, images: int, image_work: int) -> int:
    return queue.add(order, images, image_work, num_steps=image_work, deadline_seconds=NEVER)


def allot(
    queue: WorkQueue,
    lanes: int,
    filling_up: FillingUp | None = None,
    held: dict[int, int] | None = None,
) -> dict[int, int]:
    """Lanes by slot, in the order of urgency, of those that have any."""
    has = np.zeros(queue.slots, dtype=np.int64)
    for slot, each in (held or {}).items():
        has[slot] = each
    slots, given = queue.allot(has, lanes, filling_up or FillingUp(Pace(lanes)))
    return {slot: n for slot, n in zip(slots.tolist(), given.tolist(), strict=True) if n}


def serve(queue: WorkQueue, allotted: dict[int, int]) -> None:
    """A step with a row for every lane."""
    slots = np.repeat(list(allotted), list(allotted.values())).astype(np.int64)
    queue.served(slots, np.ones_like(slots))


def test_the_shortest_remaining_work_goes_first_and_is_served_whole() -> None:
    queue = WorkQueue(8)
    large = add(queue, 1, images=100, image_work=10)
    few_images = add(queue, 2, images=3, image_work=10)
    few_steps = add(queue, 3, images=5, image_work=2)
    allotted = allot(queue, 20)
    assert list(allotted.items()) == [(few_steps, 5), (few_images, 3), (large, 12)]


def test_what_counts_is_the_work_that_remains() -> None:
    queue = WorkQueue(4, ageing=0.0)
    first = add(queue, 1, images=2, image_work=50)
    second = add(queue, 2, images=3, image_work=30)
    assert list(allot(queue, 5)) == [second, first]
    for _ in range(6):
        serve(queue, {first: 2})
    assert queue.work_left[first] == 88
    assert list(allot(queue, 5)) == [first, second]


def test_lanes_are_set_aside_for_much_smaller_requests_only() -> None:
    queue = WorkQueue(8)
    running = add(queue, 1, images=8, image_work=10)
    like = add(queue, 2, images=4, image_work=10)
    held = {running: 8}
    assert allot(queue, 8, held=held) == held, "requests of like size take turns"
    held = {running: 6}  # two images are finished: those lanes go to the one that needs less
    queue.finished(np.array([running] * 2))
    assert allot(queue, 8, held=held) == {running: 6, like: 2}
    small = add(queue, 3, images=1, image_work=10)
    allotted = allot(queue, 8, held={running: 6, like: 2})
    assert list(allotted) == [small, like, running]
    assert allotted == {small: 1, like: 4, running: 3}


def test_small_requests_that_wait_long_are_served_one_after_another_and_not_in_turns() -> None:
    queue = WorkQueue(64)
    for order in range(40):
        add(queue, order, 1, 10)
    begun: list[int] = []
    allotted: dict[int, int] = {}
    for _ in range(40 * 10 // 4):
        allotted = allot(queue, 4, held=allotted)
        begun += [slot for slot in allotted if slot not in begun]
        serve(queue, allotted)
        done = [slot for slot in allotted if queue.work_left[slot] == 0]
        assert len([slot for slot in begun if queue.work_left[slot] > 0]) <= 4
        for slot in done:
            queue.withdraw(slot)
            del allotted[slot]
    assert not queue.unfinished.any()


def test_with_fifo_it_is_the_order_in_which_they_came_whatever_their_size() -> None:
    queue = WorkQueue(4, policy="fifo")
    large = add(queue, 1, images=50, image_work=10)
    small = add(queue, 2, images=1, image_work=1)
    assert allot(queue, 10) == {large: 10}
    queue.withdraw(large)
    assert allot(queue, 10) == {small: 1}


@pytest.mark.parametrize("policy", ["srpt", "fifo"])
def test_equals_go_in_the_order_in_which_they_came_also_when_there_are_thousands(
    policy: str,
) -> None:
    generator = np.random.default_rng(0)
    queue = WorkQueue(3000, policy=policy)
    slots = [add(queue, order, 1, 10) for order in range(3000)]
    for slot in generator.permutation(slots):  # so that slots are handed out in another order
        queue.withdraw(int(slot))
        queue.free(int(slot))
    slots = [add(queue, order, 1, 10) for order in range(3000)]
    assert slots != sorted(slots)
    allotted = []
    for _ in range(30):
        allotted += list(allot(queue, 100))
        for slot in allotted[-100:]:
            queue.withdraw(slot)
    assert allotted == slots


def test_a_large_request_is_not_starved_by_an_endless_stream_of_small_ones() -> None:
    """No small one passes it that came work / ageing rows later; then it has half the engine."""
    queue = WorkQueue(200)
    images, image_work, lanes, backlog = 100, 10, 8, 50
    large = add(queue, 0, images, image_work)
    order, rows, first_served = 1, 0, None
    allotted: dict[int, int] = {}
    while queue.work_left[large] > 0:
        while np.count_nonzero(queue.unfinished) < backlog:
            add(queue, order, 1, image_work)
            order += 1
        allotted = allot(queue, lanes, held=allotted)
        serve(queue, allotted)
        if large in allotted and first_served is None:
            first_served = rows
        for slot in list(allotted):
            if slot != large and queue.work_left[slot] == 0:
                queue.withdraw(slot)
                queue.free(slot)
                del allotted[slot]
        rows += lanes
        assert rows < 10 * images * image_work / AGEING, "starved"
    assert first_served is not None
    work, before_the_turn = images * image_work, (backlog + lanes) * image_work
    # Passed over at first, so that the small ones are fast; then in its turn.
    assert work / 2 < first_served <= work / AGEING + before_the_turn
    # While it has half the engine, the small ones wait twice as long and age twice as much.
    assert rows <= 2 * work / AGEING + before_the_turn / (1 - AGEING)


def test_a_request_without_a_lane_is_looked_at_in_every_step() -> None:
    """However the one before it came there: a step of it may be all that it had to wait for."""
    queue = WorkQueue(4)
    first = add(queue, 0, images=8, image_work=10)
    add(queue, 1, images=8, image_work=10)
    serve(queue, allot(queue, 4))
    assert queue.due()
    queue.withdraw(first)
    serve(queue, allot(queue, 4))
    assert not queue.due()


def test_a_small_request_waits_for_one_step_of_the_elder_however_long_that_was_passed_over() -> (
    None
):
    queue, lanes, work = WorkQueue(8), 4, 1000
    elder = add(queue, 0, images=10, image_work=work // 10)
    later = add(queue, 1, images=9000, image_work=1)

    def serve_later() -> None:
        queue.work_left[later] = lanes + 1  # as if it always had less left
        serve(queue, {later: lanes})

    for _ in range(int(8 * work / AGEING / lanes)):
        serve_later()
    assert list(allot(queue, lanes)) == [later]  # the elder from now on, and owed nothing yet
    serve_later()
    assert allot(queue, lanes) == {elder: lanes}
    queue.withdraw(later)
    small = add(queue, 2, images=1, image_work=10)
    assert list(allot(queue, lanes)) == [elder]
    serve(queue, {elder: lanes})
    for _ in range(4):
        assert small in allot(queue, lanes, filling(1.0))
        serve(queue, {small: 1})


def test_the_elder_may_be_the_only_one_for_whom_there_is_a_lane() -> None:
    queue = WorkQueue(16)
    elder = add(queue, 0, images=2, image_work=10)
    later = add(queue, 1, images=9000, image_work=1)
    for order in range(2, 9):
        add(queue, order, images=1, image_work=9)
    for _ in range(200):
        serve(queue, {later: 1})
    allot(queue, 1)
    serve(queue, {later: 1})
    assert allot(queue, 1) == {elder: 1}


def test_nobody_is_passed_over_by_those_who_came_before() -> None:
    queue = WorkQueue(8)
    first = add(queue, 0, images=900, image_work=1)
    second = add(queue, 1, images=1000, image_work=1)
    for _ in range(800):
        assert allot(queue, 1, held={first: 1}) == {first: 1}
        serve(queue, {first: 1})
    small = add(queue, 2, images=1, image_work=9)
    assert next(iter(allot(queue, 1))) == small
    assert second not in allot(queue, 1)


def test_without_ageing_the_same_stream_starves_it() -> None:
    """That the test above can fail."""
    queue = WorkQueue(200, ageing=0.0)
    large = add(queue, 0, 100, 10)
    for order in range(1, 2000):
        slot = add(queue, order, 1, 10)
        assert allot(queue, 1) == {slot: 1}
        serve(queue, {slot: 1})
        queue.withdraw(slot)
        queue.free(slot)
    assert queue.work_left[large] == 1000


def test_a_request_that_is_served_gathers_no_credit_against_small_ones() -> None:
    queue = WorkQueue(4)
    large = add(queue, 0, images=1000, image_work=10)
    for _ in range(900):  # alone, it gets every lane
        assert allot(queue, 10) == {large: 10}
        serve(queue, {large: 10})
    small = add(queue, 1, images=1, image_work=10)
    assert list(allot(queue, 10)) == [small, large]


def filling(fixed_seconds: float, short_seconds: float = 0.0) -> FillingUp:
    """Steps of fixed_seconds + 1 a row, after so many seconds of steps that were kept short."""
    filling_up = FillingUp(Pace(128, {rows: fixed_seconds + rows for rows in (1, 128)}))
    filling_up.observe(short_seconds, kept_short=True)
    return filling_up


@pytest.mark.parametrize("short_seconds", [0.0, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("fixed_seconds", [0.0, 0.25, 1.0, 5.0, 20.0, 1000.0])
def test_a_step_is_filled_up_as_far_as_it_pays_and_those_before_can_bear(
    fixed_seconds: float, short_seconds: float
) -> None:
    queue = WorkQueue(8)
    smalls = [add(queue, order, 1, 10) for order in range(3)]
    large = add(queue, 9, 1000, 10)
    filling_up = filling(fixed_seconds, short_seconds)
    best, bearable = 64 / (fixed_seconds + 64), filling_up.stretch * (fixed_seconds + 3)
    allotted = allot(queue, 64, filling_up)
    rows = sum(allotted.values())
    assert all(allotted[slot] == 1 for slot in smalls)
    assert fixed_seconds + rows <= 1.001 * bearable
    more = rows + 1
    assert (
        fixed_seconds + more > 0.999 * bearable
        or rows / (fixed_seconds + rows) >= 0.999 * EFFICIENCY * best
    )
    assert queue.keeps_short == [True]
    for slot in smalls:
        queue.withdraw(slot)
    filling_up.observe(EXPECTED_SECONDS + 1.0, kept_short=False)
    assert allot(queue, 64, filling_up) == {large: 64}
    assert queue.keeps_short == [False]


def test_steps_may_become_longer_the_more_of_the_time_they_are_kept_short() -> None:
    filling_up = filling(1.0)
    assert filling_up.stretch == LEAST_STRETCH
    stretches = []
    for _ in range(5):
        filling_up.observe(2.0, kept_short=True)
        stretches.append(filling_up.stretch)
    assert stretches == sorted(stretches)
    filling_up.observe(1000.0, kept_short=True)
    assert filling_up.stretch == pytest.approx(LEAST_STRETCH + STRETCH_PER_SHARE)
    for _ in range(3):
        filling_up.observe(MEMORY_SECONDS, kept_short=False)
    assert filling_up.stretch == pytest.approx(LEAST_STRETCH + STRETCH_PER_SHARE * math.exp(-3))


def test_a_step_in_which_nobody_was_left_out_was_not_kept_short() -> None:
    queue = WorkQueue(8)
    for order in range(10, 14):
        add(queue, order, 2, 10)
    add(queue, 20, 1000, 10)
    allot(queue, 8, filling(1.0))  # full without the large one
    assert queue.keeps_short == [False]
    allot(queue, 9, filling(1.0))
    assert queue.keeps_short == [True]


def test_rows_that_would_only_be_padded_are_filled_up_whatever_else_holds() -> None:
    queue = WorkQueue(8)
    add(queue, 0, 3, 10)
    large = add(queue, 1, 1000, 10)
    pace = Pace(64, {4: 1.0, 64: 16.0}, padded_rows=lambda rows: 4 if rows <= 4 else 64)
    assert allot(queue, 32, FillingUp(pace))[large] == 1


def expecting(fixed_seconds: float, workers: int = 1, small_size: int = 10) -> FillingUp:
    """Of `filling`, where a step was just kept short for a request of so many rows."""
    pace = Pace(128, {rows: fixed_seconds + rows for rows in (1, 128)})
    pace.observe(128, fixed_seconds + 128)
    filling_up = FillingUp(pace, workers)
    given = np.array([1, 100])
    assert filling_up.limit(given, np.array([False, True]), np.ones(2), 128, small_size)
    filling_up.observe(1.0, kept_short=True)
    return filling_up


def test_steps_of_large_requests_are_shorter_while_small_ones_are_expected() -> None:
    queue, filling_up = WorkQueue(4), expecting(fixed_seconds=2.0)
    large = add(queue, 1, images=64, image_work=250)
    lanes = allot(queue, 64, filling_up)[large]
    rate = {n: n / (2.0 + n) for n in (lanes - 1, lanes, 64)}
    assert rate[lanes - 1] < EFFICIENCY * rate[64] <= rate[lanes]
    filling_up.observe(EXPECTED_SECONDS, kept_short=False)
    assert allot(queue, 64, filling_up) == {large: lanes}
    filling_up.observe(1.0, kept_short=False)
    assert allot(queue, 64, filling_up) == {large: 64}, "none has come for long"


def test_small_requests_themselves_have_all_lanes_while_more_are_expected() -> None:
    queue, filling_up = WorkQueue(4), expecting(fixed_seconds=2.0, small_size=10)
    small = add(queue, 1, images=LIKE_SIZE, image_work=10)
    assert allot(queue, 4, filling_up) == {small: LIKE_SIZE}
    queue = WorkQueue(4)
    large = add(queue, 1, images=LIKE_SIZE + 1, image_work=10)
    assert allot(queue, 5, expecting(fixed_seconds=0.0))[large] == 1


def test_lanes_of_guided_requests_are_counted_in_rows_while_small_ones_are_expected() -> None:
    once, twice = (
        expecting(fixed_seconds=2.0).ready_lanes(rows_per_lane, 32) for rows_per_lane in (1.0, 2.0)
    )
    assert twice < once < 32


def worker_allots(
    queue: WorkQueue, worker: int, held: dict[int, int], elsewhere: dict[int, int], lanes: int = 8
) -> dict[int, int]:
    has, others = (np.zeros(queue.slots, dtype=np.int64) for _ in range(2))
    for slot, each in held.items():
        has[slot] = each
    for slot, each in elsewhere.items():
        others[slot] = each
    slots, given = queue.allot(
        has, lanes, filling(fixed_seconds=1.0), elsewhere=others, worker=worker
    )
    return {slot: n for slot, n in zip(slots.tolist(), given.tolist(), strict=True) if n}


def test_each_worker_takes_its_share_of_the_small_requests() -> None:
    queue = WorkQueue(8, workers=2)
    large = add(queue, 1, images=64, image_work=250)
    small = [add(queue, order, images=1, image_work=10) for order in (2, 3, 4)]
    first = worker_allots(queue, 0, {large: 8}, {large: 8})
    assert {slot for slot in small if slot in first} == set(small[:2])
    second = worker_allots(queue, 1, {large: 8}, dict.fromkeys(small[:2], 1))
    assert [slot for slot in small if slot in second] == small[2:]


def test_small_requests_without_large_ones_beside_them_are_not_held_back() -> None:
    queue = WorkQueue(8, workers=2)
    small = [add(queue, order, images=1, image_work=10) for order in range(3)]
    assert worker_allots(queue, 0, {}, {}) == dict.fromkeys(small, 1)


def passed_over(workers: int) -> tuple[WorkQueue, int, int]:
    """A queue in which the elder is owed a step, and a small one waits: (queue, elder, small)."""
    queue = WorkQueue(8, workers=workers)
    elder = add(queue, 1, images=8, image_work=250)
    while True:
        passing = add(queue, 2, images=64, image_work=20)
        allotted = worker_allots(queue, 0, {}, {})
        if elder in allotted:  # it has a step at once
            queue.withdraw(passing)
            queue.free(passing)
            return queue, elder, add(queue, 3, images=1, image_work=10)
        for _ in range(20):
            serve(queue, {passing: 8})
            worker_allots(queue, 0, {passing: 8}, {})
        queue.withdraw(passing)
        queue.free(passing)


def test_the_elder_has_its_step_of_a_worker_that_serves_no_small_request() -> None:
    queue, elder, small = passed_over(workers=2)
    first = worker_allots(queue, 0, {}, {})
    assert first == {small: 1}, "the elder is left to the other worker"
    assert queue.keeps_short[0]
    assert worker_allots(queue, 1, {}, {small: 1}) == {elder: 8}


def test_the_elder_has_its_step_where_all_workers_serve_small_requests() -> None:
    queue, elder, _ = passed_over(workers=2)
    queue.keeps_short[1] = True
    assert elder in worker_allots(queue, 0, {}, {})
    queue, elder, _ = passed_over(workers=1)
    assert elder in worker_allots(queue, 0, {}, {})


def test_requests_of_like_size_do_not_limit_each_other() -> None:
    queue = WorkQueue(80)
    for order in range(70):
        add(queue, order, images=1 + order % 4, image_work=10)
    assert sum(allot(queue, 64, filling(0.0)).values()) == 64


def test_filling_up_is_counted_in_rows_where_lanes_are_guided() -> None:
    queue = WorkQueue(4)
    add(queue, 0, 4, 10)
    guided = queue.add(1, 1000, image_work=20, num_steps=10, deadline_seconds=NEVER)
    filling_up = filling(4.0, short_seconds=1.0)
    rows = 4 + 2 * allot(queue, 64, filling_up)[guided]
    assert 4 + rows <= filling_up.stretch * (4 + 4) < 4 + rows + 2


def test_images_are_allotted_until_they_are_finished() -> None:
    queue = WorkQueue(4)
    slot = add(queue, 0, 3, 1)
    assert allot(queue, 8) == {slot: 3}
    queue.finished(np.array([slot, slot]))
    assert allot(queue, 8) == {slot: 1}


def test_expired_names_exactly_the_deadlines_that_have_come() -> None:
    queue = WorkQueue(4)
    queue.add(1, 1, 1, 1, NEVER)
    early = queue.add(2, 1, 1, 1, 10.0)
    late = queue.add(3, 1, 1, 1, 20.0)
    assert queue.expired(9.99).tolist() == []
    assert queue.expired(10.0).tolist() == [early]
    queue.withdraw(early)
    assert queue.expired(30.0).tolist() == [late]


def test_withdrawn_requests_are_allotted_nothing() -> None:
    queue = WorkQueue(2)
    slot = add(queue, 1, 5, 1)
    queue.withdraw(slot)
    assert allot(queue, 2) == {}
    assert queue.backlog(0).images == 0


def test_the_backlog_says_what_waits_and_what_goes_before() -> None:
    queue = WorkQueue(8)
    add(queue, 0, images=3, image_work=10)
    started = add(queue, 1, images=2, image_work=4)
    queue.waiting[started] = 0
    backlog = queue.backlog(images_running=1)
    assert (backlog.images, backlog.images_waiting, backlog.requests_waiting) == (5, 4, 1)
    assert backlog.urgency.tolist() == backlog.work.tolist() == backlog.size.tolist() == [30, 8]
    assert backlog.width.tolist() == [3, 2]


@pytest.mark.parametrize("ageing", [-0.1, 1.1, float("nan")])
def test_ageing_out_of_range_is_refused(ageing: float) -> None:
    with pytest.raises(ValueError, match="ageing"):
        WorkQueue(2, ageing=ageing)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="srpt or fifo"):
        WorkQueue(2, policy="random")
