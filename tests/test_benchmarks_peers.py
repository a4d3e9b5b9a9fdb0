"""The peers draw what our reference draws, and are measured as they should be."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from benchmarks.load.targets import Target
from benchmarks.peers import processes
from benchmarks.peers.batched import best_rows, draw_all
from benchmarks.peers.drawing import Batch, Drawing, Pixels, Tables
from benchmarks.peers.onnx_loop import OnnxLoop
from benchmarks.peers.processes import PEERS, PeerUnavailable, Running
from benchmarks.peers.workloads import (
    SMALL,
    Sizes,
    compare,
    saturation_rows_per_second,
    steady_rate,
)
from diffusion.plan import Plan
from diffusion.reference import sample, to_uint8
from serving.bundle import load_bundle
from serving.network import OnnxNetwork

MNIST = Path(__file__).resolve().parent.parent / "models" / "mnist"


@pytest.fixture(scope="module")
def tables() -> Tables:
    return Tables(MNIST)


def reference(tables: Tables, drawing: Drawing) -> Pixels:
    network = OnnxNetwork(load_bundle(MNIST), num_threads=1)
    images = sample(
        lambda x, t, label: network(x, tables.embedding[t, label]),
        tables.plan(drawing.num_steps),
        [drawing.label] * drawing.count,
        drawing.seed,
        tables.image_shape,
        null_label=10,
    )
    return to_uint8(images)[:, 0]


def test_the_plain_loop_draws_what_the_reference_draws(tables: Tables) -> None:
    loop = OnnxLoop(MNIST, tables, num_threads=1)
    asked = [Drawing(3, 2, 5, 7, True), Drawing(8, 1, 3, 2**40, True), Drawing(1, 3, 5, 9, True)]
    for drawing, images in zip(asked, draw_all(loop, tables, asked, max_rows=4), strict=True):
        assert compare(images, reference(tables, drawing))["largest"] <= 1


def test_its_own_noise_is_another_for_another_seed(tables: Tables) -> None:
    loop = OnnxLoop(MNIST, tables, num_threads=1)
    first, same, other = (
        draw_all(loop, tables, [Drawing(3, 1, 2, seed)], 8)[0] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


class RecordingLoop:
    """Gives every row its seed and index as pixels."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def draw(self, batch: Batch, plan: Plan) -> Pixels:
        self.calls.append((plan.num_steps, len(batch)))
        rows = np.stack([batch.seed, batch.index], axis=1).astype(np.uint8)
        return rows.reshape(-1, 1, 2)


def test_requests_with_equal_steps_share_passes_of_at_most_so_many_rows(tables: Tables) -> None:
    loop = RecordingLoop()
    asked = [Drawing(0, 2, 5, 1), Drawing(0, 1, 3, 2), Drawing(0, 3, 5, 3)]
    images = draw_all(loop, tables, asked, max_rows=4)
    assert loop.calls == [(3, 1), (5, 4), (5, 1)]
    assert [each[:, 0].tolist() for each in images] == [
        [[1, 0], [1, 1]], [[2, 0]], [[3, 0], [3, 1], [3, 2]],
    ]  # fmt: skip


def test_the_fastest_number_of_rows_is_chosen(tables: Tables) -> None:
    class Slow:
        """10 ms a pass, and 200 ms with more than 4 rows."""

        def draw(self, batch: Batch, plan: Plan) -> Pixels:
            time.sleep(0.01 if len(batch) <= 4 else 0.2)
            return np.zeros((len(batch), 1, 1), dtype=np.uint8)

    assert best_rows(Slow(), tables, (1, 4, 8)) == 4
    assert best_rows(RecordingLoop(), tables, (64,)) == 64


def test_a_request_survives_its_line() -> None:
    drawing = Drawing(3, 2, 5, 7, True)
    assert Drawing.from_json(drawing.to_json()) == drawing
    assert json.loads(drawing.to_json())["num_steps"] == 5
    assert drawing.rows == 10


def test_images_are_compared_in_steps_of_one_255th() -> None:
    ours = np.zeros((1, 2, 2), dtype=np.uint8)
    theirs = np.array([[[0, 1], [2, 255]]], dtype=np.uint8)
    assert compare(theirs, ours) == {"largest": 255, "mean": 64.5, "share_within_1": 0.5}


def answers(seconds: Iterator[float] | list[float], rows: int) -> list[tuple[float, int]]:
    return [(each, rows) for each in seconds]


def test_the_rate_at_saturation_is_that_of_the_steady_part() -> None:
    every_tenth = answers([i / 10 for i in range(20, 101)], 5)  # nothing in the first 2 s
    assert steady_rate(every_tenth, 10.0) == pytest.approx(50.0)


def test_answers_that_come_in_clumps_do_not_raise_the_rate() -> None:
    clumps = answers([second + i / 1000 for second in (3, 5, 7, 9) for i in range(20)], 10)
    assert steady_rate(clumps, 10.0) == pytest.approx(200 / 2.0, rel=0.02)


def test_a_turn_lasts_until_there_were_enough_batches_to_tell_a_rate() -> None:
    """Two instances, one a little behind the other, with a batch each in the first turn."""
    batch, seconds, waiting = 8, 0.15, asyncio.Queue[asyncio.Event]()

    async def instance(behind_seconds: float) -> None:
        await asyncio.sleep(behind_seconds)
        while True:
            answered = [await waiting.get()]
            while len(answered) < batch and not waiting.empty():
                answered.append(waiting.get_nowait())
            await asyncio.sleep(seconds)
            for each in answered:
                each.set()

    class Server:
        async def draw(self, _: Drawing) -> None:
            answered = asyncio.Event()
            await waiting.put(answered)
            await answered.wait()

    async def measured() -> float:
        instances = [asyncio.create_task(instance(behind)) for behind in (0.0, 0.02)]
        running = SimpleNamespace(peer=SimpleNamespace(protocol="grpc"), target=Server())
        sizes = SimpleNamespace(turn_seconds=0.2, outstanding=24, loop_batch=64)
        rate = saturation_rows_per_second(cast("Running", running), cast("Sizes", sizes), 0)
        try:
            return await rate
        finally:
            for each in instances:
                each.cancel()

    rate = asyncio.run(asyncio.wait_for(measured(), 30))
    assert rate == pytest.approx(2 * batch * SMALL.rows / seconds, rel=0.3)


def test_answers_after_the_turn_do_not_count() -> None:
    within = answers([3.0, 4.0, 5.0], 10)
    assert steady_rate([*within, (30.0, 10)], 6.0) == pytest.approx(10.0)


def test_a_peer_slower_than_its_turn_still_has_a_rate() -> None:
    assert steady_rate([(8.0, 100)], 2.0) == pytest.approx(12.5)


@pytest.mark.parametrize("features", [["avx2"], ["avx2", "avx512_bf16"], ["bf16"]])
def test_peers_in_bfloat16_run_where_the_cpu_has_it(features: list[str]) -> None:
    left_out = []
    for peer in PEERS:
        try:
            peer.require(features)
        except PeerUnavailable as reason:
            assert str(reason) == "this CPU has no instructions for bfloat16"
            left_out.append(peer.name)
    emulated = ["diffusers, eager bf16", "diffusers, compile bf16"]
    assert left_out == (emulated if features == ["avx2"] else [])


def test_who_polls_is_idle_when_it_does_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [1.4, 0.9, 0.5]

    async def cpu_share(_: int) -> float:
        return shares.pop(0) if len(shares) > 1 else shares[0]

    monkeypatch.setattr(processes, "_cpu_share", cpu_share)
    monkeypatch.setattr(processes, "IDLE_SECONDS", 0.05)
    target = cast("Target", None)
    running = Running(PEERS[-1], target, lambda: target, 0, 0.0, idle_cpu_share=0.45)
    asyncio.run(running.wait_idle())
    assert shares == [0.5]
    with pytest.raises(PeerUnavailable, match="LitServe was still busy"):
        asyncio.run(replace(running, idle_cpu_share=0.0).wait_idle())
