"""Promise: a deadline is kept to within 50 ms, and expired work is not computed."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.client import Client, DeadlineExceededError, ResourceExhaustedError
from tests import faulty_server
from tests.fault_figures import Record
from tests.server_process import MNIST, ServerProcess, active, running_server, sample, total

LANES = 16
NUM_STEPS = 60
PROGRAM = (str(Path(faulty_server.__file__)),)
FLAGS = ("--provider", "cpu", "--max-lanes", str(LANES))
PLAIN = {"sampler": "ddpm", "guidance_scale": 1.0}  # one network row per lane and step
IN_USE = sample("diffusion_lanes_in_use", model="mnist")
WAITING = sample("diffusion_images_waiting", model="mnist")
PREEMPTIONS = "diffusion_lane_preemptions_total"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(MNIST, flags=FLAGS) as running:
        yield running


def full_batch(client: Client, timeout_seconds: float | None = None) -> float:
    """Asks for as many images as there are lanes; returns the seconds that this took."""
    begin = time.monotonic()
    client.generate(3, LANES, seed=1, num_steps=NUM_STEPS, timeout_seconds=timeout_seconds, **PLAIN)
    return time.monotonic() - begin


def test_a_deadline_is_kept_and_its_lanes_are_free(
    server: ServerProcess, figure: Record, patience: float
) -> None:
    with Client(server.target, retry=None) as client:
        full_batch(client)
        needed_seconds = full_batch(client)
        step_seconds = needed_seconds / NUM_STEPS
        for name, seconds in (("10 ms", 0.01), ("half the needed time", needed_seconds / 2)):
            server.until_idle()
            begin = time.monotonic()
            # A server that knows its pace may refuse at once what it cannot do in time.
            with pytest.raises((DeadlineExceededError, ResourceExhaustedError)) as caught:
                full_batch(client, timeout_seconds=seconds)
            late_seconds = time.monotonic() - begin - seconds
            server.until(lambda samples: active(samples) == 0)
            freed_seconds = time.monotonic() - begin - seconds
            assert late_seconds < 0.05 * patience
            # A scrape, which is how we see it, takes time as well.
            assert freed_seconds < (0.05 + 2 * step_seconds + 0.05) * patience
            figure(f"{caught.value.code} after {name}, seconds late", late_seconds, "< 0.05")
            figure(f"lanes free after {name}, seconds late", freed_seconds,
                   f"< 0.05 + 2 engine steps of {step_seconds:.3f}")  # fmt: skip
        taken_seconds = full_batch(client, timeout_seconds=1.5 * needed_seconds * patience)
        figure("OK within 1.5 x the needed time, x", taken_seconds / needed_seconds, "< 1.5")


def test_accepted_work_that_becomes_late_is_ended_by_its_deadline_wherever_it_is(
    figure: Record, patience: float
) -> None:
    # Nobody can know that the machine is about to become slow, so both are accepted.
    with (
        running_server(MNIST, flags=FLAGS, program=PROGRAM) as server,
        Client(server.target, retry=None) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        full_batch(client)
        seconds = 4 * full_batch(client) + 0.5
        before = server.until_idle()
        begin = time.monotonic()
        running = threads.submit(full_batch, client, seconds)
        server.until(lambda samples: samples[IN_USE] == LANES)
        # Earlier by several steps of a slow machine, or both are found expired by one of them.
        waiting = threads.submit(full_batch, client, seconds - 1.2)
        server.until(lambda samples: samples[WAITING] == LANES)
        server.process.send_signal(faulty_server.SLOW)
        expired = server.until(lambda samples: samples[WAITING] == 0)
        assert expired[IN_USE] == LANES, "it had to wait until it expired"
        assert isinstance(waiting.exception(), DeadlineExceededError)
        assert isinstance(running.exception(), DeadlineExceededError)
        late_seconds = time.monotonic() - begin - seconds
        server.until(lambda samples: samples[IN_USE] == 0)
        freed_seconds = time.monotonic() - begin - seconds
        after = server.until_idle()
        assert server.finished("Generate", "DEADLINE_EXCEEDED") == 2
    preemptions = total(after, PREEMPTIONS) - total(before, PREEMPTIONS)
    assert preemptions == 0, "the one that waited had the other's lanes"
    step_seconds = faulty_server.SLOW_SECONDS + seconds / 4 / NUM_STEPS
    figure("DEADLINE_EXCEEDED while running, seconds late", late_seconds, "< 0.05")
    figure("its lanes free, seconds late", freed_seconds,
           f"< 0.05 + 2 engine steps of {step_seconds:.3f}")  # fmt: skip
    figure("lanes for work that expired waiting", preemptions, "0")
    assert late_seconds < 0.05 * patience
    assert freed_seconds < (0.05 + 2 * step_seconds + 0.05) * patience
