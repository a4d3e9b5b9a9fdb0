"""Work off the event loop: its result, its error, or nothing if somebody says stop first."""

import asyncio
import threading

import pytest

from serving.background import first, on_daemon_thread, unless


async def test_the_result_and_the_error_of_work_come_back() -> None:
    thread = await on_daemon_thread(threading.current_thread)
    assert thread.daemon
    assert thread is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        await on_daemon_thread(lambda: 1 / 0)


async def test_work_is_waited_for_unless_stop_comes_first() -> None:
    stop, may_end = asyncio.Event(), threading.Event()
    assert await unless(stop, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await unless(stop, lambda: 1 / 0)
    waiting = asyncio.create_task(unless(stop, may_end.wait))
    await asyncio.sleep(0)
    stop.set()
    assert await asyncio.wait_for(waiting, 5) is None
    may_end.set()


async def test_the_first_of_several_events_is_enough_and_no_task_is_left() -> None:
    one, other = asyncio.Event(), asyncio.Event()
    waiting = asyncio.create_task(first(one, other))
    await asyncio.sleep(0)
    other.set()
    await asyncio.wait_for(waiting, 5)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_work_that_outlives_the_event_loop_harms_nobody() -> None:
    may_end = threading.Event()

    async def begin() -> None:
        on_daemon_thread(may_end.wait)

    asyncio.run(begin())
    [loader] = [thread for thread in threading.enumerate() if thread.name == "loader"]
    may_end.set()
    loader.join(5)
    assert not loader.is_alive()
