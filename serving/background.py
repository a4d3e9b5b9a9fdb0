"""Waiting on the event loop for what happens elsewhere."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar, cast

_ResultT = TypeVar("_ResultT")


async def first(*events: asyncio.Event) -> None:
    """Waits until one of the events is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def unless(stop: asyncio.Event, work: Callable[[], _ResultT]) -> _ResultT | None:
    """Runs `work` on a thread of its own and returns its result; None if `stop` is set first."""
    result = on_daemon_thread(work)
    finished = asyncio.Event()
    result.add_done_callback(lambda _: finished.set())
    await first(finished, stop)
    if result.done():
        return result.result()
    result.cancel()
    return None


def on_daemon_thread(work: Callable[[], _ResultT]) -> "asyncio.Future[_ResultT]":
    """Runs `work` on a thread, called "loader", that does not keep the process from exiting."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_ResultT] = loop.create_future()

    def settle(result: _ResultT | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast("_ResultT", result))

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  (raised again where the future is awaited)
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="loader", daemon=True).start()
    return future
