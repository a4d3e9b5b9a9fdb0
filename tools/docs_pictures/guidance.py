"""What guidance does: every digit at several scales, from the same noise."""

import numpy as np
from matplotlib.figure import Figure

from tools.docs_pictures.model import Model
from tools.docs_pictures.picture import Data
from tools.docs_pictures.sheet import GREY, Sheet

SCALES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
SAMPLER, NUM_STEPS, SEED = "ddim", 15, 3
_NOTES = ("the label is ignored", "the label as trained", "", "", "", "exaggerated")
_SCALE, _CELL, _LEFT, _TOP = 2, 62, 190, 28


def measure(model: Model) -> Data:
    """Images [scale, digit, H, W]."""
    digits = list(range(model.null_label))
    rows = [model.images(digits, SEED, SAMPLER, NUM_STEPS, scale) for scale in SCALES]
    return {"images": np.stack(rows)}


def draw(data: Data) -> Figure:
    """A row per scale."""
    images = data["images"]
    rows, columns = images.shape[:2]
    sheet = Sheet(_LEFT + columns * _CELL + 2, _TOP + rows * _CELL + 2)
    for digit in range(columns):
        left = _LEFT + digit * _CELL
        sheet.text(left + 28, 14, f"{digit}", ha="center", fontsize=11)
    for row in range(rows):
        top = _TOP + row * _CELL
        sheet.text(8, top + 22, f"guidance_scale {SCALES[row]:g}", fontsize=10)
        sheet.text(8, top + 39, _NOTES[row], fontsize=8, color=GREY)
        for column in range(columns):
            sheet.image(images[row, column], _LEFT + column * _CELL, top, _SCALE)
    return sheet.figure
