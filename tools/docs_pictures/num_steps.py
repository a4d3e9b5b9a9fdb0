"""How many steps are enough: the same image in more and more of them, and the measured curve."""

import re
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tools.docs_pictures.model import Model
from tools.docs_pictures.picture import Data
from tools.docs_pictures.sheet import Sheet

SAMPLERS = ("ddpm", "ddim", "dpmpp_2m", "ddim_stochastic")
NUM_STEPS = (1, 2, 4, 6, 8, 10, 15, 20, 50)
LABELS, SEED = (2, 8), 5
PAGE = Path("docs", "quality.md")
_HEADING = "## Quality against network calls"
_SCALE, _CELL, _LEFT, _TOP, _GAP = 2, 62, 136, 28, 8
_CURVES = 260
_DIGITS = NUM_STEPS.index(4)
_TICKS = (4, 6, 8, 10, 15, 20, 50)


def measure(model: Model) -> Data:
    """Images [sampler, label, num_steps, H, W], and the figures of docs/quality.md."""
    images = [
        np.stack([model.images([*LABELS], SEED, sampler, steps, 1.0) for steps in NUM_STEPS], 1)
        for sampler in SAMPLERS
    ]
    return {"images": np.stack(images), **published(PAGE.read_text())}


def published(page: str) -> Data:
    """The table of a page: label accuracy and Frechet ratio, [sampler, num_steps], NaN for none."""
    lines = page.split(_HEADING)[1].split("\n## ", maxsplit=1)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    by_sampler = {row[0].strip("`"): row[1:] for row in rows}
    columns = [by_sampler["sampler"].index(str(steps)) for steps in NUM_STEPS]
    cells = [[_figures(by_sampler[name][column]) for column in columns] for name in SAMPLERS]
    both = np.array(cells, dtype=np.float64)
    return {"labels": both[:, :, 0], "ratio": both[:, :, 1]}


def _figures(cell: str) -> tuple[float, float]:
    found = re.fullmatch(r"([\d.]+) % / ([\d.]+)", cell)
    return (float(found[1]), float(found[2])) if found else (np.nan, np.nan)


def draw(data: Data) -> Figure:
    """The grid above, the curves below."""
    images = data["images"]
    row_height = len(LABELS) * _CELL + _GAP
    grid_height = _TOP + len(SAMPLERS) * row_height
    sheet = Sheet(_LEFT + len(NUM_STEPS) * _CELL + 2, grid_height + _CURVES)
    sheet.text(8, 14, "num_steps", fontsize=10)
    for column, steps in enumerate(NUM_STEPS):
        sheet.text(_LEFT + column * _CELL + 28, 14, f"{steps}", ha="center", fontsize=11)
    for i, sampler in enumerate(SAMPLERS):
        top = _TOP + i * row_height
        sheet.text(8, top + _CELL, sampler, color=f"C{i}", fontsize=9, weight="bold")
        for j in range(len(LABELS)):
            for column in range(len(NUM_STEPS)):
                left = _LEFT + column * _CELL
                sheet.image(images[i, j, column], left, top + j * _CELL, _SCALE)
    _draw_curves(sheet, data, grid_height)
    return sheet.figure


def _draw_curves(sheet: Sheet, data: Data, top: int) -> None:
    """From the fewest steps on that give digits at all."""
    width = (sheet.width - 150) / 2
    titles = (("labels", "images that carry their label, %"), ("ratio", "distance to real digits"))
    for i, (name, title) in enumerate(titles):
        axes = sheet.axes(52 + i * (width + 62), top + 34, width, _CURVES - 84)
        for sampler, values in zip(SAMPLERS, data[name], strict=True):
            axes.plot(
                NUM_STEPS[_DIGITS:], values[_DIGITS:], marker="o", markersize=4, label=sampler
            )
        axes.set_xscale("log")
        axes.set_xticks(_TICKS, [f"{steps}" for steps in _TICKS])
        axes.minorticks_off()
        axes.set_xlabel("num_steps, from 4 on")
        axes.set_title(title, fontsize=10)
        axes.grid(visible=True, alpha=0.25)
        if name == "ratio":
            axes.set_ylim(0, None)
            axes.axhline(1, color="#555555", linewidth=1)
            axes.text(NUM_STEPS[-1], 1.06, "as real ones", ha="right", fontsize=8, color="#555555")
