"""Between the engine's thread and a coroutine nothing waits, and only previews are ever lost."""

import asyncio

import numpy as np
import pytest

from serving.delivery import Delivery
from serving.request import Outcome

PIXELS = np.zeros((1, 2, 2), dtype=np.uint8)


def make(*, streaming: bool = True, max_previews: int = 4) -> Delivery:
    loop = asyncio.get_running_loop()
    return Delivery(loop, streaming=streaming, max_previews=max_previews)


async def test_without_streaming_there_is_one_parcel_with_everything() -> None:
    delivery = make(streaming=False)
    delivery.started()
    delivery.image(4, PIXELS)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(delivery.take(), 0.05)
    delivery.image(5, PIXELS)
    delivery.done(Outcome.FINISHED, 0.5, 1.5, "")
    parcel = await delivery.take()
    assert [index for index, _ in parcel.images] == [4, 5]
    assert parcel.ending is not None
    assert (parcel.ending.outcome, parcel.ending.queue_seconds) == (Outcome.FINISHED, 0.5)


async def test_with_streaming_each_parcel_has_what_is_new() -> None:
    delivery = make()
    delivery.image(0, PIXELS)
    first = await delivery.take()
    delivery.image(1, PIXELS)
    delivery.done(Outcome.FINISHED, 0.0, 1.0, "")
    second = await delivery.take()
    assert ([index for index, _ in first.images], first.ending) == ([0], None)
    assert [index for index, _ in second.images] == [1]
    assert second.ending is not None


async def test_only_the_newest_preview_of_an_unfinished_image_is_kept() -> None:
    delivery = make()
    for position in (1, 2, 3):
        delivery.preview(0, position, PIXELS)
        delivery.preview(1, position, PIXELS)
    delivery.image(1, PIXELS)
    parcel = await delivery.take()
    assert [(index, position) for index, position, _ in parcel.previews] == [(0, 3)]
    assert parcel.previews_dropped == 5


async def test_previews_are_bounded_and_the_oldest_go() -> None:
    delivery = make(max_previews=3)
    for index in range(100):
        delivery.preview(index, 1, PIXELS)
    parcel = await delivery.take()
    assert [index for index, _, _ in parcel.previews] == [97, 98, 99]
    assert parcel.previews_dropped == 97


async def test_images_are_never_dropped() -> None:
    delivery = make(max_previews=1)
    for index in range(1000):
        delivery.preview(index, 1, PIXELS)
        delivery.image(index, PIXELS)
    parcel = await delivery.take()
    assert [index for index, _ in parcel.images] == list(range(1000))


def test_an_engine_that_outlives_the_event_loop_is_not_harmed() -> None:
    async def make_one() -> Delivery:
        return make()

    delivery = asyncio.run(make_one())
    delivery.image(0, PIXELS)
    delivery.done(Outcome.CANCELLED, 0.0, 0.0, "")
