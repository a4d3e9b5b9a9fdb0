"""`python -m serving` with faults on demand; a program, started by tests.

SIGUSR1 makes the engine's thread die at its next step, SIGUSR2 makes it hang there, SIGRTMIN + 1
(SLOW) makes each step take SLOW_SECONDS longer. A file named by PROMISE_GATE is waited for before
anything is loaded. SIGRTMIN logs how many asyncio tasks there are.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from serving import loading, server
from serving.__main__ import main
from serving.engine import Engine

GATE = "PROMISE_GATE"
SLOW = signal.SIGRTMIN + 1
SLOW_SECONDS = 0.3

_fault: list[str] = []


def install() -> None:
    """Puts the faults into the server of this process."""
    step = Engine.step

    def faulty_step(engine: Engine) -> Any:
        if "die" in _fault:
            raise RuntimeError("a bug in the engine, put there by a test")
        if "hang" in _fault:
            threading.Event().wait()
        if "slow" in _fault:
            time.sleep(SLOW_SECONDS)
        return step(engine)

    def gated_load(*arguments: Any, **settings: Any) -> Any:
        gate = Path(os.environ[GATE])
        while not gate.exists():
            time.sleep(0.01)
        return loading.load_models(*arguments, **settings)

    setattr(Engine, "step", faulty_step)  # noqa: B010  (no type checker likes the other way)
    if GATE in os.environ:
        setattr(server, "load_models", gated_load)  # noqa: B010
    signal.signal(signal.SIGUSR1, lambda *_: _fault.append("die"))
    signal.signal(signal.SIGUSR2, lambda *_: _fault.append("hang"))
    signal.signal(SLOW, lambda *_: _fault.append("slow"))
    signal.signal(signal.SIGRTMIN, lambda *_: _log_tasks())


def _log_tasks() -> None:
    logging.getLogger("faulty_server").info("asyncio tasks: %d", len(asyncio.all_tasks()))


if __name__ == "__main__":
    install()
    main(prog_name="python -m serving")
