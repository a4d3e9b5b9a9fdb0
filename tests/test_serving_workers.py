"""An engine whose network computes several batches at once: who has which lanes, and what is lost.

The steps are begun and finished by hand, so that each is under way for as long as a test likes.
"""

import random

import pytest

from serving.engine import Engine, Step
from serving.filling_up import LEAST_STRETCH, STRETCH_PER_SHARE, FillingUp
from serving.pace import Pace
from serving.request import Outcome
from serving.rounds import Rounds
from tests.fakes import (
    FakeClock,
    FakeNetwork,
    RecordingSink,
    assert_reference_pixels,
    fake_model,
    spec,
)

MODEL = fake_model()


def team(workers: int = 2, max_lanes: int = 8, **settings: object) -> tuple[Engine, FakeNetwork]:
    network = FakeNetwork(parts=workers)
    return Engine(MODEL, network, max_lanes=max_lanes, **settings), network


def begin(engine: Engine) -> Step:
    step = engine.begin()
    assert step is not None
    return step


def can_begin(engine: Engine) -> bool:
    return engine.can_begin


def end(engine: Engine, *steps: Step) -> None:
    for step in steps:
        step.run()
        engine.finish(step)


def finish(engine: Engine) -> None:
    while engine.has_work:
        assert engine.step() is not None


def test_every_worker_has_its_share_of_the_images_at_once() -> None:
    engine, _ = team(workers=3, max_lanes=12)
    sink = RecordingSink()
    engine.submit(spec(count=7, num_steps=3), sink)
    steps = [begin(engine) for _ in range(3)]
    assert [step.stats.lanes for step in steps] == [3, 3, 1]
    assert engine.begin() is None, "all workers have a step under way"
    assert engine.statistics().lanes_active == 7
    end(engine, *reversed(steps))
    finish(engine)
    assert sink.outcome is Outcome.FINISHED
    assert_reference_pixels(MODEL, spec(count=7, num_steps=3), sink.images)


def test_the_lanes_of_all_workers_are_no_more_than_there_are() -> None:
    engine, _ = team(workers=3, max_lanes=8)
    engine.submit(spec(count=100), RecordingSink())
    assert [begin(engine).stats.lanes for _ in range(3)] == [3, 3, 2]
    one, _ = team(workers=3, max_lanes=1)
    assert one.workers == 1


def test_images_that_are_fewer_than_the_workers_are_computed_by_all_of_these() -> None:
    engine, _ = team(workers=3)
    first, second = RecordingSink(), RecordingSink()
    engine.submit(spec(count=2, num_steps=2), first)
    step = begin(engine)
    assert step.alone
    assert step.stats.lanes == 2
    engine.submit(spec(count=2, num_steps=5, seed=1), second)
    assert engine.begin() is None, "the network is in use"
    end(engine, step)
    steps = [begin(engine), begin(engine)]
    assert [(step.stats.lanes, step.alone) for step in steps] == [(2, False), (2, False)]
    end(engine, *steps)
    finish(engine)
    assert_reference_pixels(MODEL, spec(count=2, num_steps=2), first.images)
    assert_reference_pixels(MODEL, spec(count=2, num_steps=5, seed=1), second.images)


def test_where_one_worker_is_sooner_it_computes_an_image_and_the_others_are_free() -> None:
    engine, _ = team(workers=3, together=False)
    first, second = RecordingSink(), RecordingSink()
    engine.submit(spec(num_steps=2), first)
    steps = [begin(engine)]
    assert not steps[0].alone
    assert not can_begin(engine), "there is nothing for another worker"
    engine.submit(spec(num_steps=5, seed=1), second)
    assert can_begin(engine)
    steps.append(begin(engine))
    assert [step.stats.lanes for step in steps] == [1, 1]
    assert not can_begin(engine)
    assert engine.begin() is None
    end(engine, *steps)
    finish(engine)
    assert_reference_pixels(MODEL, spec(num_steps=2), first.images)
    assert_reference_pixels(MODEL, spec(num_steps=5, seed=1), second.images)


def test_nobody_can_begin_beside_a_step_of_all_workers() -> None:
    engine, _ = team()
    engine.submit(spec(), RecordingSink())
    step = begin(engine)
    engine.submit(spec(seed=1), RecordingSink())
    assert step.alone
    assert not can_begin(engine)
    end(engine, step)
    assert can_begin(engine)
    finish(engine)
    assert not can_begin(engine)


def test_lanes_of_a_cancelled_request_that_are_under_way_keep_no_worker_from_others() -> None:
    engine, _ = team(workers=3, max_lanes=24)
    cancelled = engine.submit(spec(count=24, num_steps=50), RecordingSink())
    long_step = begin(engine)
    assert long_step.stats.lanes == 8
    engine.cancel(cancelled)
    sink = RecordingSink()
    engine.submit(spec(label=1, count=3), sink)
    steps = [begin(engine)]
    assert can_begin(engine), "three images, of which that step has at most two"
    steps.append(begin(engine))
    assert sum(step.stats.lanes for step in steps) == 2
    end(engine, *steps, long_step)
    finish(engine)
    assert_reference_pixels(MODEL, spec(label=1, count=3), sink.images)


def test_no_worker_waits_for_another() -> None:
    engine, _ = team()
    slow, sink = RecordingSink(), RecordingSink()
    engine.submit(spec(label=1, count=4, num_steps=9), slow)
    long_step = begin(engine)
    engine.submit(spec(label=2, num_steps=5), sink)
    for _ in range(5):
        end(engine, begin(engine))
    assert sink.outcome is Outcome.FINISHED
    end(engine, long_step)
    finish(engine)
    assert_reference_pixels(MODEL, spec(label=1, count=4, num_steps=9), slow.images)


def test_a_small_request_takes_lanes_of_one_worker_and_leaves_a_large_one_the_others() -> None:
    engine, network = team(max_lanes=16)
    large, small = RecordingSink(), RecordingSink()
    engine.submit(spec(label=1, count=16, num_steps=50), large)
    steps = [begin(engine), begin(engine)]
    engine.submit(spec(label=2, num_steps=3), small)
    while small.outcome is None:  # one of them is as long as several of the other
        end(engine, steps.pop(0))
        steps.insert(0, begin(engine))
    assert steps[1].stats.lanes == 8
    end(engine, *steps)
    assert sum(2 in batch for batch in network.batches) == 3
    assert all(len(batch) < 8 for batch in network.batches if 2 in batch)


def test_a_worker_that_is_left_without_work_gets_half_of_that_of_another() -> None:
    engine, _ = team()
    stays, goes = RecordingSink(), RecordingSink()
    engine.submit(spec(label=1, count=4, num_steps=50), stays)
    first, second = begin(engine), begin(engine)
    assert (first.stats.lanes, second.stats.lanes) == (2, 2)
    ticket = engine.submit(spec(label=2, count=4, num_steps=50, seed=1), goes)
    end(engine, first, second)
    assert [begin(engine).stats.lanes for _ in range(2)] == [4, 4]
    engine.cancel(ticket)
    for step in list(engine._under_way.values()):
        end(engine, step)
    assert sorted(begin(engine).stats.lanes for _ in range(2)) == [2, 2]
    for step in list(engine._under_way.values()):
        end(engine, step)
    assert engine.statistics().totals.lanes_set_aside == 0, "to move is not to be preempted"
    finish(engine)
    assert_reference_pixels(MODEL, spec(label=1, count=4, num_steps=50), stays.images)


def test_the_slot_of_a_request_is_not_given_away_while_its_lanes_are_under_way() -> None:
    engine, _ = team(max_queued_images=8)
    first = RecordingSink()
    request = engine.submit(spec(count=8, num_steps=20), first)
    one, other = begin(engine), begin(engine)
    engine.cancel(request)
    end(engine, one)
    begun = begin(engine)  # ends it; its other lanes are still computed
    assert begun.compute is None
    engine.finish(begun)
    assert first.outcome is Outcome.CANCELLED
    later = [RecordingSink() for _ in range(8)]
    for seed, sink in enumerate(later):
        engine.submit(spec(label=3, seed=seed, num_steps=2), sink)
    end(engine, begin(engine))
    end(engine, other)
    finish(engine)
    assert not first.images
    for seed, sink in enumerate(later):
        assert_reference_pixels(MODEL, spec(label=3, seed=seed, num_steps=2), sink.images)
    slots = engine._batching.queue
    assert len(slots._free_slots) == slots.slots


def test_a_network_that_raises_costs_the_requests_of_that_worker_alone() -> None:
    engine, network = team()
    lost, kept = RecordingSink(), RecordingSink()
    engine.submit(spec(label=1, count=4, num_steps=4), lost)
    one = begin(engine)
    engine.submit(spec(label=2, count=2, num_steps=4), kept)
    other = begin(engine)
    assert other.stats.lanes == 3, "lanes of both requests"
    network.raise_on = {0}
    end(engine, one)
    assert lost.outcome is Outcome.NETWORK_FAILED
    end(engine, other)
    finish(engine)
    assert kept.outcome is Outcome.FINISHED
    assert_reference_pixels(MODEL, spec(label=2, count=2, num_steps=4), kept.images)
    assert engine.statistics().totals.network_failures == 1


def test_steps_that_were_under_way_when_all_was_ended_have_no_effect() -> None:
    engine, _ = team()
    ended, later = RecordingSink(), RecordingSink()
    engine.submit(spec(count=8, num_steps=1), ended)
    stale = [begin(engine), begin(engine)]
    engine.end_all(Outcome.NETWORK_FAILED, "the engine broke")
    engine.submit(spec(label=5, num_steps=3), later)
    assert engine.begin() is None, "every worker is still busy"
    end(engine, stale[0])
    fresh = begin(engine)
    assert not fresh.alone, "the network is still in use"
    end(engine, stale[1])
    end(engine, fresh)
    finish(engine)
    assert not ended.images
    assert_reference_pixels(MODEL, spec(label=5, num_steps=3), later.images)
    totals = engine.statistics().totals
    assert totals.rows_useful == totals.rows_finished + totals.rows_given_up == 8 + 3


def test_the_pace_is_that_of_all_workers_side_by_side() -> None:
    clock = FakeClock()
    engine = Engine(MODEL, FakeNetwork(clock, 0.01, parts=2), max_lanes=8, clock=clock)
    engine.submit(spec(count=8, num_steps=2), RecordingSink())
    end(engine, begin(engine))  # 4 rows in 40 ms, while the other worker could make 4 more
    pace = engine.statistics().seconds_per_row
    assert pace is not None
    assert pace == pytest.approx(0.005)


def test_steps_may_be_kept_short_by_all_workers_but_one_before_they_are_filled_up() -> None:
    def filling(workers: int, short: int) -> FillingUp:
        filled = FillingUp(Pace(8), workers)
        for _ in range(10_000):
            for worker in range(workers):
                filled.observe(0.01, kept_short=worker < short)
        return filled

    assert filling(1, 1).stretch == pytest.approx(LEAST_STRETCH + STRETCH_PER_SHARE, rel=0.01)
    assert filling(2, 1).stretch == pytest.approx(LEAST_STRETCH, abs=0.05)
    assert filling(2, 2).stretch == pytest.approx(LEAST_STRETCH + STRETCH_PER_SHARE, rel=0.01)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_round_is_a_step_of_every_worker(workers: int) -> None:
    engine, network = team(workers, max_lanes=6)
    sink, rounds = RecordingSink(), Rounds(engine.workers)
    engine.submit(spec(count=6, num_steps=4), sink)
    for _ in range(4):
        assert [stats.rows_useful for stats in rounds.step(engine)] == [6 // workers] * workers
    assert rounds.step(engine) == []
    rounds.close()
    assert len(network.batches) == 4 * workers
    assert_reference_pixels(MODEL, spec(count=6, num_steps=4), sink.images)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_lanes_for_many_requests_change_nothing_while_there_are_few(
    workers: int, seed: int
) -> None:
    """A large request in a loop, small ones at random, steps under way in any order."""
    usual = decisions(workers, seed, max_lanes=8)
    assert decisions(workers, seed, max_lanes=24, usual_lanes=8) == usual
    assert decisions(workers, seed, max_lanes=24) != usual


def decisions(workers: int, seed: int, **lanes: int) -> list[tuple[float, ...]]:
    """What every step did, by whom."""
    clock, chance = FakeClock(), random.Random(seed)
    network = FakeNetwork(clock, 0.001, fixed_seconds=0.001, parts=workers)
    timed = {rows: 0.001 + 0.001 * rows for rows in (1, 4, 8)}
    engine = Engine(MODEL, network, step_seconds=timed, together=False, clock=clock, **lanes)
    large = RecordingSink()
    engine.submit(spec(count=60, num_steps=9), large)
    made: list[tuple[float, ...]] = []
    running: list[Step] = []
    for number in range(800):
        if large.outcome is not None:
            large = RecordingSink()
            engine.submit(spec(count=60, num_steps=9, seed=number), large)
        if chance.random() < 0.05:
            engine.submit(spec(num_steps=9, seed=number), RecordingSink())
        if chance.random() < 0.7 and (step := engine.begin()) is not None:
            running.append(step)
            made.append((step.worker, step.stats.lanes, step.stats.rows_useful))
        if running and chance.random() < 0.6:
            step = running.pop(chance.randrange(len(running)))
            step.run()
            stats = engine.finish(step)
            made.append((step.worker, stats.images_finished, stats.lanes_set_aside, clock.now))
    return made
