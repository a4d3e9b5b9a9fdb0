"""Readiness follows the engine's thread, whatever phase the server is in."""

from dataclasses import dataclass

import pytest

from serving.health import Phase, Readiness
from serving.watchdog import Watchdog
from tests.fakes import FakeClock


@dataclass
class FakeEngineThread:
    alive: bool = True
    hung: bool = False

    def last_step_age_seconds(self) -> float:
        return 1.0 if self.hung else 0.0


def watched(
    phase: Phase = Phase.SERVING,
) -> tuple[Watchdog, FakeEngineThread, Readiness, FakeClock]:
    thread, readiness, clock = FakeEngineThread(), Readiness(), FakeClock()
    readiness.set(phase)
    return (
        Watchdog(thread, readiness, hang_exit_seconds=30.0, clock=clock),
        thread,
        readiness,
        clock,
    )


async def test_a_hang_makes_the_server_not_ready_until_it_is_over() -> None:
    dog, thread, readiness, clock = watched()
    phases = []
    for hung in (False, True, False, True):
        thread.hung = hung
        assert dog.look() is None, "the first hang was counted too"
        phases.append(readiness.phase)
        # A supervisor would kill what may come back.
        assert readiness.alive
        assert readiness.accepting == (not hung)
        clock.now += 29.0
    assert phases == [Phase.SERVING, Phase.STALLED, Phase.SERVING, Phase.STALLED]


async def test_a_hang_that_does_not_end_is_given_up() -> None:
    dog, thread, _, clock = watched()
    thread.hung = True
    assert dog.look() is None
    clock.now += 30.0
    assert dog.look() == "the engine's thread has been hanging for 30 s"


async def test_death_fails_the_server() -> None:
    dog, thread, readiness, _ = watched()
    thread.alive = False
    assert await dog.watch() == "the engine's thread has died"
    assert readiness.phase is Phase.FAILED


@pytest.mark.parametrize("phase", [Phase.LAME_DUCK, Phase.DRAINING])
async def test_a_server_that_drains_stays_in_its_phase_when_the_engine_hangs(phase: Phase) -> None:
    dog, thread, readiness, clock = watched(phase)
    thread.hung = True
    assert dog.look() is None
    assert readiness.phase is phase
    thread.hung = False
    assert dog.look() is None
    assert readiness.phase is phase
    thread.hung = True
    dog.look()
    clock.now += 31.0
    assert dog.look() is not None
