"""Small images in a figure, each of their pixels a whole square of the screen's."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

DPI = 100
GREY = "#555555"


class Sheet:
    """A figure measured in pixels from its top left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at a rectangle of pixels."""
        bottom = self.height - top - height
        return self.figure.add_axes((
            left / self.width, bottom / self.height, width / self.width, height / self.height,
        ))  # fmt: skip

    def image(
        self,
        pixels: NDArray[np.uint8],
        left: int,
        top: int,
        scale: int = 1,
        frame: str | None = None,
    ) -> None:
        """Shows [H, W] grey pixels, enlarged, maybe in a frame of two pixels."""
        height, width = pixels.shape
        shown = self.axes(left, top, width * scale, height * scale)
        shown.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
        shown.set_xticks([])
        shown.set_yticks([])
        for spine in shown.spines.values():
            spine.set_visible(frame is not None)
            spine.set_color(frame or "none")
            spine.set_linewidth(2)

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Writes at a pixel; the text's middle is at that height."""
        style = {"va": "center", "ha": "left", **style}
        self.figure.text(left / self.width, 1 - top / self.height, text, **style)
