"""One client that asks for all it may, ten that ask for one image: the promise, in virtual time.

The engine is driven by hand, and the network's cost is a function of its rows, so that the figures
are exact and the same on every machine.
"""

import dataclasses
import functools
import random
from dataclasses import dataclass

import numpy as np
import pytest

from serving.engine import Engine
from serving.lane_count import LaneCount, measure_lane_count
from serving.request import Outcome
from tests.fakes import FakeClock, FakeNetwork, RecordingSink, fake_model, spec

MODEL = fake_model(num_train_timesteps=1000, image_shape=(1, 1, 4))
# As the embedded model's defaults: of nine steps, one is guided.
LARGE = spec(count=1024, sampler="ddim_stochastic", num_steps=9, guidance_scale=4.0)
SMALL = dataclasses.replace(LARGE, count=1)
SMALL_CLIENTS = 10
REQUESTS_EACH = 20
SMALL_LOAD = 0.2
"""Share of the time that the small clients' requests would take if each ran alone."""


@dataclass
class Hardware:
    """A network whose calls take fixed + per row seconds."""

    fixed_seconds: float
    seconds_per_row: float

    def network(self, clock: FakeClock) -> FakeNetwork:
        return FakeNetwork(clock, self.seconds_per_row, fixed_seconds=self.fixed_seconds)

    @functools.cached_property
    def measured(self) -> LaneCount:
        """What a server would measure, and choose."""
        clock = FakeClock()
        return measure_lane_count(MODEL, self.network(clock), clock=clock)

    def engine(self, **settings: object) -> tuple[Engine, FakeClock]:
        clock, measured = FakeClock(), self.measured
        engine = Engine(
            MODEL, self.network(clock), max_lanes=measured.max_lanes,
            usual_lanes=measured.usual_lanes, step_seconds=measured.step_seconds, clock=clock,
            **settings,
        )  # fmt: skip
        return engine, clock

    @property
    def unloaded_seconds(self) -> float:
        """Of a small request, alone."""
        rows = SMALL.work_per_image
        return SMALL.num_steps * self.fixed_seconds + rows * self.seconds_per_row


SMALL_CPU = Hardware(0.00015, 0.0006)
"""A small model on two cores, as measured: lanes are worth little."""
CPU = Hardware(0.0012, 0.001)
"""The embedded model on two cores, as measured."""
GPU = Hardware(0.002, 0.00002)
"""Where launching kernels takes longer than a hundred rows."""


@dataclass
class SmallClient:
    """Asks for one image, waits for it, pauses, asks again."""

    next_seconds: float
    sink: RecordingSink | None = None
    asked_seconds: float = 0.0
    left: int = REQUESTS_EACH

    def act(self, engine: Engine, now: float, pause_seconds: float) -> float | None:
        """Submits when it is time; the latency of a request that has just ended."""
        if self.sink is not None and self.sink.outcome is not None:
            assert self.sink.outcome is Outcome.FINISHED
            self.sink, self.next_seconds = None, now + pause_seconds
            return now - self.asked_seconds
        if self.sink is None and self.left and now >= self.next_seconds:
            self.sink = RecordingSink()
            self.left -= 1
            # It came while the engine was in its last step, and waited for the end of it.
            self.asked_seconds = self.next_seconds
            engine.submit(SMALL, self.sink)
        return None


@dataclass
class Measured:
    """p99 of the small requests, and the images per second of the large ones."""

    p99_seconds: float
    large_images_per_second: float


def run(
    hardware: Hardware, *, large_client: bool = True, small_clients: int = SMALL_CLIENTS,
    **settings: object,
) -> Measured:  # fmt: skip
    """The large client in a loop, the small ones with random pauses, until these are done."""
    engine, clock = hardware.engine(**settings)
    script = random.Random(1)
    mean_pause = hardware.unloaded_seconds * (SMALL_CLIENTS / SMALL_LOAD - 1)
    clients = [SmallClient(clock.now + script.uniform(0, mean_pause)) for _ in range(small_clients)]
    large, latencies, images = RecordingSink(), [], 0
    begin = clock.now
    # Without small ones: as long as they would take.
    end = begin + (0 if clients else REQUESTS_EACH * mean_pause)
    if large_client:
        engine.submit(LARGE, large)
    while any(client.left or client.sink for client in clients) or clock.now < end:
        if large.outcome is not None:
            images += len(large.images)
            large = RecordingSink()
            engine.submit(LARGE, large)
        for client in clients:
            latency = client.act(engine, clock.now, script.expovariate(1 / mean_pause))
            if latency is not None:
                latencies.append(latency)
        if engine.step() is None:
            waiting = [client.next_seconds for client in clients if client.left]
            clock.now = min(waiting, default=clock.now)
    assert len(latencies) == small_clients * REQUESTS_EACH
    p99 = float(np.percentile(latencies, 99)) if latencies else 0.0
    return Measured(p99, (images + len(large.images)) / (clock.now - begin))


@pytest.mark.parametrize("hardware", [SMALL_CPU, CPU, GPU], ids=["small cpu", "cpu", "gpu"])
def test_small_requests_take_three_times_their_time_at_most_and_the_large_one_keeps_its_pace(
    hardware: Hardware,
) -> None:
    unloaded = run(hardware, large_client=False)
    alone = run(hardware, small_clients=0)
    measured = run(hardware)
    assert measured.p99_seconds <= 3 * unloaded.p99_seconds
    assert measured.large_images_per_second >= 0.8 * alone.large_images_per_second


@pytest.mark.parametrize(
    ("hardware", "times"),
    [(SMALL_CPU, 3.0), (CPU, 3.0), (GPU, 3.6)],
    ids=["small cpu", "cpu", "gpu"],
)
def test_small_requests_wait_little_however_many_large_ones_wait(
    hardware: Hardware, times: float
) -> None:
    """At 80 % of the capacity several large ones wait at times, some of them for very long."""
    assert mixed(hardware) <= times * hardware.unloaded_seconds


def test_without_ageing_within_bounds_they_would_not() -> None:
    """That the test above can fail."""
    assert mixed(CPU, policy="fifo") > 100 * CPU.unloaded_seconds


def mixed(hardware: Hardware, **settings: object) -> float:
    """p99 of requests for one image; every tenth is a hundred times as much work."""
    engine, clock = hardware.engine(**settings)
    script = random.Random(0)
    large = dataclasses.replace(LARGE, count=64, num_steps=90)
    lanes = hardware.measured.usual_lanes
    rows_per_second = lanes / hardware.measured.step_seconds[lanes]
    mean_work = 0.9 * SMALL.work_per_image + 0.1 * 64 * large.work_per_image
    rate = 0.8 * rows_per_second / mean_work
    arrivals: list[tuple[float, bool]] = []
    seconds = clock.now
    for _ in range(300):
        seconds += script.expovariate(rate)
        arrivals.append((seconds, script.random() < 0.9))
    latencies: list[float] = []
    waiting: list[tuple[float, RecordingSink]] = []
    while arrivals or waiting:
        while arrivals and arrivals[0][0] <= clock.now:
            came_seconds, is_small = arrivals.pop(0)
            sink = RecordingSink()
            engine.submit(SMALL if is_small else large, sink)
            if is_small:
                waiting.append((came_seconds, sink))
        if engine.step() is None and arrivals:
            clock.now = arrivals[0][0]
        latencies += [clock.now - came for came, sink in waiting if sink.outcome is not None]
        waiting = [(came, sink) for came, sink in waiting if sink.outcome is None]
    return float(np.percentile(latencies, 99))


def test_first_come_first_served_does_not_keep_that_promise() -> None:
    """That the test above can fail."""
    assert run(CPU, policy="fifo").p99_seconds > 10 * CPU.unloaded_seconds


def test_a_large_request_is_finished_however_many_small_ones_there_are() -> None:
    """Forty small ones on eight lanes, each asking again at once: the large one has its share."""
    engine, _ = SMALL_CPU.engine()
    large = RecordingSink()
    engine.submit(spec(count=100, num_steps=8), large)
    large_rows, rows = 100 * 8, 0
    small: list[RecordingSink] = []
    while large.outcome is None:
        small = [sink for sink in small if sink.outcome is None]
        while len(small) < 40:
            small.append(RecordingSink())
            engine.submit(SMALL, small[-1])
        stats = engine.step()
        assert stats is not None
        rows += stats.rows_useful
        assert rows < 10 * large_rows, "starved"
    assert large.outcome is Outcome.FINISHED
    assert rows > 2 * large_rows, "the small ones were not served before it"
