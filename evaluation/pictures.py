"""Pictures of a report, as small PNG files."""

from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from evaluation.results import Curve, DenoisingError, Pair
from evaluation.rows import Row, curve_lines

Pictures = dict[str, bytes]
"""File name -> PNG."""

_GAP = 2  # pixels between images
_BACKGROUND = 96
_STROKES = ("solid", "dashed", "dashdot", "dotted")


def samples_picture(
    images: NDArray[np.uint8], labels: NDArray[np.integer], num_labels: int, columns: int = 10
) -> bytes:
    """The first images of each label in a row: at most ``columns`` of each.

    Args:
        images: uint8 [N, C, H, W].
        labels: int [N].
        num_labels: rows.
        columns: images in a row.
    """
    shape = images.shape[1:]
    cells = np.full((num_labels, columns, *shape), _BACKGROUND, np.uint8)
    for label in range(num_labels):
        of_label = images[labels == label][:columns]
        cells[label, : len(of_label)] = of_label
    return _png(_sheet(cells))


def pairs_picture(images: NDArray[np.uint8], train: NDArray[np.uint8], columns: int = 10) -> bytes:
    """Samples, each above the training image nearest to it.

    Args:
        images: uint8 [P, C, H, W], nearest first; P at least 1.
        train: uint8 [P, C, H, W].
        columns: pairs in a row.
    """
    rows = -(-len(images) // columns)
    cells = np.full((rows, 2, columns, *images.shape[1:]), _BACKGROUND, np.uint8)
    for i in range(len(images)):
        row, column = divmod(i, columns)
        cells[row, 0, column], cells[row, 1, column] = images[i], train[i]
    return _png(_sheet(cells.reshape(2 * rows, columns, *images.shape[1:])))


def curve_picture(curve: Curve) -> bytes:
    """Frechet ratio, label accuracy and recall against num_steps, a line per sampler and scale."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    quantities: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("Frechet distance to floor", lambda row: row.frechet_ratio),
        ("label accuracy", lambda row: row.label_accuracy),
        ("recall", lambda row: row.recall),
    )
    floor = curve.floors[0]
    lines = curve_lines(curve.rows)
    settings = [rows[0].setting for _, rows in lines if rows[0].setting is not None]
    samplers = sorted({setting.sampler for setting in settings})
    scales = sorted({setting.guidance_scale for setting in settings})
    for axes, (name, value) in zip(panels, quantities, strict=True):
        for setting, (line, rows) in zip(settings, lines, strict=True):
            axes.plot(
                [row.setting.num_steps for row in rows if row.setting],
                [value(row) for row in rows],
                color=f"C{samplers.index(setting.sampler)}",
                linestyle=_STROKES[scales.index(setting.guidance_scale) % len(_STROKES)],
                marker="o", markersize=3, linewidth=1, label=line,
            )  # fmt: skip
        axes.axhline(value(floor), color="grey", linewidth=2, alpha=0.4, label="test images")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("num_steps")
        axes.set_title(name, fontsize=10)
        axes.grid(visible=True, alpha=0.3)
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_formatter("{x:g}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return _figure_png(figure)


def denoising_picture(error: DenoisingError) -> bytes:
    """Held-out mean squared error of eps against the log-SNR."""
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        [point.log_snr for point in error.points],
        [point.error for point in error.points],
        marker="o", markersize=3, linewidth=1,
    )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("log-SNR, ln(abar / (1 - abar)): noise on the left, image on the right")
    axes.set_ylabel("MSE of eps")
    axes.grid(visible=True, alpha=0.3)
    return _figure_png(figure)


def closest_images(
    pairs: Sequence[Pair], images: NDArray[np.uint8], train: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Both sides of the pairs.

    Args:
        pairs: of ``MemorisationResult``.
        images: uint8 [N, C, H, W], the samples.
        train: uint8 [M, C, H, W], the training set.
    """
    return images[[pair.image for pair in pairs]], train[[pair.train_row for pair in pairs]]


def _sheet(cells: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[rows, columns, C, H, W] side by side with gaps: [H', W', C]."""
    padding = [(0, 0)] * 3 + [(_GAP, 0), (_GAP, 0)]
    padded = np.pad(cells, padding, constant_values=_BACKGROUND)
    rows, columns, channels, height, width = padded.shape
    return padded.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)


def _png(pixels: NDArray[np.uint8], scale: int = 2) -> bytes:
    enlarged = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    content = BytesIO()
    image = Image.fromarray(enlarged[:, :, 0] if enlarged.shape[2] == 1 else enlarged)
    image.save(content, format="PNG", optimize=True)
    return content.getvalue()


def _figure_png(figure: Figure) -> bytes:
    content = BytesIO()
    # No metadata: the same numbers give the same bytes with the same version of matplotlib.
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
