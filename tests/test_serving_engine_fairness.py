"""One client that asks for all it may, ten that ask for one image: the promise, in virtual time.

The engine is driven by hand, and the network's cost is a function of its rows, so that the figures
are exact and the same on every machine.
"""

import random
from dataclasses import dataclass

import numpy as np
import pytest

from serving.engine import Engine
from serving.request import Outcome
from tests.fakes import FakeClock, FakeNetwork, RecordingSink, fake_model, spec

MODEL = fake_model(image_shape=(1, 1, 4))
LARGE = spec(count=1024, num_steps=8)
SMALL = spec(count=1, num_steps=8)
SMALL_CLIENTS = 10
REQUESTS_EACH = 20
SMALL_LOAD = 0.1
"""Share of the time that the small clients' requests would take if each ran alone."""


@dataclass
class Hardware:
    """A network whose calls take fixed + per row seconds, and the lanes that suit it."""

    fixed_seconds: float
    seconds_per_row: float
    max_lanes: int

    def engine(self, **settings: object) -> tuple[Engine, FakeClock]:
        clock = FakeClock()
        network = FakeNetwork(clock, self.seconds_per_row, fixed_seconds=self.fixed_seconds)
        return Engine(MODEL, network, max_lanes=self.max_lanes, clock=clock, **settings), clock

    def seconds(self, rows: int) -> float:
        return self.fixed_seconds + self.seconds_per_row * rows

    @property
    def unloaded_seconds(self) -> float:
        """Of a small request."""
        return SMALL.num_steps * self.seconds(1)

    @property
    def best_rows_per_second(self) -> float:
        return self.max_lanes / self.seconds(self.max_lanes)


CPU = Hardware(0.00015, 0.0006, 8)
"""The embedded model on two cores, as measured."""
GPU = Hardware(0.002, 0.00002, 256)
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
    p99_seconds: float
    large_rows_per_second: float


def run(hardware: Hardware, **settings: object) -> Measured:
    """The large client in a loop, the small ones with random pauses, until these are done."""
    engine, clock = hardware.engine(**settings)
    script = random.Random(1)
    mean_pause = hardware.unloaded_seconds * (SMALL_CLIENTS / SMALL_LOAD - 1)
    clients = [SmallClient(clock.now + script.uniform(0, mean_pause)) for _ in range(SMALL_CLIENTS)]
    large, latencies, rows = RecordingSink(), [], 0
    engine.submit(LARGE, large)
    begin = clock.now
    while any(client.left or client.sink for client in clients):
        if large.outcome is not None:
            large = RecordingSink()
            engine.submit(LARGE, large)
        for client in clients:
            latency = client.act(engine, clock.now, script.expovariate(1 / mean_pause))
            if latency is not None:
                latencies.append(latency)
        stats = engine.step()
        assert stats is not None
        rows += stats.rows_useful
    assert len(latencies) == SMALL_CLIENTS * REQUESTS_EACH
    large_rows = rows - len(latencies) * SMALL.num_steps
    return Measured(float(np.percentile(latencies, 99)), large_rows / (clock.now - begin))


@pytest.mark.parametrize("hardware", [CPU, GPU], ids=["cpu", "gpu"])
def test_small_requests_take_three_times_their_time_at_most_and_the_large_one_keeps_its_pace(
    hardware: Hardware,
) -> None:
    measured = run(hardware)
    assert measured.p99_seconds <= 3 * hardware.unloaded_seconds
    assert measured.large_rows_per_second >= 0.8 * hardware.best_rows_per_second


def test_first_come_first_served_does_not_keep_that_promise() -> None:
    """That the test above can fail."""
    assert run(GPU, policy="fifo").p99_seconds > 10 * GPU.unloaded_seconds


def test_a_large_request_is_finished_however_many_small_ones_there_are() -> None:
    """Forty small ones on eight lanes, each asking again at once: the large one has its half."""
    engine, _ = CPU.engine()
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
