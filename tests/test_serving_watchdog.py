"""Readiness follows the engine's thread, whatever phase the server is in."""

from dataclasses import dataclass

import pytest

from serving.health import Phase, Readiness
from serving.watchdog import Watchdog
from tests.fakes import FakeClock

HANG_SECONDS = 0.75
LOOK_SECONDS = 0.1


@dataclass
class FakeEngineThread:
    """One that has work, and gave its last sign of life at `beat_seconds`."""

    clock: FakeClock
    beat_seconds: float
    alive: bool = True
    hang_seconds: float = HANG_SECONDS

    def last_step_age_seconds(self) -> float:
        return self.clock.now - self.beat_seconds


class Scene:
    """A watchdog that looks ten times a second."""

    def __init__(self, phase: Phase = Phase.SERVING) -> None:
        self.clock, self.readiness = FakeClock(), Readiness()
        self.readiness.set(phase)
        self.thread = FakeEngineThread(self.clock, self.clock.now)
        self.dog = Watchdog(self.thread, self.readiness, hang_exit_seconds=30.0, clock=self.clock)

    def phase(self) -> Phase:
        return self.readiness.phase

    def passes(self, seconds: float, *, stepping: bool = False) -> str | None:
        """So much time, in which the engine makes steps or none; what the watchdog says last."""
        end_seconds = self.clock.now + seconds
        said = None
        while self.clock.now < end_seconds and said is None:
            self.clock.now += LOOK_SECONDS
            if stepping:
                self.thread.beat_seconds = self.clock.now
            said = self.dog.look()
        return said

    def all_is_held_up(self, seconds: float) -> None:
        """Neither the engine nor the watchdog runs."""
        self.clock.now += seconds


async def test_a_hang_makes_the_server_not_ready_until_it_is_over() -> None:
    scene = Scene()
    for _ in range(2):  # the first hang is not counted in the second
        assert scene.passes(2.0, stepping=True) is None
        assert scene.phase() is Phase.SERVING
        assert scene.passes(HANG_SECONDS - LOOK_SECONDS) is None
        assert scene.phase() is Phase.SERVING
        assert scene.passes(3 * LOOK_SECONDS) is None
        assert scene.phase() is Phase.STALLED
        assert scene.passes(28.0) is None
        # A supervisor would kill what may come back.
        assert scene.readiness.alive
        assert not scene.readiness.accepting


async def test_a_hang_that_does_not_end_is_given_up() -> None:
    scene = Scene()
    assert scene.passes(40.0) == "the engine's thread has been hanging for 30 s"
    assert scene.clock.now - scene.thread.beat_seconds < 30.0 + HANG_SECONDS + 3 * LOOK_SECONDS


async def test_time_in_which_nothing_of_the_process_ran_is_no_hang() -> None:
    scene = Scene()
    assert scene.passes(2.0, stepping=True) is None
    for _ in range(3):
        scene.all_is_held_up(100.0)
        assert scene.passes(0.5) is None
        assert scene.phase() is Phase.SERVING, "the step was on its way"
        assert scene.passes(LOOK_SECONDS, stepping=True) is None
    scene.all_is_held_up(100.0)
    assert scene.passes(HANG_SECONDS + 2 * LOOK_SECONDS) is None
    assert scene.phase() is Phase.STALLED, "a hang after it was not seen"
    scene.all_is_held_up(1.0)
    assert scene.passes(LOOK_SECONDS) is None
    assert scene.phase() is Phase.STALLED, "a hang was forgotten"


async def test_a_hang_is_seen_also_when_every_look_comes_late() -> None:
    scene = Scene()
    for _ in range(8):
        scene.clock.now += 0.6
        assert scene.dog.look() is None
    assert scene.phase() is Phase.STALLED


async def test_death_fails_the_server() -> None:
    scene = Scene()
    scene.thread.alive = False
    assert await scene.dog.watch() == "the engine's thread has died"
    assert scene.phase() is Phase.FAILED


@pytest.mark.parametrize("phase", [Phase.LAME_DUCK, Phase.DRAINING])
async def test_a_server_that_drains_stays_in_its_phase_when_the_engine_hangs(phase: Phase) -> None:
    scene = Scene(phase)
    assert scene.passes(2.0) is None
    assert scene.phase() is phase
    assert scene.passes(1.0, stepping=True) is None
    assert scene.phase() is phase
    assert scene.passes(40.0) is not None
