"""Promise: a deadline is kept to within 50 ms, and expired work is not computed."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.client import Client, ClientError, DeadlineExceededError, ResourceExhaustedError
from tests.fault_figures import Record
from tests.server_process import MNIST, ServerProcess, active, running_server, sample

LANES = 16
NUM_STEPS = 60
PLAIN = {"sampler": "ddpm", "guidance_scale": 1.0}  # one network row per lane and step
ROWS = sample("diffusion_engine_step_rows_sum", model="mnist")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    flags = ("--provider", "cpu", "--max-lanes", str(LANES))
    with running_server(MNIST, flags=flags) as running:
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


def test_work_that_expires_while_it_waits_is_never_computed(
    server: ServerProcess, figure: Record
) -> None:
    with Client(server.target, retry=None) as client, ThreadPoolExecutor(1) as threads:
        before = server.until_idle()[ROWS]
        running = threads.submit(full_batch, client)
        server.until(
            lambda samples: samples[sample("diffusion_lanes_in_use", model="mnist")] == LANES
        )
        with pytest.raises(ClientError) as caught:
            # More work than what runs, so that it has to wait.
            client.generate(3, 2 * LANES, num_steps=500, timeout_seconds=0.2, **PLAIN)
        assert caught.value.code in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
        running.result()
        spent = server.until_idle()[ROWS] - before
    assert spent == LANES * NUM_STEPS
    figure("network rows for work that expired waiting", spent - LANES * NUM_STEPS, "0")
