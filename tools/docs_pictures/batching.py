"""Continuous batching: which image is denoised in which engine step, told by a real engine."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from diffusion.plan import Float32Array
from serving.engine import Engine
from serving.request import GenerateSpec, Outcome, Pixels
from tools.docs_pictures.model import Model
from tools.docs_pictures.picture import COLOURS, Data
from tools.docs_pictures.sheet import GREY, Sheet

LANES = 8
_CELL, _LEFT, _LINE = 31, 54, 19

Event = tuple[int, int, Pixels, bool]
"""(request, index, x_0 estimate [H, W], whether the image is finished)."""


@dataclass(frozen=True)
class Asked:
    """A request, the engine step before which it comes, and the one before which it is cancelled.

    Attributes:
        words: what it is, for the picture.
    """

    spec: GenerateSpec
    words: str
    comes: int
    cancelled: int | None = None


def _spec(label: int, count: int, sampler: str, num_steps: int, scale: float) -> GenerateSpec:
    return GenerateSpec(label, count, 0, 20 + label, sampler, num_steps, scale, preview_every=1)


REQUESTS = (
    Asked(_spec(0, 5, "ddpm", 18, 1.0), "five 0s, ddpm, 18 steps", comes=0),
    Asked(_spec(7, 1, "ddim_stochastic", 9, 1.0), "one 7, ddim_stochastic, 9 steps", comes=2),
    Asked(_spec(3, 2, "dpmpp_2m", 6, 1.0), "two 3s, dpmpp_2m, 6 steps", comes=5),
    Asked(_spec(1, 3, "ddim", 8, 1.0), "three 1s, ddim, 8 steps", comes=8),
    Asked(_spec(8, 2, "ddim", 10, 1.0), "two 8s, ddim, 10 steps", comes=12, cancelled=18),
)


class _Watcher:
    """A sink that writes down every image and every preview."""

    def __init__(self, request: int, events: list[Event]) -> None:
        self._request, self._events = request, events

    def started(self) -> None:
        """Does nothing."""

    def image(self, index: int, pixels: Pixels) -> None:
        """The last step of an image."""
        self._events.append((self._request, index, pixels[0].copy(), True))

    def preview(self, index: int, position: int, pixels: Pixels) -> None:
        """Any other step of it."""
        self._events.append((self._request, index, pixels[0].copy(), False))

    def done(
        self, outcome: Outcome, queue_seconds: float, compute_seconds: float, detail: str
    ) -> None:
        """Does nothing."""


class _Machine:
    """The network with a clock of its own, so that the engine's pace does not depend on ours."""

    def __init__(self, model: Model) -> None:
        self._network = model.source.network
        self.seconds = 0.0

    @staticmethod
    def cost(rows: int) -> float:
        """Seconds of a call: as where a wide batch costs little more than a narrow one."""
        return 20e-3 + 0.2e-3 * rows

    def __call__(self, x_t: Float32Array, emb: Float32Array, /) -> Float32Array:
        self.seconds += self.cost(len(x_t))
        return self._network(x_t, emb)


def engine_steps(model: Model) -> Iterator[list[Event]]:
    """Drives an engine by hand until all requests are over; yields what each step did."""
    machine = _Machine(model)
    engine = Engine(
        model.source.model,
        machine,
        max_lanes=LANES,
        step_seconds={rows: machine.cost(rows) for rows in (1, LANES, 2 * LANES)},
        clock=lambda: machine.seconds,
    )
    events: list[Event] = []
    ids: dict[int, int] = {}
    step = 0
    while len(ids) < len(REQUESTS) or engine.has_work:
        for i, asked in enumerate(REQUESTS):
            if asked.comes == step:
                ids[i] = engine.submit(asked.spec, _Watcher(i, events))
            elif asked.cancelled == step:
                engine.cancel(ids[i])
        engine.step()
        yield sorted(events, key=lambda event: event[:2])
        events.clear()
        step += 1


def measure(model: Model) -> Data:
    """For every lane of every step: step, row of the picture, request, x_0 estimate, finished.

    A lane keeps its row for as long as it runs; a new one takes the first that is free.
    """
    rows: dict[tuple[int, int], int] = {}
    cells: list[tuple[int, int, int, bool]] = []
    pixels: list[Pixels] = []
    for step, events in enumerate(engine_steps(model)):
        running = {event[:2] for event in events}
        rows = {lane: row for lane, row in rows.items() if lane in running}
        for request, index, estimate, finished in events:
            free = min(set(range(LANES)) - set(rows.values()), default=0)
            row = rows.setdefault((request, index), free)
            cells.append((step, row, request, finished))
            pixels.append(estimate)
    return {"cells": np.array(cells, dtype=np.int64), "pixels": np.stack(pixels)}


def draw(data: Data) -> Figure:
    """A column per engine step, a row per lane; each cell is what the network sees there."""
    cells, pixels = data["cells"], data["pixels"]
    num_steps = int(cells[:, 0].max()) + 1
    top = len(REQUESTS) * _LINE + 40
    sheet = Sheet(_LEFT + num_steps * _CELL + 4, top + LANES * _CELL + 34)
    for i, asked in enumerate(REQUESTS):
        left = _LEFT + asked.comes * _CELL
        height = 14 + i * _LINE
        colour = COLOURS[i]
        words = asked.words
        if asked.cancelled is not None:
            words += f", cancelled before step {asked.cancelled}"
        sheet.text(left + 6, height, words, color=colour, fontsize=9, weight="bold")
        _line(sheet, left, height - 7, top + LANES * _CELL, colour)
    sheet.text(8, top + LANES * _CELL / 2, "lanes", rotation=90, fontsize=10)
    for row in range(LANES):
        sheet.text(_LEFT - 10, top + row * _CELL + 14, f"{row}", ha="right", color=GREY, fontsize=8)
    for step in range(num_steps):
        left, below = _LEFT + step * _CELL + 14, top + LANES * _CELL + 9
        sheet.text(left, below, f"{step}", ha="center", color=GREY, fontsize=8)
    sheet.text(
        _LEFT + num_steps * _CELL / 2, top + LANES * _CELL + 24,
        "engine step: one network call for the whole column", ha="center", fontsize=10,
    )  # fmt: skip
    for (step, row, request, finished), estimate in zip(cells, pixels, strict=True):
        left, height = _LEFT + int(step) * _CELL, top + int(row) * _CELL
        sheet.image(estimate, left, height, frame="black" if finished else COLOURS[request])
    return sheet.figure


def _line(sheet: Sheet, left: float, top: float, bottom: float, colour: str) -> None:
    """A request comes: a line from its words down to the lanes."""
    axes = sheet.axes(left - 2, top, 2, bottom - top)
    axes.set_axis_off()
    axes.axvline(0.5, color=colour, linewidth=1, linestyle="dotted")
    axes.set_xlim(0, 1)
