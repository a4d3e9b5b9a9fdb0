"""Are the estimates honest? Random queues in virtual time, each compared with what happened."""

import random
import sys

import numpy as np
import pytest

from serving.engine import Engine
from serving.request import DeadlineUnmeetable, GenerateSpec, Outcome
from tests.fakes import FakeClock, FakeNetwork, RecordingSink, fake_model, spec

MODEL = fake_model(image_shape=(1, 1, 2))
CASES = 60
HARDWARE = {"cpu": (0.00015, 0.0006, 8), "gpu": (0.002, 0.00002, 64)}
"""Fixed seconds of a step, seconds per row, lanes."""


def engine_on(hardware: str, **settings: object) -> tuple[Engine, FakeClock]:
    fixed_seconds, seconds_per_row, max_lanes = HARDWARE[hardware]
    clock = FakeClock()
    network = FakeNetwork(clock, seconds_per_row, fixed_seconds=fixed_seconds)
    timed = {rows: fixed_seconds + rows * seconds_per_row for rows in (1, max_lanes)}
    engine = Engine(
        MODEL, network, max_lanes=max_lanes, step_seconds=timed, clock=clock, **settings
    )
    return engine, clock


def random_spec(script: random.Random, deadline_seconds: float | None = None) -> GenerateSpec:
    return spec(
        count=script.choice([1, 1, 1, 2, 4, 10, 60]),
        seed=script.getrandbits(32),
        num_steps=script.choice([4, 8, 20]),
        guidance_scale=script.choice([1.0, 1.0, 2.0]),
        deadline_seconds=deadline_seconds,
    )


def busy(
    hardware: str, script: random.Random, **settings: object
) -> tuple[Engine, FakeClock, float]:
    """An engine in the middle of a random queue, and half of the seconds of its last step."""
    engine, clock = engine_on(hardware, **settings)
    half_a_step = 0.0
    for _ in range(script.choice([0, 1, 3, 8, 20])):
        engine.submit(random_spec(script), RecordingSink())
        for _ in range(script.choice([0, 0, 1, 5])):
            stats = engine.step()
            half_a_step = 0.0 if stats is None else stats.total_seconds / 2
    return engine, clock, half_a_step


def seconds_until_done(engine: Engine, clock: FakeClock, request: GenerateSpec) -> float:
    begin, sink = clock.now, RecordingSink()
    engine.submit(request, sink)
    while sink.outcome is None:
        engine.step()
    assert sink.outcome is Outcome.FINISHED
    return clock.now - begin


@pytest.mark.parametrize("policy", ["srpt", "fifo"])
@pytest.mark.parametrize("hardware", HARDWARE)
def test_the_estimate_is_what_it_takes_if_nobody_else_comes(hardware: str, policy: str) -> None:
    ratios = []
    for case in range(CASES):
        script = random.Random(case)
        engine, clock, half_a_step = busy(hardware, script, policy=policy)
        request = random_spec(script)
        estimate = engine.estimate_seconds(request)
        assert estimate is not None
        # Who comes while a step runs waits for half of it in the mean.
        truth = half_a_step + seconds_until_done(engine, clock, request)
        ratios.append(estimate / truth)
    low, median, high = np.percentile(ratios, [5, 50, 95])
    assert 0.85 <= median <= 1.15
    assert low >= 0.6
    assert high <= 1.8


@pytest.mark.parametrize("hardware", HARDWARE)
def test_who_is_refused_would_have_been_late_and_who_is_accepted_is_not(hardware: str) -> None:
    wrongly_refused = late = refused = accepted = 0
    for case in range(CASES):
        script = random.Random(case)
        engine, clock, _ = busy(hardware, script)
        request = random_spec(script)
        estimate = engine.estimate_seconds(request)
        assert estimate is not None
        # So far from the estimate that it is clear what should happen.
        left = estimate * script.choice([0.2, 0.5, 2.0, 4.0])
        doomed = random_spec(random.Random(case + 1000), deadline_seconds=clock.now + left)
        try:
            sink = RecordingSink()
            engine.submit(doomed, sink)
        except DeadlineUnmeetable as refusal:
            refused += 1
            assert refusal.left_seconds == pytest.approx(left)
            assert refusal.estimate_seconds > left
            assert refusal.retry_after_seconds > 0
            without = spec(
                count=doomed.count,
                seed=doomed.seed,
                num_steps=doomed.num_steps,
                guidance_scale=doomed.guidance_scale,
            )
            wrongly_refused += seconds_until_done(engine, clock, without) <= left
        else:
            accepted += 1
            while sink.outcome is None:
                engine.step()
            late += sink.outcome is not Outcome.FINISHED
    assert min(refused, accepted) > CASES / 5
    assert wrongly_refused <= 0.1 * refused
    assert late <= 0.1 * accepted


def test_an_estimate_takes_microseconds_even_with_thousands_of_requests() -> None:
    """Counted, not timed: no Python loop over the requests of the engine."""
    engine, _ = engine_on("gpu", max_queued_requests=5000)
    for seed in range(4000):
        engine.submit(spec(seed=seed), RecordingSink())
    engine.step()
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        estimate = engine.estimate_seconds(spec())
    finally:
        sys.setprofile(None)
    assert estimate is not None
    assert calls < 100
