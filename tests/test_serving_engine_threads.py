"""The engine's thread: hands over, takes turns, drains, and leaves no request without an end."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serving.engine import Engine, Step, StepStats
from serving.engine_threads import (
    HANG_SECONDS,
    HANG_STEPS,
    EngineThreads,
    EngineUnavailable,
)
from serving.request import Outcome, QueueFull
from serving.stepping import RESTART_WINDOW_SECONDS
from tests.fakes import (
    FakeClock,
    FakeNetwork,
    RecordingSink,
    assert_reference_pixels,
    fake_model,
    spec,
)

MODEL = fake_model()
PATIENCE_SECONDS = 30.0


@contextmanager
def running(thread: EngineThreads) -> Iterator[EngineThreads]:
    thread.start()
    try:
        yield thread
    finally:
        assert thread.stop(PATIENCE_SECONDS)


def one_engine(network: FakeNetwork, max_queued_images: int = 4096) -> EngineThreads:
    engine = Engine(MODEL, network, max_lanes=8, max_queued_images=max_queued_images)
    return EngineThreads({"fake": engine})


def until(condition: threading.Event) -> None:
    assert condition.wait(PATIENCE_SECONDS)


def test_requests_from_many_threads_are_all_drawn_as_alone() -> None:
    requests = [spec(label=n % 10, seed=n, count=1 + n % 3, num_steps=1 + n % 7) for n in range(60)]
    sinks = [RecordingSink() for _ in requests]
    with running(one_engine(FakeNetwork())) as thread:

        def client(first: int) -> None:
            for number in range(first, len(requests), 4):
                thread.submit("fake", requests[number], sinks[number])

        clients = [threading.Thread(target=client, args=(first,)) for first in range(4)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        assert thread.drain(PATIENCE_SECONDS)
        assert thread.alive
    for request, sink in zip(requests, sinks, strict=True):
        assert sink.outcome is Outcome.FINISHED
        assert_reference_pixels(MODEL, request, sink.images)


@pytest.mark.parametrize("workers", [1, 2])
def test_start_returns_when_every_engine_was_warmed_up_on_every_thread_that_steps_it(
    monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    warmed: list[str] = []
    monkeypatch.setattr(
        Engine, "warm_up", lambda _self: warmed.append(threading.current_thread().name)
    )
    network = FakeNetwork(parts=workers)
    engines = {name: Engine(MODEL, network, max_lanes=2) for name in ("one", "two")}
    with running(EngineThreads(engines)):
        names = [f"engine-{number}" for number in range(workers) for _ in engines]
        assert sorted(warmed) == names


def test_an_engine_that_cannot_be_warmed_up_ends_the_thread_and_what_it_has_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_self: Engine) -> None:
        raise RuntimeError("the device fell off")

    monkeypatch.setattr(Engine, "warm_up", fail)
    thread, sink = one_engine(FakeNetwork()), RecordingSink()
    thread.submit("fake", spec(), sink)
    thread.start()
    assert not thread.alive
    assert sink.outcome is Outcome.NETWORK_FAILED
    with pytest.raises(EngineUnavailable):
        thread.submit("fake", spec(), RecordingSink())


def test_queue_full_is_said_to_the_caller_at_once_while_a_step_runs() -> None:
    gate, stepping = threading.Event(), threading.Event()
    network = FakeNetwork(gate=gate, on_call=lambda _call: stepping.set())
    with running(one_engine(network, max_queued_images=10)) as thread:
        thread.submit("fake", spec(count=8), RecordingSink())
        until(stepping)  # it hangs in its first step until the gate opens
        thread.submit("fake", spec(count=10), RecordingSink())
        begin = time.monotonic()
        with pytest.raises(QueueFull):
            thread.submit("fake", spec(), RecordingSink())
        assert time.monotonic() - begin < 5.0  # not: after the step
        gate.set()
        assert thread.drain(PATIENCE_SECONDS)


def test_an_unknown_model_is_a_key_error_and_a_bad_spec_a_value_error() -> None:
    thread = one_engine(FakeNetwork())
    with pytest.raises(KeyError):
        thread.submit("other", spec(), RecordingSink())
    with pytest.raises(ValueError, match="label"):
        thread.submit("fake", spec(label=99), RecordingSink())


def test_cancel_ends_a_request_once_however_often_and_late_it_comes() -> None:
    gate, stepping = threading.Event(), threading.Event()
    network = FakeNetwork(gate=gate, on_call=lambda _call: stepping.set())
    with running(one_engine(network)) as thread:
        sink, other = RecordingSink(), RecordingSink()
        handle = thread.submit("fake", spec(label=9, num_steps=50, count=20), sink)
        until(stepping)
        thread.submit("fake", spec(label=1), other)
        for _ in range(3):
            thread.cancel(handle)
        gate.set()
        until(sink.ended)
        until(other.ended)
        thread.cancel(handle)
        assert thread.drain(PATIENCE_SECONDS)
    assert sink.outcome is Outcome.CANCELLED
    assert other.outcome is Outcome.FINISHED
    assert sum(9 in batch for batch in network.batches) <= 2  # the one that ran, and one more


def shares(costs: dict[str, float], requests: dict[str, int]) -> tuple[list[str], dict[str, float]]:
    """Whose turn it was, and the seconds of each, with so many seconds a row for each model."""
    clock = FakeClock()
    turns: list[str] = []
    seconds = dict.fromkeys(costs, 0.0)

    def observe(name: str, stats: StepStats) -> None:
        turns.append(name)
        if len(set(turns[-20:])) > 1:  # while more than one has work
            seconds[name] += stats.total_seconds

    engines = {
        name: Engine(MODEL, FakeNetwork(clock, cost), max_lanes=1, clock=clock)
        for name, cost in costs.items()
    }
    thread = EngineThreads(engines, on_step=observe, clock=clock)
    for name, num_steps in requests.items():
        thread.submit(name, spec(num_steps=num_steps), RecordingSink())
    with running(thread):
        assert thread.drain(PATIENCE_SECONDS)
    return turns, seconds


def test_engines_with_work_take_turns() -> None:
    turns, _ = shares({"a": 0.125, "b": 0.125, "c": 0.125}, {"a": 5, "b": 5})
    assert turns == ["a", "b"] * 5


def test_models_share_the_time_equally_whatever_their_steps_cost() -> None:
    turns, seconds = shares({"quick": 0.125, "slow": 0.5}, {"quick": 40, "slow": 10})
    assert seconds["quick"] == pytest.approx(seconds["slow"], abs=0.5)
    assert turns.index("slow") < 4
    for first in range(0, 40, 10):
        assert turns[first : first + 10].count("slow") in (1, 2, 3)


def test_a_model_cannot_save_up_time_by_having_no_work() -> None:
    clock, turns = FakeClock(), []
    engines = {name: Engine(MODEL, FakeNetwork(clock, 0.125), clock=clock) for name in "ab"}
    late = RecordingSink()

    def observe(name: str, _stats: StepStats) -> None:
        turns.append(name)
        if len(turns) == 20:  # b has had nothing to do until now
            thread.submit("b", spec(num_steps=20), late)

    thread = EngineThreads(engines, on_step=observe, clock=clock)
    thread.submit("a", spec(num_steps=40), RecordingSink())
    with running(thread):
        assert thread.drain(PATIENCE_SECONDS)
    assert turns[:20] == ["a"] * 20
    assert turns[20:60].count("a") == 20
    assert max(len(run) for run in "".join(turns[20:]).split("a")) <= 2, "it caught up"


def test_a_replaced_engine_finishes_what_it_has_accepted_and_takes_nothing_new() -> None:
    gate, stepping = threading.Event(), threading.Event()
    old_network = FakeNetwork(gate=gate, on_call=lambda _call: stepping.set())
    new_network = FakeNetwork()
    old, new = (Engine(MODEL, network, max_lanes=8) for network in (old_network, new_network))
    thread = EngineThreads({"fake": old})
    sinks = [RecordingSink() for _ in range(4)]
    with running(thread):
        thread.submit("fake", spec(label=1, num_steps=5), sinks[0])
        until(stepping)
        thread.submit("fake", spec(label=1, num_steps=5), sinks[1])
        cancelled = thread.submit("fake", spec(label=4, num_steps=50), sinks[2])
        thread.replace("fake", new)
        thread.submit("fake", spec(label=2, num_steps=5), sinks[3])
        thread.cancel(cancelled)
        gate.set()
        assert thread.drain(PATIENCE_SECONDS)
        assert len(thread._stepping.turns.seats) == 1, "the old engine is kept"
    outcomes = [sink.outcome for sink in sinks]
    assert outcomes == [*[Outcome.FINISHED] * 2, Outcome.CANCELLED, Outcome.FINISHED]
    assert {label for batch in old_network.batches for label in batch} == {1}
    assert {label for batch in new_network.batches for label in batch} == {2}


def test_every_step_is_reported_and_an_observer_that_raises_stops_nothing() -> None:
    seen: list[StepStats] = []

    def observer(name: str, stats: StepStats) -> None:
        assert name == "fake"
        seen.append(stats)
        raise OSError("the registry is gone")

    thread = EngineThreads({"fake": Engine(MODEL, FakeNetwork())}, on_step=observer)
    sink = RecordingSink()
    with running(thread):
        thread.submit("fake", spec(num_steps=4), sink)
        assert thread.drain(PATIENCE_SECONDS)
    assert sink.outcome is Outcome.FINISHED
    assert len(seen) == 4
    assert sum(stats.images_finished for stats in seen) == 1


def test_drain_finishes_what_was_accepted_and_accepts_nothing_more() -> None:
    with running(one_engine(FakeNetwork())) as thread:
        sinks = [RecordingSink() for _ in range(20)]
        for sink in sinks:
            thread.submit("fake", spec(count=5), sink)
        assert thread.drain(PATIENCE_SECONDS)
        assert all(sink.outcome is Outcome.FINISHED for sink in sinks)
        with pytest.raises(EngineUnavailable, match="draining"):
            thread.submit("fake", spec(), RecordingSink())


def test_drain_gives_up_when_its_time_is_up() -> None:
    gate = threading.Event()
    with running(one_engine(FakeNetwork(gate=gate))) as thread:
        thread.submit("fake", spec(), RecordingSink())
        assert not thread.drain(0.05)
        gate.set()
        assert thread.drain(PATIENCE_SECONDS)


def test_stop_ends_what_is_left_as_cancelled() -> None:
    gate, stepping = threading.Event(), threading.Event()
    network = FakeNetwork(gate=gate, on_call=lambda _call: stepping.set())
    thread = one_engine(network)
    thread.start()
    sinks = [RecordingSink() for _ in range(3)]
    for sink in sinks[:2]:
        thread.submit("fake", spec(num_steps=50, count=20), sink)
    until(stepping)
    thread.submit("fake", spec(), sinks[2])  # is in the inbox yet
    assert not thread.stop(0.01)
    gate.set()
    assert thread.stop(PATIENCE_SECONDS)
    assert [sink.outcome for sink in sinks] == [Outcome.CANCELLED] * 3
    assert not thread.alive
    with pytest.raises(EngineUnavailable, match="stopped"):
        thread.submit("fake", spec(), RecordingSink())
    assert thread.stop()


def test_a_thread_that_was_never_started_ends_its_requests_when_stopped() -> None:
    thread = one_engine(FakeNetwork())
    sink = RecordingSink()
    thread.submit("fake", spec(), sink)
    assert not thread.alive
    assert thread.stop()
    assert sink.outcome is Outcome.CANCELLED


class BrokenEngine(Engine):
    """Its steps raise when their numbers, from 1, are in `raise_on`."""

    steps = 0
    raise_on: frozenset[int] = frozenset({3})

    def begin(self) -> Step | None:
        self.steps += 1
        if self.steps in self.raise_on:
            raise MemoryError("what no step catches")
        return super().begin()


def test_an_engine_that_breaks_costs_its_requests_and_starts_anew() -> None:
    gate, restarted = threading.Event(), []
    broken = BrokenEngine(MODEL, FakeNetwork(gate=gate), max_lanes=4)
    well = Engine(MODEL, FakeNetwork(), max_lanes=4)
    thread = EngineThreads({"broken": broken, "well": well}, on_restart=restarted.append)
    lost = [RecordingSink() for _ in range(3)]
    for sink in lost:
        thread.submit("broken", spec(count=5, num_steps=20), sink)
    other, later = RecordingSink(), RecordingSink()
    thread.submit("well", spec(num_steps=50), other)
    with running(thread):
        gate.set()
        for sink in lost:
            until(sink.ended)
        thread.submit("broken", spec(count=5, num_steps=20), later)
        assert thread.drain(PATIENCE_SECONDS)
        assert thread.alive
    assert [sink.outcome for sink in lost] == [Outcome.NETWORK_FAILED] * 3
    assert lost[0].endings[0][3] == "the engine broke: MemoryError"
    assert other.outcome is Outcome.FINISHED
    assert_reference_pixels(MODEL, spec(count=5, num_steps=20), later.images)
    assert restarted == ["broken"]
    assert broken.statistics().images_waiting == broken.statistics().requests_active == 0


def test_a_request_on_its_way_to_an_engine_that_breaks_is_kept() -> None:
    engine = BrokenEngine(MODEL, FakeNetwork(), max_lanes=4)
    engine.raise_on = frozenset({1})
    in_it, on_its_way = RecordingSink(), RecordingSink()

    class Late(RecordingSink):
        def done(
            self, outcome: Outcome, queue_seconds: float, compute_seconds: float, detail: str
        ) -> None:
            super().done(outcome, queue_seconds, compute_seconds, detail)
            thread.submit("fake", spec(count=3), on_its_way)  # while the engine is being ended

    thread = EngineThreads({"fake": engine})
    thread.submit("fake", spec(), Late())
    thread.submit("fake", spec(), in_it)
    with running(thread):
        until(on_its_way.ended)
    assert in_it.outcome is Outcome.NETWORK_FAILED
    assert_reference_pixels(MODEL, spec(count=3), on_its_way.images)


def test_an_engine_that_breaks_too_often_is_the_end_of_the_thread_and_of_every_request() -> None:
    broken = BrokenEngine(MODEL, FakeNetwork(), max_lanes=4)
    broken.raise_on = frozenset({1, 2, 3})
    well = Engine(MODEL, FakeNetwork(gate=threading.Event()), max_lanes=4)
    thread = EngineThreads({"broken": broken, "well": well}, max_restarts=2)
    lost, other = RecordingSink(), RecordingSink()
    thread.start()
    for _ in range(2):
        sink = RecordingSink()
        thread.submit("broken", spec(), sink)
        until(sink.ended)
    alive_before = thread.alive
    thread.submit("broken", spec(), lost)
    until(lost.ended)
    assert thread.drain(PATIENCE_SECONDS), "drain() waits for a dead thread"
    assert (alive_before, thread.alive) == (True, False)
    assert "MemoryError" in lost.endings[0][3]
    with pytest.raises(EngineUnavailable, match="MemoryError"):
        thread.submit("well", spec(), other)
    assert thread.stop(PATIENCE_SECONDS)


def test_restarts_that_are_long_ago_are_forgiven() -> None:
    clock = FakeClock()
    engine = BrokenEngine(MODEL, FakeNetwork())
    engine.raise_on = frozenset(range(1, 6))
    thread = EngineThreads({"fake": engine}, max_restarts=1, clock=clock)
    with running(thread):
        for _ in range(5):
            sink = RecordingSink()
            thread.submit("fake", spec(), sink)
            until(sink.ended)
            clock.now += RESTART_WINDOW_SECONDS + 1.0
        assert thread.alive


def test_an_exception_outside_of_the_steps_ends_every_request_of_every_engine_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines = {name: Engine(MODEL, FakeNetwork(gate=threading.Event())) for name in ("a", "b")}
    thread = EngineThreads(engines)
    sinks = [RecordingSink() for _ in range(4)]
    for number, sink in enumerate(sinks):
        thread.submit("ab"[number % 2], spec(), sink)

    def fail(*_: object) -> None:
        raise IndexError("a bug")

    monkeypatch.setattr(engines["b"], "enqueue", fail)
    with running(thread):
        for sink in sinks:
            until(sink.ended)
        assert thread.drain(PATIENCE_SECONDS)
        assert not thread.alive
    assert [sink.outcome for sink in sinks] == [Outcome.NETWORK_FAILED] * 4


def test_also_an_engine_that_broke_in_the_middle_of_its_books_ends_every_request_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_slot: int) -> int:
        raise IndexError("the books are wrong")

    engine = Engine(MODEL, FakeNetwork(), max_lanes=4)
    thread = EngineThreads({"fake": engine})
    sinks = [RecordingSink() for _ in range(5)]
    for sink in sinks:
        thread.submit("fake", spec(), sink)
    monkeypatch.setattr(engine._batching.queue, "withdraw", fail)  # as the first request ends
    with running(thread):
        for sink in sinks:
            until(sink.ended)
    outcomes = [sink.outcome for sink in sinks]
    assert outcomes == [Outcome.FINISHED] + [Outcome.NETWORK_FAILED] * 4


def test_the_age_of_the_last_step_grows_while_a_step_hangs_and_is_0_without_work() -> None:
    clock = FakeClock()
    gate, stepping = threading.Event(), threading.Event()
    network = FakeNetwork(gate=gate, on_call=lambda _call: stepping.set())
    thread = EngineThreads({"fake": Engine(MODEL, network)}, clock=clock)
    with running(thread):
        clock.now += 1000.0
        assert thread.last_step_age_seconds() == 0.0
        sink = RecordingSink()
        thread.submit("fake", spec(num_steps=1), sink)
        until(stepping)
        assert thread.last_step_age_seconds() == 0.0, "time without work counted as silence"
        clock.now += 7.0
        assert thread.last_step_age_seconds() == 7.0
        gate.set()
        assert thread.drain(PATIENCE_SECONDS)
        clock.now += 1000.0
        assert thread.last_step_age_seconds() == 0.0


def test_a_sink_may_submit_and_cancel_from_within() -> None:
    second = RecordingSink()

    class Chain(RecordingSink):
        def done(
            self, outcome: Outcome, queue_seconds: float, compute_seconds: float, detail: str
        ) -> None:
            super().done(outcome, queue_seconds, compute_seconds, detail)
            thread.cancel(thread.submit("fake", spec(count=50), second))

    thread = one_engine(FakeNetwork())
    with running(thread):
        thread.submit("fake", spec(), Chain())
        until(second.ended)
    assert second.outcome is Outcome.CANCELLED


@pytest.mark.parametrize("step_seconds", [0.001, 3.0])
def test_a_hang_is_silence_for_much_longer_than_the_longest_step(step_seconds: float) -> None:
    clock = FakeClock()
    gate, stepping = threading.Event(), threading.Event()
    network = FakeNetwork(gate=gate, on_call=lambda _call: stepping.set())
    rows = {16: step_seconds}
    engine = Engine(MODEL, network, max_lanes=8, step_seconds=rows)
    thread = EngineThreads({"fake": engine}, clock=clock)
    limit = max(HANG_SECONDS, HANG_STEPS * step_seconds)

    def silent_for_too_long() -> bool:
        return thread.last_step_age_seconds() > thread.hang_seconds

    with running(thread):
        clock.now += 1000.0
        hung = [silent_for_too_long()]  # nothing to do is no hang
        thread.submit("fake", spec(num_steps=1), RecordingSink())
        until(stepping)
        for more in (0.99, 0.02):
            clock.now += more * limit
            hung.append(silent_for_too_long())
        gate.set()
        assert thread.drain(PATIENCE_SECONDS)
        hung.append(silent_for_too_long())
    assert hung == [False, False, True, False]


class Meeting:
    """For on_call of a FakeNetwork: calls wait until so many of them are under way."""

    def __init__(self, calls: int) -> None:
        self._barrier = threading.Barrier(calls, timeout=PATIENCE_SECONDS)

    def __call__(self, _call: int) -> None:
        self._barrier.wait()


def several_workers(network: FakeNetwork) -> EngineThreads:
    return EngineThreads({"fake": Engine(MODEL, network, max_lanes=8)})


def test_the_workers_of_a_network_compute_at_once() -> None:
    sink = RecordingSink()
    with running(several_workers(FakeNetwork(parts=3, on_call=Meeting(3)))) as thread:
        thread.submit("fake", spec(count=6, num_steps=5), sink)
        assert thread.drain(PATIENCE_SECONDS)
    assert sink.outcome is Outcome.FINISHED
    assert_reference_pixels(MODEL, spec(count=6, num_steps=5), sink.images)


def test_requests_from_many_threads_are_all_drawn_as_alone_by_many_workers() -> None:
    requests = [spec(label=n % 10, seed=n, count=1 + n % 5, num_steps=1 + n % 7) for n in range(90)]
    sinks = [RecordingSink() for _ in requests]
    with running(several_workers(FakeNetwork(parts=4))) as thread:
        for request, sink in zip(requests, sinks, strict=True):
            thread.submit("fake", request, sink)
        assert thread.drain(PATIENCE_SECONDS)
    for request, sink in zip(requests, sinks, strict=True):
        assert sink.outcome is Outcome.FINISHED
        assert_reference_pixels(MODEL, request, sink.images)


def hanging_in(call: int, gate: threading.Event, hangs: threading.Event) -> FakeNetwork:
    """Two workers; one call waits for the gate."""

    def on_call(number: int) -> None:
        if number == call:
            hangs.set()
            assert gate.wait(PATIENCE_SECONDS)

    return FakeNetwork(parts=2, on_call=on_call)


def test_a_worker_that_hangs_is_noticed_though_the_others_go_on() -> None:
    gate, hangs = threading.Event(), threading.Event()
    with running(several_workers(hanging_in(0, gate, hangs))) as thread:
        thread.submit("fake", spec(count=2, num_steps=3), RecordingSink())
        until(hangs)
        begin = time.monotonic()
        while time.monotonic() < begin + 0.3:
            sink = RecordingSink()
            thread.submit("fake", spec(label=1), sink)
            until(sink.ended)
        assert thread.last_step_age_seconds() >= 0.3
        gate.set()
        assert thread.drain(PATIENCE_SECONDS)
        assert thread.last_step_age_seconds() == 0.0


def test_stop_waits_for_the_steps_of_all_workers_and_then_ends_what_is_left() -> None:
    gate, hangs = threading.Event(), threading.Event()
    thread, sinks = several_workers(hanging_in(0, gate, hangs)), [RecordingSink(), RecordingSink()]
    thread.start()
    for seed, sink in enumerate(sinks):
        thread.submit("fake", spec(count=4, num_steps=50, seed=seed), sink)
    until(hangs)
    assert not thread.stop(0.1)
    assert [sink.outcome for sink in sinks] == [None, None]
    gate.set()
    assert thread.stop(PATIENCE_SECONDS)
    assert [sink.outcome for sink in sinks] == [Outcome.CANCELLED] * 2
    assert not thread.alive


def test_one_thread_that_dies_ends_the_requests_of_all() -> None:
    network, sinks = FakeNetwork(parts=2), [RecordingSink() for _ in range(4)]
    engine = BrokenEngine(MODEL, network, max_lanes=8)
    thread = EngineThreads({"fake": engine}, max_restarts=0)
    for seed, sink in enumerate(sinks):
        thread.submit("fake", spec(count=2, num_steps=50, seed=seed), sink)
    thread.start()
    for sink in sinks:
        until(sink.ended)
    assert {sink.outcome for sink in sinks} == {Outcome.NETWORK_FAILED}
    assert not thread.alive
    assert thread.stop(PATIENCE_SECONDS)
    with pytest.raises(EngineUnavailable):
        thread.submit("fake", spec(), RecordingSink())
