"""Many threads use CUDA at once, and none while one records a graph."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.recording import Recording

PATIENCE_SECONDS = 30.0


def test_several_threads_use_it_at_once() -> None:
    recording, both = Recording(), threading.Barrier(2, timeout=PATIENCE_SECONDS)

    def use() -> None:
        with recording.use():
            both.wait()  # breaks unless both are inside

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(use) for _ in range(2)]:
            done.result()


def test_nobody_uses_it_while_one_records_and_recordings_come_one_by_one() -> None:
    recording = Recording()
    inside: list[str] = []
    seen: list[tuple[str, ...]] = []

    def use() -> None:
        for _ in range(200):
            with recording.use():
                inside.append("use")
                seen.append(tuple(inside))
                inside.remove("use")

    def record() -> None:
        for _ in range(20):
            with recording.record():
                inside.append("record")
                time.sleep(0.0005)
                seen.append(tuple(inside))
                inside.remove("record")

    with ThreadPoolExecutor(5) as threads:
        for done in [threads.submit(work) for work in (use, use, use, record, record)]:
            done.result()
    assert all(each == ("record",) for each in seen if "record" in each)
    assert sum("record" in each for each in seen) == 40


def test_who_records_does_not_wait_for_those_that_come_after() -> None:
    recording = Recording()
    using, asked, recorded = threading.Event(), threading.Event(), threading.Event()
    order: list[str] = []

    def use() -> None:
        with recording.use():
            using.set()
            asked.wait(PATIENCE_SECONDS)
            time.sleep(0.05)  # both others wait by now
            order.append("first")

    def record() -> None:
        using.wait(PATIENCE_SECONDS)
        asked.set()
        with recording.record():
            order.append("record")
            recorded.set()

    def use_later() -> None:
        asked.wait(PATIENCE_SECONDS)
        time.sleep(0.01)
        with recording.use():
            order.append("later")

    with ThreadPoolExecutor(3) as threads:
        for done in [threads.submit(work) for work in (use, record, use_later)]:
            done.result()
    assert order == ["first", "record", "later"]
    assert recorded.is_set()


@pytest.mark.parametrize("how", ["use", "record"])
def test_an_error_inside_lets_the_others_go_on(how: str) -> None:
    recording = Recording()
    with pytest.raises(RuntimeError), getattr(recording, how)():
        raise RuntimeError
    with recording.record():
        pass
    with recording.use():
        pass
