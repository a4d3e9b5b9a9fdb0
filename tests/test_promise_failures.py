"""Promise: a failure costs the requests that it happens to, and nobody else a bit."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serving.client import Client, InternalError
from tests import faulty_server
from tests.fault_figures import Record
from tests.ledger import digests
from tests.server_process import MNIST, running_server, sample

PROGRAM = (str(Path(faulty_server.__file__)),)
FLAGS = ("--provider", "cpu", "--max-lanes", "6")
RUN: list[dict[str, Any]] = [
    {"label": 3, "count": 2, "seed": 1, "sampler": "ddpm", "num_steps": 120, "guidance_scale": 1.0},
    {"label": 4, "count": 2, "seed": 2, "sampler": "ddim", "num_steps": 120, "guidance_scale": 1.0},
    {"label": 5, "count": 2, "seed": 3, "sampler": "ddpm", "num_steps": 120, "guidance_scale": 2.0},
]
WAITS: dict[str, Any] = {**RUN[0], "label": 6, "count": 6, "num_steps": 100}


@pytest.mark.parametrize(
    ("fault", "counter", "may_fail"),
    [
        pytest.param(faulty_server.NAN_ONCE, "nonfinite_lanes", (1,), id="NaN in a lane"),
        # One batch of all lanes, or one of half of them: two lanes of each request are in it.
        pytest.param(faulty_server.RAISE_ONCE, "network_failures", (2, 3), id="a call that raises"),
    ],
)
def test_it_ends_what_it_happens_to_once_and_changes_nothing_else(
    figure: Record, fault: int, counter: str, may_fail: tuple[int, ...]
) -> None:
    with (
        running_server(MNIST, flags=FLAGS, program=PROGRAM) as server,
        Client(server.target, retry=None) as client,
        ThreadPoolExecutor(4) as threads,
    ):

        def draw(options: dict[str, Any]) -> dict[int, str]:
            return digests(client.generate(**options).images)

        alone = [draw(options) for options in (*RUN, WAITS)]
        running = [threads.submit(draw, options) for options in RUN]
        server.until(lambda samples: samples[sample("diffusion_lanes_in_use", model="mnist")] == 6)
        waiting = threads.submit(draw, WAITS)
        server.until(lambda samples: samples[sample("diffusion_requests_waiting", model="mnist")])
        server.signal(fault)
        errors = [each.exception() for each in running]
        ended = [error for error in errors if error is not None]
        failed = len(ended)
        assert failed in may_fail
        assert {type(error) for error in ended} == {InternalError}
        assert all("NaN" not in str(error) and "broken" not in str(error) for error in ended)
        others = [number for number, error in enumerate(errors) if error is None]
        assert [running[number].result() for number in others] == [
            alone[number] for number in others
        ]
        assert waiting.result() == alone[-1], "what only waited was harmed"
        assert [draw(options) for options in RUN] == alone[:-1], "something was left of it"
        assert server.metric(f"diffusion_{counter}_total", model="mnist") == 1
        assert server.finished("Generate", "INTERNAL") == failed
        assert server.get("/readyz")[0] == 200
    figure(
        "requests ended, of 3 that ran and 1 that waited", failed, " or ".join(map(str, may_fail))
    )
    figure("the others' sha256 equal to those alone", f"{4 - failed} of {4 - failed}", "all")
