"""The engine under any sequence of events: add, cancel, step, fail, preempt, break, wait."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from diffusion.samplers import SAMPLERS, make_plan
from serving.engine import Engine, Step
from serving.image_cache import ENTRY_BYTES
from serving.lanes import LaneTable
from serving.request import DeadlineUnmeetable, GenerateSpec, Outcome, QueueFull
from tests.fakes import (
    FakeClock,
    FakeNetwork,
    RecordingSink,
    assert_reference_pixels,
    fake_model,
    spec,
)

MODEL = fake_model(num_train_timesteps=8, image_shape=(1, 1, 3))
MAX_LANES = 4
MAX_QUEUED_IMAGES = 24

SPECS = st.builds(
    spec,
    label=st.integers(0, 8),
    count=st.sampled_from([1, 2, 5, 16]),
    first_index=st.integers(0, 2),
    seed=st.integers(0, 3),
    sampler=st.sampled_from([*sorted(SAMPLERS), "dpmpp_2m"]),
    num_steps=st.sampled_from([1, 3, 8, 8]),
    guidance_scale=st.sampled_from([1.0, 0.0, 2.5]),
    preview_every=st.sampled_from([0, 0, 2]),
)


class EngineMachine(RuleBasedStateMachine):
    """An engine, and a ledger of everything that it has accepted."""

    cache_bytes = 0
    parts = 1
    usual_lanes: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.network = FakeNetwork(self.clock, 0.01, fixed_seconds=0.02, parts=self.parts)
        self.engine = Engine(
            MODEL,
            self.network,
            max_lanes=MAX_LANES,
            usual_lanes=self.usual_lanes,
            max_queued_images=MAX_QUEUED_IMAGES,
            max_queued_requests=8,
            cache_bytes=self.cache_bytes,
            clock=self.clock,
        )
        self.ledger: dict[int, tuple[GenerateSpec, RecordingSink]] = {}
        self.under_way: list[Step] = []

    def submit(self, request: GenerateSpec) -> None:
        sink = RecordingSink()
        try:
            self.ledger[self.engine.submit(request, sink)] = request, sink
        except (QueueFull, DeadlineUnmeetable):
            assert not sink.was_started
            assert not sink.endings

    @rule(request=SPECS)
    def add(self, request: GenerateSpec) -> None:
        self.submit(request)

    @rule(request=SPECS, seconds=st.floats(0.0, 1.0))
    def add_with_a_deadline(self, request: GenerateSpec, seconds: float) -> None:
        fields = {name: getattr(request, name) for name in request.__slots__}
        self.submit(spec(**{**fields, "deadline_seconds": self.clock.now + seconds}))

    @rule(times=st.integers(1, 5))
    def preempt(self, times: int) -> None:
        """Something small comes again and again: whoever fills the lanes is set aside."""
        for _ in range(times):
            self.submit(spec(count=3, num_steps=1))
            self.step(2)

    @precondition(lambda self: self.ledger)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.engine.cancel(data.draw(st.sampled_from(sorted(self.ledger))))

    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            stats = self.engine.step()
            if stats is not None:
                assert stats.lanes <= MAX_LANES
                assert stats.rows_useful <= 2 * MAX_LANES

    @rule(fault=st.sampled_from(["raise", "nan", "break"]), label=st.integers(0, 10))
    def fail(self, fault: str, label: int) -> None:
        """One rule for all faults: they end requests, and most are to be drawn to their end."""
        if fault == "raise":
            self.network.raise_on = {len(self.network.batches)}
        elif fault == "nan":
            self.network.nan_labels = {label}
        else:
            self.engine.end_all(Outcome.NETWORK_FAILED, "the engine broke")
            assert all(sink.outcome is not None for _, sink in self.ledger.values())
        self.step(1)
        self.network.raise_on, self.network.nan_labels = set(), set()

    def finish(self, which: int) -> None:
        step = self.under_way.pop(which)
        step.run()
        self.engine.finish(step)

    @rule(seconds=st.floats(0.0, 0.5))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def no_image_is_lost_or_in_two_places(self) -> None:
        batching = self.engine._batching
        tables = tables_of(self.engine)
        lanes = [
            (int(table.request[lane]), int(table.index[lane]))
            for table in tables
            for lane in range(table.count)
        ]
        assert len(set(lanes)) == len(lanes), "an image runs twice"
        for request in batching.book.all():
            slot, left = request.slot, request.images_left
            held = sum(slot == holder for holder, _ in lanes)
            shared = 0 if batching.sharing is None else batching.sharing.shared_by(request)
            assert batching.queue.unfinished[slot] == left - shared
            assert held + shared + batching.queue.waiting[slot] == left, "an image is nowhere"
        here = {request.slot for request in batching.book.all()}
        ended = set(np.flatnonzero(batching.book.ended).tolist())
        assert {slot for slot, _ in lanes} <= here | (ended if self.under_way else set())
        assert not here & ended, "the slot of a lane that is under way was given away"

    @invariant()
    def work_left_is_what_the_plans_say(self) -> None:
        batching = self.engine._batching
        for request in batching.book.all():
            plan = make_plan(request.spec.sampler, MODEL.schedule, request.spec.num_steps)
            rows = 1 + (plan.guided & request.spec.guided)
            left = int(batching.queue.waiting[request.slot]) * int(rows.sum())
            for table in tables_of(self.engine):
                mine = np.flatnonzero(table.request[: table.count] == request.slot)
                left += sum(int(rows[position:].sum()) for position in table.position[mine])
            assert batching.queue.work_left[request.slot] == left

    @invariant()
    def every_row_is_of_an_image_that_runs_is_finished_or_was_given_up(self) -> None:
        engine, totals = self.engine, self.engine.statistics().totals
        tables = tables_of(engine)
        running = sum(int(table.rows_computed[: table.count].sum()) for table in tables)
        begun = [step.stats for step in engine._under_way.values()]
        useful = totals.rows_useful + sum(stats.rows_useful for stats in begun)
        given_up = totals.rows_given_up + sum(stats.rows_given_up for stats in begun)
        assert useful == running + totals.rows_finished + given_up

    @invariant()
    def the_queue_is_bounded(self) -> None:
        statistics = self.engine.statistics()
        assert statistics.images_waiting <= MAX_QUEUED_IMAGES + MAX_LANES
        assert statistics.lanes_active <= MAX_LANES
        assert statistics.requests_waiting <= statistics.requests_active

    def teardown(self) -> None:
        while self.under_way:
            self.finish(0)
        for _ in range(10_000):
            if not self.engine.has_work:
                break
            self.engine.step()
        for request, sink in self.ledger.values():
            assert sink.outcome is not None, "a request without an end"
            if sink.outcome is Outcome.FINISHED:
                assert_reference_pixels(MODEL, request, sink.images)
        outcomes: Any = [sink.outcome for _, sink in self.ledger.values()]
        done = self.engine.statistics().totals.requests_done
        assert done == {outcome: outcomes.count(outcome) for outcome in Outcome}
        assert self.engine.statistics().lanes_set_aside == 0
        assert self.engine.statistics().images_waiting == 0
        assert len(self.engine._batching.queue._free_slots) == self.engine._batching.queue.slots


class ManyWorkersMachine(EngineMachine):
    """The same with three workers, whose steps are under way for as long as it pleases."""

    parts = 3

    @precondition(lambda self: len(self.under_way) < self.parts)
    @rule()
    def begin(self) -> None:
        step = self.engine.begin()
        if step is not None:
            running = [other for other in self.under_way if other.compute is not None]
            assert not (step.alone and running)
            self.under_way.append(step)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def finish_any(self, data: st.DataObject) -> None:
        self.finish(data.draw(st.integers(0, len(self.under_way) - 1)))


class CachingEngineMachine(EngineMachine):
    """The same with a cache of a few images, and equal images in flight."""

    cache_bytes = 20 * (ENTRY_BYTES + 3)

    @precondition(lambda self: self.ledger)
    @rule(data=st.data(), more=st.integers(0, 3))
    def ask_again(self, data: st.DataObject, more: int) -> None:
        """For what somebody has asked for before, or a part of it and more."""
        request, _ = self.ledger[data.draw(st.sampled_from(sorted(self.ledger)))]
        fields = {name: getattr(request, name) for name in request.__slots__}
        self.submit(spec(**{**fields, "first_index": more, "deadline_seconds": None}))


class ManyWorkersCachingMachine(ManyWorkersMachine, CachingEngineMachine):
    """All of it, and lanes for many requests only."""

    usual_lanes = 2


def tables_of(engine: Engine) -> tuple[LaneTable, ...]:
    """The lanes of every worker, and those that were set aside."""
    batching = engine._batching
    return (*(denoiser.lanes for denoiser in batching.denoisers), batching.lanes_aside)


TestEngineMachine = EngineMachine.TestCase
TestCachingEngineMachine = CachingEngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestCachingEngineMachine.settings = TestEngineMachine.settings
TestManyWorkersMachine = ManyWorkersMachine.TestCase
TestManyWorkersMachine.settings = TestEngineMachine.settings
TestManyWorkersCachingMachine = ManyWorkersCachingMachine.TestCase
TestManyWorkersCachingMachine.settings = TestEngineMachine.settings
