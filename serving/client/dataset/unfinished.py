"""The images of a data set while it is drawn: kept as they come, found again by the next run."""

import fcntl
import json
import shutil
import zlib
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from serving.client.dataset.plan import DatasetPlan, Span
from serving.images import Pixels

FOLDER = ".unfinished"


class DatasetError(Exception):
    """A data set that cannot be written there; the message is one line."""


class Unfinished:
    """A file with room for every image, and a journal of the spans that are in it.

    A line of the journal is written after the pixels, with their checksum. So whatever ends a run,
    the next one knows what it can trust, and draws the rest.

    Attributes:
        images: uint8 [total, H, W, C] by index, as far as drawn.
        drawn: bool [total].
    """

    def __init__(self, output: Path, plan: DatasetPlan) -> None:
        """Takes up what an earlier run with the same plan has left in `output`, or begins.

        Raises:
            DatasetError: another plan has begun there, or another process is at work there.
            OSError: as the file system says.
        """
        self._folder = output / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._journal = (self._folder / "journal.txt").open("a+", encoding="ascii")
        try:
            self._lock()
            self._agree(plan)
            shape = (plan.total, plan.height, plan.width, plan.channels)
            pixels = self._folder / "images.raw"
            self.images: NDArray[np.uint8] = np.memmap(
                pixels, np.uint8, "r+" if pixels.exists() else "w+", shape=shape
            )
            self.drawn = np.zeros(plan.total, dtype=np.bool_)
            self._read_journal()
        except BaseException:
            self._journal.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()

    def keep(self, span: Span, pixels: Pixels) -> None:
        """Writes the images of a span, uint8 [count, H, W, C], and that they are there."""
        end = span.first_index + span.count
        self.images[span.first_index : end] = pixels
        self._journal.write(f"{span.first_index} {end} {zlib.crc32(pixels.tobytes()):08x}\n")
        self._journal.flush()
        self.drawn[span.first_index : end] = True

    def remove(self) -> None:
        """Deletes all of it: the data set is finished."""
        shutil.rmtree(self._folder)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatasetError(f"another process is drawing into {self._folder.parent}") from None

    def _agree(self, plan: DatasetPlan) -> None:
        path = self._folder / "plan.json"
        if not path.exists():
            path.write_text(json.dumps(plan.to_json(), indent=2) + "\n", encoding="utf-8")
        require_same_plan(path, json.loads(path.read_bytes()), plan)

    def _read_journal(self) -> None:
        self._journal.seek(0)
        for line in self._journal:
            if not line.endswith("\n"):
                self._journal.write("\n")
            fields = line.split()
            # The last line may be torn, and after a power failure it may be ahead of the pixels.
            if len(fields) != 3 or not (fields[0].isdecimal() and fields[1].isdecimal()):
                continue
            first, end = int(fields[0]), int(fields[1])
            if f"{zlib.crc32(self.images[first:end].tobytes()):08x}" == fields[2]:
                self.drawn[first:end] = True


def require_same_plan(path: Path, begun: dict[str, object], plan: DatasetPlan) -> None:
    """Compares the plan that a file holds with the one that is wanted.

    Raises:
        DatasetError: names the first field that differs.
    """
    for field, wanted in plan.to_json().items():
        if begun.get(field) != wanted:
            raise DatasetError(
                f"{path} is of another data set: {field} is {begun.get(field)} there and {wanted}"
                " here; give another --output, or delete that one"
            )
