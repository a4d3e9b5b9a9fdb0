"""What a run leaves for people: progress bar, JSON lines, TensorBoard events, loss curve."""

import io
import json
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from training.disk import room_for, write_atomically

HELD_OUT = "validation_eps_mse"


class Records(AbstractContextManager["Records"]):
    """Writers of one run. In processes that are not the main one every method does nothing.

    Args:
        folder: ``log.jsonl``, ``loss.png``, and TensorBoard's event files are written there.
        total: train steps of the whole run.
        start: train steps done before, when resumed; later lines of an earlier try are dropped.
        active: whether this process writes.
        tensorboard: whether to write event files.

    Raises:
        DiskFull: here or in any method, when a file does not fit.
    """

    def __init__(
        self, folder: Path, total: int, start: int, *, active: bool, tensorboard: bool
    ) -> None:
        self.active = active
        self._path = folder / "log.jsonl"
        self._writer: Any = None
        if not active:
            return
        self.lines = [line for line in _read_lines(self._path) if line["train_step"] <= start]
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        write_atomically(self._path, text.encode())
        self._held_out = [line[HELD_OUT] for line in self.lines if HELD_OUT in line]
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._writer = SummaryWriter(str(folder), purge_step=start + 1)
        self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def advance(self) -> None:
        """One train step is done."""
        if self.active:
            self._bar.update()

    def log(self, train_step: int, **values: float) -> None:
        """Write numbers of ``train_step`` everywhere; loss and images_per_second are among them."""
        if not self.active:
            return
        line = {"train_step": train_step, **values}
        self.lines.append(line)
        with room_for(self._path), self._path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        shown = f"loss {values['loss']:.4f}, {values['images_per_second']:.0f} images/s"
        if HELD_OUT in values:
            self._held_out.append(values[HELD_OUT])
        if self._held_out:
            shown += f", held out {self._held_out[-1]:.4f}"
        self._bar.set_postfix_str(shown)
        if self._writer is not None:
            with room_for(self._path.parent):
                for name, value in values.items():
                    self._writer.add_scalar(name, value, train_step)

    def save_loss_curve(self, path: Path) -> None:
        """Plot the logged loss, and the held-out error where it was measured, by train step."""
        if not self.active or not self.lines:
            return
        from matplotlib.figure import Figure  # slow to import; no pyplot, so no global state

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        measured = [line for line in self.lines if HELD_OUT in line]
        for name, label, lines, marker in (
            ("loss", "training: loss", self.lines, ""),
            (HELD_OUT, "held out: error of eps, EMA", measured, "o"),
        ):
            if lines:
                steps = [line["train_step"] for line in lines]
                axes.plot(steps, [line[name] for line in lines], marker=marker, ms=3, label=label)
        axes.set(xlabel="train step", ylabel="mean squared error", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        write_atomically(path, picture.getvalue())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.active:
            self._bar.close()
            if self._writer is not None:
                with room_for(self._path.parent):
                    self._writer.close()


def _read_lines(path: Path) -> list[dict[str, float]]:
    """Whole JSON lines of a log; a last line cut short by a crash is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
