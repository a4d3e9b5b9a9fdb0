"""A picture: numbers from the real model, and a drawing of them that anybody can repeat."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from tools.docs_pictures.model import Model

Data = dict[str, NDArray[Any]]

FOLDER = Path("docs", "images", "how-it-works")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
STYLE: Any = {
    "figure.facecolor": "white",  # solid: readable on a light and on a dark page
    "savefig.facecolor": "white",
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Picture:
    """One file of docs/images/how-it-works, NAME.png, and the numbers in it, NAME.npz.

    Attributes:
        name: of both files.
        measure: asks the model; the same model gives the same numbers on the same kind of CPU.
        draw: makes a figure of the numbers and of nothing else.
        sources: files whose text decides how it looks.
    """

    name: str
    measure: Callable[[Model], Data]
    draw: Callable[[Data], Figure]
    sources: tuple[Path, ...]

    def png(self, data: Data) -> bytes:
        """Returns the picture, with what it was made from written into it."""
        with mpl.rc_context(STYLE):
            figure = self.draw(data)
            drawn = BytesIO()
            figure.savefig(drawn, format="png", metadata={"Software": None})
        notes = PngImagePlugin.PngInfo()
        for key, value in self.made_from(data).items():
            notes.add_text(key, value)
        content = BytesIO()
        with Image.open(drawn) as image:
            few = image.convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE)
            few.save(content, format="PNG", optimize=True, pnginfo=notes)
        return content.getvalue()

    def made_from(self, data: Data) -> dict[str, str]:
        """Returns what identifies the numbers and the code of the drawing."""
        code = b"".join(path.read_bytes() for path in self.sources)
        return {"Numbers": fingerprint(data), "Code": hashlib.sha256(code).hexdigest()}


def fingerprint(data: Data) -> str:
    """The sha256 of arrays with their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(data):
        array = np.ascontiguousarray(data[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save(picture: Picture, data: Data, folder: Path) -> None:
    """Writes NAME.npz and NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{picture.name}.npz", allow_pickle=False, **data)
    (folder / f"{picture.name}.png").write_bytes(picture.png(data))


def load(picture: Picture, folder: Path) -> Data:
    """Reads NAME.npz."""
    with np.load(folder / f"{picture.name}.npz") as stored:
        return {name: stored[name] for name in stored.files}
