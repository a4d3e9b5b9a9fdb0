"""The engine, driven by hand: exact, fair, bounded, and every request ended once."""

import gc
import itertools
import random
import weakref

import numpy as np
import pytest

from serving.ageing import AGEING
from serving.engine import Engine, EngineModel, StepStats
from serving.request import DeadlineUnmeetable, GenerateSpec, Outcome, Pixels, QueueFull
from tests.fakes import (
    FakeClock,
    FakeNetwork,
    RecordingSink,
    assert_reference_pixels,
    fake_model,
    spec,
)

MODEL = fake_model()

MIXTURE = [
    spec(label=0, seed=2**64 - 1, sampler="ddpm", num_steps=7, count=3),
    spec(label=1, seed=1, sampler="ddim", num_steps=5, guidance_scale=2.5, first_index=4),
    spec(label=2, seed=1, sampler="dpmpp_2m", num_steps=9, guidance_scale=0.0, count=2),
    spec(label=3, seed=0, sampler="ddpm", num_steps=1),
    spec(label=10, seed=5, sampler="dpmpp_2m", num_steps=6),
    spec(label=4, seed=6, sampler="ddpm", num_steps=20, guidance_scale=7.5, count=11),
]


def finish(engine: Engine) -> list[StepStats]:
    """Steps until idle."""
    steps = []
    while engine.has_work:
        stats = engine.step()
        assert stats is not None
        steps.append(stats)
        assert len(steps) < 10_000
    assert engine.step() is None
    return steps


def submit(engine: Engine, request: GenerateSpec) -> tuple[int, RecordingSink]:
    sink = RecordingSink()
    return engine.submit(request, sink), sink


def draw(request: GenerateSpec, max_lanes: int = 64) -> dict[int, Pixels]:
    engine = Engine(MODEL, FakeNetwork(), max_lanes=max_lanes)
    _, sink = submit(engine, request)
    finish(engine)
    assert sink.outcome is Outcome.FINISHED
    return sink.images


def assert_empty(engine: Engine) -> None:
    statistics = engine.statistics()
    assert statistics.lanes_active == 0
    assert statistics.images_waiting == 0
    assert statistics.requests_active == 0
    assert not engine.has_work


# Exact


@pytest.mark.parametrize("max_lanes", [1, 3, 64])
@pytest.mark.parametrize("every", [0, 1, 4], ids=["together", "each step", "each 4th step"])
def test_any_mixture_draws_what_the_reference_loop_draws(max_lanes: int, every: int) -> None:
    engine = Engine(MODEL, FakeNetwork(), max_lanes=max_lanes)
    sinks = []
    for request in MIXTURE:
        sinks.append(submit(engine, request)[1])
        for _ in range(every):
            engine.step()
    finish(engine)
    for request, sink in zip(MIXTURE, sinks, strict=True):
        assert sink.outcome is Outcome.FINISHED
        assert_reference_pixels(MODEL, request, sink.images)
    assert_empty(engine)


def test_image_i_depends_neither_on_count_nor_on_first_index() -> None:
    together = draw(spec(count=10))
    parts = draw(spec(count=4)) | draw(spec(first_index=4, count=6), max_lanes=2)
    assert sorted(together) == sorted(parts) == list(range(10))
    for index, pixels in together.items():
        np.testing.assert_array_equal(pixels, parts[index])
    assert not np.array_equal(together[0], together[1])


def test_a_request_larger_than_the_engine_takes_lanes_as_they_come_free() -> None:
    network = FakeNetwork()
    engine = Engine(MODEL, network, max_lanes=8)
    request = spec(count=100, num_steps=3)
    _, sink = submit(engine, request)
    steps = finish(engine)
    assert_reference_pixels(MODEL, request, sink.images)
    assert max(stats.lanes for stats in steps) == 8
    assert len(steps) == -(-100 // 8) * 3, "a lane stood free while images waited"


def test_a_guided_image_is_one_lane_and_two_rows() -> None:
    network = FakeNetwork()
    engine = Engine(MODEL, network, max_lanes=4, padded_rows=lambda rows: rows + 3)
    submit(engine, spec(count=2, guidance_scale=3.0, num_steps=2))
    submit(engine, spec(count=1, guidance_scale=1.0, num_steps=2))
    stats = engine.step()
    assert stats is not None
    assert (stats.lanes, stats.rows_useful, stats.rows) == (3, 5, 8)
    assert [len(batch) for batch in network.batches] == [5]


def test_previews_are_the_x_0_estimates_after_every_kth_step_and_change_no_pixel() -> None:
    engine = Engine(MODEL, FakeNetwork(), max_lanes=8)
    request = spec(count=2, num_steps=7, preview_every=2, sampler="dpmpp_2m", first_index=3)
    _, sink = submit(engine, request)
    _, other = submit(engine, spec(num_steps=9))
    steps = finish(engine)
    assert sorted(sink.previews) == [(i, k) for i in (3, 4) for k in (2, 4, 6)]
    assert not other.previews
    assert sum(stats.previews for stats in steps) == 6
    assert_reference_pixels(MODEL, request, sink.images)
    # DPM-Solver++ ends in x = x_0, so a plan whose last step is the 6th has it for its image; the
    # estimates before are closer to it the later they are.
    last = sink.images[3].astype(float)
    distances = [np.abs(sink.previews[3, k] - last).mean() for k in (2, 4, 6)]
    assert distances == sorted(distances, reverse=True)


def test_no_preview_is_made_of_a_finished_image() -> None:
    engine = Engine(MODEL, FakeNetwork())
    _, sink = submit(engine, spec(num_steps=4, preview_every=4))
    finish(engine)
    assert not sink.previews
    assert len(sink.images) == 1


# Cancellation


@pytest.mark.parametrize("steps_before", [0, 1, 3, 5], ids=["queued", "first", "middle", "last"])
def test_cancelling_frees_the_lanes_at_the_next_step_and_changes_nobody_else(
    steps_before: int,
) -> None:
    network = FakeNetwork()
    engine = Engine(MODEL, network, max_lanes=8)
    others = [spec(seed=1, num_steps=9, count=2), spec(seed=2, num_steps=6, guidance_scale=3.0)]
    sinks = [submit(engine, others[0])[1]]
    request_id, cancelled = submit(engine, spec(label=9, num_steps=6, count=3))
    sinks.append(submit(engine, others[1])[1])
    for _ in range(steps_before):
        engine.step()
    engine.cancel(request_id)
    engine.cancel(request_id)
    calls = len(network.batches)
    stats = engine.step()
    assert stats is not None
    assert stats.requests_done[Outcome.CANCELLED] == 1
    assert cancelled.outcome is Outcome.CANCELLED
    assert cancelled.was_started == (steps_before > 0)
    assert all(9 not in batch for batch in network.batches[calls:])
    finish(engine)
    engine.cancel(request_id)
    for request, sink in zip(others, sinks, strict=True):
        assert_reference_pixels(MODEL, request, sink.images)
    assert_empty(engine)


def test_freed_lanes_are_taken_in_the_same_step() -> None:
    network = FakeNetwork()
    engine = Engine(MODEL, network, max_lanes=4)
    request_id, _ = submit(engine, spec(label=1, count=4, num_steps=50))
    engine.step()
    _, waiting = submit(engine, spec(label=2, count=4, num_steps=50))
    engine.step()
    assert not waiting.was_started
    engine.cancel(request_id)
    engine.step()
    assert network.batches[-1] == [2, 2, 2, 2]


def test_cancelling_a_large_request_ends_its_waiting_images_too() -> None:
    engine = Engine(MODEL, FakeNetwork(), max_lanes=4)
    request_id, sink = submit(engine, spec(count=1000, num_steps=2))
    for _ in range(3):
        engine.step()
    engine.cancel(request_id)
    engine.step()
    assert sink.outcome is Outcome.CANCELLED
    assert len(sink.images) == 4
    assert_empty(engine)


def test_a_sink_may_cancel_from_within() -> None:
    class Impatient(RecordingSink):
        def image(self, index: int, pixels: Pixels) -> None:
            super().image(index, pixels)
            engine.cancel(request_id)

    engine = Engine(MODEL, FakeNetwork(), max_lanes=1)
    sink = Impatient()
    request_id = engine.submit(spec(count=5, num_steps=2), sink)
    finish(engine)
    assert list(sink.images) == [0]
    assert sink.outcome is Outcome.CANCELLED
    assert_empty(engine)


# Deadlines


def test_expired_work_never_enters_a_batch() -> None:
    clock = FakeClock()
    network = FakeNetwork(clock=clock)
    engine = Engine(MODEL, network, max_lanes=1, clock=clock)
    submit(engine, spec(label=1, num_steps=10))
    _, late = submit(engine, spec(label=2, num_steps=10, deadline_seconds=clock.now + 0.05))
    finish(engine)
    assert late.outcome is Outcome.DEADLINE_EXCEEDED
    assert not late.was_started
    assert all(2 not in batch for batch in network.batches)


def test_a_deadline_that_passes_while_running_frees_the_lanes_within_a_step() -> None:
    clock = FakeClock()
    network = FakeNetwork(clock=clock, seconds_per_row=0.1)
    engine = Engine(MODEL, network, max_lanes=2, clock=clock)
    other = spec(label=1, num_steps=20)
    _, sink = submit(engine, other)
    _, late = submit(engine, spec(label=2, num_steps=19, deadline_seconds=clock.now + 1.0))
    waited_for = clock.now + 1.0
    while late.outcome is None:
        engine.step()
    assert late.outcome is Outcome.DEADLINE_EXCEEDED
    assert clock.now - waited_for <= 2 * 0.1  # a row of its own each step, and one of the other
    finish(engine)
    assert_reference_pixels(MODEL, other, sink.images)
    assert not late.images


def test_half_the_needed_time_is_too_little_and_one_and_a_half_times_is_enough() -> None:
    outcomes = []
    for factor in (0.5, 1.5):
        clock = FakeClock()
        engine = Engine(MODEL, FakeNetwork(clock=clock, seconds_per_row=0.01), clock=clock)
        needed_seconds = 10 * 0.01
        _, sink = submit(
            engine, spec(num_steps=10, deadline_seconds=1000 + factor * needed_seconds)
        )
        finish(engine)
        outcomes.append(sink.outcome)
    assert outcomes == [Outcome.DEADLINE_EXCEEDED, Outcome.FINISHED]


def test_waiting_and_running_time_are_told_apart() -> None:
    clock = FakeClock()
    engine = Engine(MODEL, FakeNetwork(clock=clock, seconds_per_row=0.5), max_lanes=1, clock=clock)
    submit(engine, spec(num_steps=2))
    _, second = submit(engine, spec(num_steps=4))
    finish(engine)
    _, queue_seconds, compute_seconds, detail = second.endings[0]
    assert (queue_seconds, compute_seconds, detail) == (1.0, 2.0, "")


# Failures


def test_nan_in_one_lane_ends_that_request_and_leaves_the_others_unchanged_to_the_bit() -> None:
    network = FakeNetwork(nan_labels={9}, nan_calls={3})
    # Time stands still, so that no pace is known and all of them share the batch.
    engine = Engine(MODEL, network, max_lanes=16, clock=FakeClock())
    sinks = [submit(engine, request)[1] for request in MIXTURE[:5]]
    _, bad = submit(engine, spec(label=9, count=6, num_steps=8))
    steps = finish(engine)
    assert bad.outcome is Outcome.NETWORK_FAILED
    assert "NaN" in bad.endings[0][3]
    assert not bad.images
    assert len(network.batches) >= 4
    assert all(9 not in batch for batch in network.batches[4:])
    assert sum(stats.nonfinite_lanes for stats in steps) == 6
    for request, sink in zip(MIXTURE[:5], sinks, strict=True):
        assert_reference_pixels(MODEL, request, sink.images)
    assert_empty(engine)


def test_a_lane_that_fails_in_its_last_step_gives_no_image() -> None:
    network = FakeNetwork(nan_labels={9}, nan_calls={3}, nan=float("inf"))
    engine = Engine(MODEL, network)
    _, bad = submit(engine, spec(label=9, num_steps=4, count=2, preview_every=1))
    finish(engine)
    assert bad.outcome is Outcome.NETWORK_FAILED
    assert not bad.images
    assert len(bad.previews) == 2 * 3


def test_a_call_that_raises_ends_the_requests_of_its_batch_once_and_the_loop_goes_on() -> None:
    network = FakeNetwork(raise_on={2})
    engine = Engine(MODEL, network, max_lanes=4)
    _, in_batch = submit(engine, spec(num_steps=5, count=3))
    _, partly = submit(engine, spec(num_steps=5, count=8))
    _, waiting = submit(engine, spec(num_steps=6, count=9))
    steps = finish(engine)
    assert in_batch.outcome is partly.outcome is Outcome.NETWORK_FAILED
    assert "RuntimeError" in in_batch.endings[0][3]
    assert waiting.outcome is Outcome.FINISHED
    assert_reference_pixels(MODEL, spec(num_steps=6, count=9), waiting.images)
    assert [stats.network_failures for stats in steps[:4]] == [0, 0, 1, 0]
    assert steps[2].requests_done == {Outcome.NETWORK_FAILED: 2}
    totals = engine.statistics().totals
    assert totals.network_failures == 1
    assert totals.rows_finished == 9 * 6
    assert totals.rows_given_up == 3 * 4  # two steps that were fine, and the one that raised
    assert_empty(engine)


@pytest.mark.parametrize("method", ["started", "preview", "image", "done"])
def test_a_sink_that_raises_harms_nobody_else(method: str) -> None:
    class Broken(RecordingSink):
        pass

    def fail(*_: object) -> None:
        raise OSError("the reader has gone")

    setattr(Broken, method, fail)
    engine = Engine(MODEL, FakeNetwork(), max_lanes=8)
    broken = Broken()
    engine.submit(spec(count=3, preview_every=2), broken)
    _, other = submit(engine, MIXTURE[0])
    finish(engine)
    assert_reference_pixels(MODEL, MIXTURE[0], other.images)
    if method != "done":
        assert broken.outcome is Outcome.CANCELLED
    assert_empty(engine)


def test_end_all_ends_what_waits_and_what_runs() -> None:
    engine = Engine(MODEL, FakeNetwork(), max_lanes=2)
    sinks = [submit(engine, spec(count=2))[1] for _ in range(3)]
    engine.step()
    stats = engine.end_all(Outcome.CANCELLED, "closing")
    assert [sink.outcome for sink in sinks] == [Outcome.CANCELLED] * 3
    assert stats.requests_done == {Outcome.CANCELLED: 3}
    assert stats.rows_given_up == 2
    assert_empty(engine)


# Fair


def test_a_small_request_overtakes_a_large_one() -> None:
    engine = Engine(MODEL, FakeNetwork(), max_lanes=4)
    _, large = submit(engine, spec(count=1000, num_steps=5))
    for _ in range(7):
        engine.step()
    _, small = submit(engine, spec(num_steps=5))
    steps = 0
    while small.outcome is None:
        engine.step()
        steps += 1
    assert steps == 5, "it waited for a lane"
    assert large.outcome is None


@pytest.mark.parametrize("images_before", [10, 500, 900, 990])
def test_it_overtakes_wherever_the_large_one_stands(images_before: int) -> None:
    engine = Engine(MODEL, FakeNetwork(), max_lanes=4)
    _, large = submit(engine, spec(count=1000, num_steps=2))
    while len(large.images) < images_before:
        engine.step()
    _, small = submit(engine, spec(num_steps=2))
    for _ in range(2):
        engine.step()
    assert small.outcome is Outcome.FINISHED


def test_a_lane_set_aside_at_any_step_goes_on_to_the_same_bits() -> None:
    """Every second step goes to small requests that take all lanes but the large one's last."""
    for sampler in ("ddpm", "ddim", "dpmpp_2m", "ddim_stochastic"):
        engine = Engine(MODEL, FakeNetwork(), max_lanes=3, clock=FakeClock())
        large = spec(label=8, count=7, num_steps=9, sampler=sampler, guidance_scale=1.5)
        _, sink = submit(engine, large)
        others: list[tuple[GenerateSpec, RecordingSink]] = []
        while sink.outcome is None:
            engine.step()
            small = spec(label=1, seed=len(others), count=3, num_steps=1)
            others.append((small, submit(engine, small)[1]))
            engine.step()
        finish(engine)
        totals = engine.statistics().totals
        assert totals.lanes_set_aside > 40, "hardly ever interrupted"
        assert_reference_pixels(MODEL, large, sink.images)
        for small, other in others:
            assert_reference_pixels(MODEL, small, other.images)
        assert_empty(engine)


def test_cancelling_frees_the_lanes_that_were_set_aside() -> None:
    engine = Engine(MODEL, FakeNetwork(), max_lanes=4, clock=FakeClock())
    request_id, large = submit(engine, spec(count=50, num_steps=20))
    engine.step()
    _, small = submit(engine, spec(count=3, num_steps=5))
    engine.step()
    assert engine.statistics().lanes_set_aside == 3
    assert engine.statistics().images_waiting == 46 + 3
    engine.cancel(request_id)
    engine.step()
    assert large.outcome is Outcome.CANCELLED
    assert engine.statistics().lanes_set_aside == 0
    finish(engine)
    assert_reference_pixels(MODEL, spec(count=3, num_steps=5), small.images)
    assert_empty(engine)


def test_with_fifo_nobody_overtakes() -> None:
    engine = Engine(MODEL, FakeNetwork(), max_lanes=4, policy="fifo")
    _, large = submit(engine, spec(count=40, num_steps=5))
    engine.step()
    _, small = submit(engine, spec(num_steps=5))
    finish(engine)
    assert engine.statistics().totals.lanes_set_aside == 0
    assert large.outcome is small.outcome is Outcome.FINISHED
    assert small.endings[0][1] > 0
    assert len(large.images) == 40
    order = Engine(MODEL, FakeNetwork(), max_lanes=4, policy="fifo")
    _, large = submit(order, spec(count=40, num_steps=5))
    _, small = submit(order, spec(num_steps=5))
    while small.outcome is None:
        order.step()
    assert large.outcome is Outcome.FINISHED


def test_an_endless_stream_of_small_requests_does_not_starve_a_large_one() -> None:
    clock = FakeClock()
    engine = Engine(MODEL, FakeNetwork(clock=clock), max_lanes=4, clock=clock)
    large_work = 60 * 3
    _, large = submit(engine, spec(label=9, count=60, num_steps=3))
    begin, rows = clock.now, 0
    small_finished = 0
    active: list[RecordingSink] = []
    while large.outcome is None:
        small_finished += sum(sink.outcome is Outcome.FINISHED for sink in active)
        active = [sink for sink in active if sink.outcome is None]
        while len(active) < 8:  # twice the lanes: one always waits
            active.append(submit(engine, spec(label=1, num_steps=3))[1])
        stats = engine.step()
        assert stats is not None
        rows += stats.rows_useful
        assert rows < 20 * large_work, "starved"
    # After work / AGEING rows of others its turn comes; that is its share from then on.
    assert rows <= 2 * large_work / AGEING + 2 * 4 * 3
    assert clock.now - begin == pytest.approx(rows * 0.01)
    assert small_finished > 60, "the small ones were not served meanwhile"


# Bounded


def test_the_queue_is_bounded_in_images_and_says_when_to_come_back() -> None:
    clock = FakeClock()
    network = FakeNetwork(clock=clock, seconds_per_row=0.01)
    engine = Engine(MODEL, network, max_lanes=4, max_queued_images=20, clock=clock)
    submit(engine, spec(count=20, num_steps=5))
    refused = RecordingSink()
    with pytest.raises(QueueFull) as before_the_first_step:
        engine.submit(spec(count=1, num_steps=5), refused)
    assert before_the_first_step.value.retry_after_seconds > 0
    engine.step()  # four images have lanes now
    submit(engine, spec(count=4, num_steps=5))
    with pytest.raises(QueueFull) as refusal:
        engine.submit(spec(count=8, num_steps=5), refused)
    assert (refusal.value.limit, refusal.value.waiting) == (20, 20)
    # Eight images of five rows have to go, at 0.01 s per row.
    assert refusal.value.retry_after_seconds == pytest.approx(8 * 5 * 0.01, rel=0.1)
    begin = clock.now
    while engine.statistics().images_waiting > 12:
        engine.step()
    assert clock.now - begin == pytest.approx(refusal.value.retry_after_seconds, rel=0.5)
    finish(engine)
    assert not refused.endings
    assert not refused.was_started


def test_refused_requests_leave_no_trace() -> None:
    engine = Engine(MODEL, FakeNetwork(), max_lanes=1, max_queued_images=2)
    submit(engine, spec(count=2))
    for _ in range(100):
        with pytest.raises(QueueFull):
            engine.submit(spec(), RecordingSink())
    finish(engine)
    submit(engine, spec(count=2))
    finish(engine)
    assert engine.statistics().totals.images_finished == 4


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"label": -1}, "label"),
        ({"label": 11}, "label"),
        ({"count": 0}, "count"),
        ({"count": 4097}, "count"),
        ({"first_index": -1}, "first_index"),
        ({"first_index": 2**32}, "first_index"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 51}, "num_steps"),
        ({"preview_every": -1}, "preview_every"),
        ({"sampler": "euler"}, "sampler"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_queued(
    changes: dict[str, object], field: str
) -> None:
    engine = Engine(MODEL, FakeNetwork())
    with pytest.raises(ValueError, match=field):
        engine.submit(spec(**changes), RecordingSink())
    assert_empty(engine)


def test_the_last_legal_values_run() -> None:
    engine = Engine(MODEL, FakeNetwork())
    _, sink = submit(
        engine,
        spec(label=10, seed=2**64 - 1, first_index=2**32 - 1, num_steps=50, preview_every=50),
    )
    finish(engine)
    assert list(sink.images) == [2**32 - 1]


@pytest.mark.parametrize("cache_bytes", [0, 10_000])
def test_an_engine_that_is_let_go_keeps_no_memory_until_garbage_is_collected(
    cache_bytes: int,
) -> None:
    """A network is megabytes and threads, and every reload of a bundle replaces one."""
    network = FakeNetwork()
    engine = Engine(MODEL, network, max_lanes=4, cache_bytes=cache_bytes)
    for request in MIXTURE:
        submit(engine, request)
    finish(engine)
    engine.end_all(Outcome.NETWORK_FAILED, "it starts anew")
    kept = weakref.ref(network)
    gc.disable()
    try:
        del engine, network
        assert kept() is None
    finally:
        gc.enable()


def test_an_engine_without_work_does_nothing() -> None:
    network = FakeNetwork()
    engine = Engine(MODEL, network)
    assert engine.step() is None
    assert network.batches == []


def test_an_engine_without_lanes_is_refused() -> None:
    with pytest.raises(ValueError, match="max_lanes"):
        Engine(MODEL, FakeNetwork(), max_lanes=0)


# All of it at once


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_random_script_ends_every_request_once_with_the_right_pixels(seed: int) -> None:
    """300 mixed requests, 20 % cancelled, some expired, a few faults; totals equal the ledger."""
    script = random.Random(seed)
    clock = FakeClock()
    network = FakeNetwork(clock=clock, seconds_per_row=0.001, nan_labels={9}, raise_on={40, 400})
    model = EngineModel(MODEL.image_shape, MODEL.null_label, MODEL.schedule, MODEL.embedding_table)
    engine = Engine(model, network, max_lanes=12, max_queued_images=150, clock=clock)
    ledger: dict[int, tuple[GenerateSpec, RecordingSink]] = {}
    refused, totals = 0, StepStats()
    while len(ledger) < 300:
        for _ in range(script.choice([0, 0, 1, 2, 5])):
            refused += not entered(engine, random_spec(script, clock.now), ledger)
        for request_id in ledger:
            if script.random() < 0.2 / max(len(ledger), 10):
                engine.cancel(request_id)
        if script.random() < 0.03:
            clock.now += 0.5  # something else had the machine
        step = engine.step()
        if step is not None:
            assert step.lanes <= 12
            assert step.rows_useful == (len(network.batches[-1]) if step.lanes else 0)
            add(totals, step)
        assert engine.statistics().images_waiting <= 150 + 12  # those set aside wait too
    for request_id in script.sample(sorted(ledger), 60):
        engine.cancel(request_id)
    for step in finish(engine):
        add(totals, step)
    outcomes = [sink.outcome for _, sink in ledger.values()]
    assert None not in outcomes
    assert refused > 0
    for outcome in Outcome:
        happened = outcomes.count(outcome)
        assert happened > 0, outcome
        assert totals.requests_done[outcome] == happened
        assert engine.statistics().totals.requests_done[outcome] == happened
    delivered = sum(len(sink.images) for _, sink in ledger.values())
    assert totals.images_finished == engine.statistics().totals.images_finished == delivered
    of_images = sum(len(sink.images) * request.work_per_image for request, sink in ledger.values())
    counted = engine.statistics().totals
    assert counted.rows_finished == of_images
    assert counted.rows_finished + counted.rows_given_up == counted.rows_useful
    for request, sink in ledger.values():
        if sink.outcome is Outcome.FINISHED:
            assert_reference_pixels(model, request, sink.images)
    assert_empty(engine)
    assert engine._batching.lanes_in_use == 0
    assert len(engine._batching.queue._free_slots) == engine._batching.queue.slots


def entered(
    engine: Engine, request: GenerateSpec, ledger: dict[int, tuple[GenerateSpec, RecordingSink]]
) -> bool:
    """Submits and writes down; whether it was accepted."""
    sink = RecordingSink()
    try:
        ledger[engine.submit(request, sink)] = request, sink
    except (QueueFull, DeadlineUnmeetable):
        return False
    return True


def random_spec(script: random.Random, now: float) -> GenerateSpec:
    return spec(
        label=script.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 10] * 5 + [9]),
        count=script.choice([1, 1, 1, 2, 5, 30]),
        first_index=script.choice([0, 3]),
        seed=script.getrandbits(64),
        sampler=script.choice(["ddpm", "ddim", "dpmpp_2m", "ddim_stochastic"]),
        num_steps=script.choice([1, 2, 5, 13]),
        guidance_scale=script.choice([1.0, 1.0, 0.0, 2.5]),
        preview_every=script.choice([0, 0, 3]),
        deadline_seconds=now + script.uniform(0, 2) if script.random() < 0.2 else None,
    )


def add(totals: StepStats, step: StepStats) -> None:
    totals.images_finished += step.images_finished
    for outcome, requests in step.requests_done.items():
        totals.requests_done[outcome] = totals.requests_done.get(outcome, 0) + requests


def test_more_lanes_are_used_while_there_are_two_requests_for_each_of_them() -> None:
    engine = Engine(MODEL, FakeNetwork(), max_lanes=6, usual_lanes=2)
    sinks = [RecordingSink() for _ in range(30)]

    def lanes_of_a_step() -> int:
        stats = engine.step()
        assert stats is not None
        assert stats.lanes_set_aside == 0, "they come free by themselves"
        return stats.lanes

    for sink in sinks[:11]:
        engine.submit(spec(num_steps=3), sink)
    assert engine.statistics().lanes_capacity == 2
    assert lanes_of_a_step() == 2
    for sink in sinks[11:]:
        engine.submit(spec(num_steps=3), sink)
    assert engine.statistics().lanes_capacity == 6
    lanes = [lanes_of_a_step()]
    assert lanes == [6]
    while engine.statistics().requests_active >= 12:
        lanes.append(lanes_of_a_step())
    assert set(lanes) == {6}
    assert engine.statistics().lanes_capacity == 2
    while engine.has_work:
        lanes.append(lanes_of_a_step())
    assert lanes[-1] <= 2, "those that come free are not given out again"
    assert all(after <= max(before, 2) for before, after in itertools.pairwise(lanes))
    assert {sink.outcome for sink in sinks} == {Outcome.FINISHED}


@pytest.mark.parametrize("usual_lanes", [0, 5])
def test_usual_lanes_are_some_of_the_lanes(usual_lanes: int) -> None:
    with pytest.raises(ValueError, match=rf"usual_lanes must be in 1\.\.4, got {usual_lanes}"):
        Engine(MODEL, FakeNetwork(), max_lanes=4, usual_lanes=usual_lanes)
