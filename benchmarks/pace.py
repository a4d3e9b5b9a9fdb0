"""How often something can be done."""

import time
from collections.abc import Callable


def times_per_second(work: Callable[[], object], seconds: float) -> float:
    """Does it again and again; returns how often a second.

    Args:
        work: what is done.
        seconds: for so long, and to the end of what has begun by then; above 0.
    """
    begin = now = time.perf_counter()
    times = 0
    while now - begin < seconds:
        work()
        times += 1
        now = time.perf_counter()
    return times / (now - begin)
