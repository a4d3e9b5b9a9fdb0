"""Equal images are computed once, whoever asks, and nobody notices but by the time it takes."""

import numpy as np
import pytest

from serving.engine import Engine
from serving.request import GenerateSpec, Outcome, QueueFull
from tests.fakes import (
    FakeClock,
    FakeNetwork,
    RecordingSink,
    assert_reference_pixels,
    fake_model,
    spec,
)

MODEL = fake_model()


def engine_with(network: FakeNetwork, *, cache_bytes: int = 1_000_000, lanes: int = 8) -> Engine:
    # Time stands still, so that no pace is known and nothing is kept from filling lanes up.
    return Engine(MODEL, network, max_lanes=lanes, cache_bytes=cache_bytes, clock=FakeClock())


def submit(engine: Engine, request: GenerateSpec) -> tuple[int, RecordingSink]:
    sink = RecordingSink()
    return engine.submit(request, sink), sink


def finish(engine: Engine) -> tuple[int, int]:
    """Steps until idle; images taken from the cache and from lanes of others."""
    hits = shared = 0
    while engine.has_work:
        stats = engine.step()
        assert stats is not None
        hits, shared = hits + stats.cache_hits, shared + stats.images_shared
    assert engine.statistics().lanes_active == engine.statistics().images_waiting == 0
    return hits, shared


def rows(network: FakeNetwork) -> int:
    return sum(map(len, network.batches))


def test_a_hit_costs_no_row_and_is_equal_to_the_bit() -> None:
    network = FakeNetwork()
    engine = engine_with(network)
    request = spec(count=5, first_index=2, guidance_scale=2.0, sampler="dpmpp_2m")
    _, first = submit(engine, request)
    assert finish(engine) == (0, 0)
    computed = rows(network)
    _, again = submit(engine, request)
    assert finish(engine) == (5, 0)
    assert rows(network) == computed
    assert again.outcome is Outcome.FINISHED
    for sink in (first, again):
        assert_reference_pixels(MODEL, request, sink.images)


def test_a_request_that_is_half_in_the_cache_computes_the_other_half() -> None:
    network = FakeNetwork()
    engine = engine_with(network, lanes=3)
    submit(engine, spec(count=6, first_index=4))
    finish(engine)
    computed = rows(network)
    wider = spec(count=15)  # 4 .. 9 are known
    _, sink = submit(engine, wider)
    assert finish(engine) == (6, 0)
    assert rows(network) - computed == 9 * wider.num_steps
    assert_reference_pixels(MODEL, wider, sink.images)


def test_equal_images_in_flight_share_a_lane() -> None:
    network = FakeNetwork()
    engine = engine_with(network)
    request = spec(count=4, num_steps=6)
    sinks = [submit(engine, request)[1]]
    engine.step()
    sinks += [submit(engine, request)[1] for _ in range(3)]
    assert finish(engine) == (0, 12)
    assert rows(network) == 4 * 6
    for sink in sinks:
        assert_reference_pixels(MODEL, request, sink.images)


@pytest.mark.parametrize("who", ["owner", "sharer"])
def test_cancelling_one_of_those_who_share_does_not_disturb_the_others(who: str) -> None:
    network = FakeNetwork()
    engine = engine_with(network)
    request = spec(count=3, num_steps=6, sampler="dpmpp_2m")
    first_id, first = submit(engine, request)
    engine.step()
    second_id, second = submit(engine, request)
    _, third = submit(engine, request)
    engine.step()
    engine.cancel(first_id if who == "owner" else second_id)
    finish(engine)
    gone, stays = (first, second) if who == "owner" else (second, first)
    assert gone.outcome is Outcome.CANCELLED
    assert not gone.images
    for sink in (stays, third):
        assert_reference_pixels(MODEL, request, sink.images)
    assert rows(network) == 3 * 6, "what was under way was computed again"


def test_nan_in_a_shared_lane_ends_all_who_wait_for_it_and_nobody_else() -> None:
    network = FakeNetwork(nan_labels={9}, nan_calls={2})
    engine = engine_with(network)
    bad = spec(label=9, count=2, num_steps=5)
    sinks = [submit(engine, bad)[1] for _ in range(3)]
    other = spec(label=1, count=3, num_steps=5)
    _, well = submit(engine, other)
    finish(engine)
    assert [sink.outcome for sink in sinks] == [Outcome.NETWORK_FAILED] * 3
    assert_reference_pixels(MODEL, other, well.images)
    _, later = submit(engine, bad)
    assert finish(engine) == (0, 0), "a bad image was kept"
    assert_reference_pixels(MODEL, bad, later.images)


def test_a_call_that_raises_ends_those_who_share_its_lanes_too() -> None:
    network = FakeNetwork(raise_on={1})
    engine = engine_with(network)
    sinks = [submit(engine, spec(count=2))[1] for _ in range(2)]
    finish(engine)
    assert [sink.outcome for sink in sinks] == [Outcome.NETWORK_FAILED] * 2


def test_an_urgent_request_does_not_wait_for_a_lane_that_was_set_aside() -> None:
    network = FakeNetwork()
    engine = engine_with(network, lanes=2)
    large = spec(label=1, count=20, num_steps=20)
    _, slow = submit(engine, large)
    for _ in range(5):
        engine.step()
    _, urgent = submit(engine, spec(label=2, count=2, num_steps=10))
    engine.step()  # both lanes of the large one are aside now
    assert engine.statistics().lanes_set_aside == 2
    same_image = spec(label=1, count=1, num_steps=20)  # index 0 of the large one
    _, small = submit(engine, same_image)
    steps = 0
    while small.outcome is None:
        engine.step()
        steps += 1
    assert urgent.outcome is Outcome.FINISHED
    assert steps <= 9 + 15, "it waited for the large request's turn"
    finish(engine)
    assert_reference_pixels(MODEL, same_image, small.images)
    assert_reference_pixels(MODEL, large, slow.images)


def test_a_request_with_previews_takes_no_part_and_gets_all_of_them() -> None:
    network = FakeNetwork()
    engine = engine_with(network)
    plain = spec(count=2, num_steps=6)
    with_previews = spec(count=2, num_steps=6, preview_every=2)
    submit(engine, plain)
    _, watching = submit(engine, with_previews)
    assert finish(engine) == (0, 0)
    _, watching_again = submit(engine, with_previews)
    assert finish(engine) == (0, 0)
    for sink in (watching, watching_again):
        assert sorted(sink.previews) == [(i, k) for i in (0, 1) for k in (2, 4)]
        assert_reference_pixels(MODEL, with_previews, sink.images)


def test_a_sink_that_raises_harms_nobody_who_shares_with_it() -> None:
    class Broken(RecordingSink):
        def image(self, index: int, pixels: np.ndarray) -> None:
            raise OSError("the reader has gone")

    engine = engine_with(FakeNetwork())
    request = spec(count=3)
    broken = Broken()
    engine.submit(request, broken)
    _, well = submit(engine, request)
    finish(engine)
    assert broken.outcome is Outcome.CANCELLED
    assert_reference_pixels(MODEL, request, well.images)


def test_the_cache_is_bounded_and_off_by_default() -> None:
    network = FakeNetwork()
    bounded = engine_with(network, cache_bytes=4000)
    for seed in range(30):
        submit(bounded, spec(seed=seed))
        finish(bounded)
        assert 0 < bounded.statistics().cache_bytes <= 4000
    off = Engine(MODEL, FakeNetwork())
    for _ in range(2):
        submit(off, spec())
        assert finish(off) == (0, 0)
    assert off.statistics().cache_bytes == 0


def test_thousands_who_ask_for_the_same_are_bounded_like_others() -> None:
    engine = Engine(
        MODEL, FakeNetwork(), max_lanes=2, max_queued_images=10, cache_bytes=10**6,
        clock=FakeClock(),
    )  # fmt: skip
    accepted = 0
    for _ in range(50):
        try:
            submit(engine, spec(num_steps=50))
        except QueueFull:
            continue
        finally:
            engine.step()
        accepted += 1
    assert accepted == 11, "one runs and ten wait for it"
    finish(engine)
