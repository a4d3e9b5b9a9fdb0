"""`python -m serving` with faults on demand; a program, started by tests.

Each of these signals begins a fault, and ends it when it comes again:

- SIGUSR1: the engine breaks at its next step;
- SIGUSR2: the engine's thread hangs there;
- SLOW: each step takes SLOW_SECONDS longer;
- NAN: the network gives NaN for the first row of each batch;
- RAISE: the network raises.

NAN_ONCE and RAISE_ONCE do the same to the next batch alone.

SIGRTMIN logs how many asyncio tasks there are. A file named by PROMISE_GATE is waited for before
anything is loaded; with PROMISE_UNEQUAL a row's result depends on the size of its batch.
"""

import asyncio
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from serving import loading, network, server
from serving.__main__ import main
from serving.engine import Engine

GATE = "PROMISE_GATE"
UNEQUAL = "PROMISE_UNEQUAL"
SLOW = signal.SIGRTMIN + 1
SLOW_SECONDS = 0.3
NAN = signal.SIGRTMIN + 2
RAISE = signal.SIGRTMIN + 3
NAN_ONCE = signal.SIGRTMIN + 4
RAISE_ONCE = signal.SIGRTMIN + 5

_faults: set[int] = set()


def install() -> None:
    """Puts the faults into the server of this process."""
    begin, call = Engine.begin, network.UNet.__call__

    def faulty_begin(engine: Engine) -> Any:
        if signal.SIGUSR1 in _faults:
            raise RuntimeError("a bug in the engine, put there by a test")
        while signal.SIGUSR2 in _faults:
            time.sleep(0.01)
        return begin(engine)

    def faulty_call(unet: network.UNet, x_t: Any, emb: Any, /) -> Any:
        if RAISE in _faults or _once(RAISE_ONCE):
            raise RuntimeError("a broken network, put there by a test")
        if SLOW in _faults:
            time.sleep(SLOW_SECONDS)
        eps = call(unet, x_t, emb)
        if NAN in _faults or _once(NAN_ONCE):
            eps[0] = np.nan
        if UNEQUAL in os.environ:
            eps += np.float32(1e-3 * len(eps))
        return eps

    setattr(Engine, "begin", faulty_begin)  # noqa: B010  (no type checker likes the other way)
    setattr(network.UNet, "__call__", faulty_call)  # noqa: B010
    if GATE in os.environ:
        setattr(server, "load_models", _gated_load)  # noqa: B010
    for fault in (signal.SIGUSR1, signal.SIGUSR2, SLOW, NAN, RAISE, NAN_ONCE, RAISE_ONCE):
        signal.signal(fault, _toggle)
    signal.signal(signal.SIGRTMIN, lambda *_: _log_tasks())


def _gated_load(*arguments: Any, **settings: Any) -> Any:
    gate = Path(os.environ[GATE])
    while not gate.exists():
        time.sleep(0.01)
    return loading.load_models(*arguments, **settings)


def _toggle(fault: int, _: object) -> None:
    _faults.symmetric_difference_update({fault})


def _once(fault: int) -> bool:
    """Whether a fault has begun; it is over with that."""
    began = fault in _faults
    _faults.discard(fault)
    return began


def _log_tasks() -> None:
    logging.getLogger("faulty_server").info("asyncio tasks: %d", len(asyncio.all_tasks()))


if __name__ == "__main__":
    install()
    main(prog_name="python -m serving")
