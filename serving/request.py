"""What the engine is asked for and how it answers: the seam between the engine and its edge."""

import enum
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from diffusion.samplers import network_rows

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class GenerateSpec:
    """One request, every default resolved.

    The image with index i is a function of label, seed, sampler, num_steps, guidance_scale and i
    alone: not of count, first_index, previews or the deadline.

    Args:
        label: class index, 0 .. null_label (the null label draws without a class).
        count: images wanted, 1 or more.
        first_index: index of the first image, 0 or more.
        seed: uint64.
        sampler: a name in diffusion.samplers.SAMPLERS.
        num_steps: reverse steps per image, 1 .. T.
        guidance_scale: finite; 1 is the plain conditional model and costs one network row a step,
            any other value two where the plan is guided.
        preview_every: 0 for none; k for the x_0 estimate after every k-th step.
        deadline_seconds: absolute, on the engine's clock (time.monotonic); None for no deadline.
    """

    label: int
    count: int
    first_index: int
    seed: int
    sampler: str
    num_steps: int
    guidance_scale: float
    preview_every: int = 0
    deadline_seconds: float | None = None

    @property
    def guided(self) -> bool:
        """Whether guidance is asked for."""
        return self.guidance_scale != 1.0

    @property
    def work_per_image(self) -> int:
        """Network rows that one image takes in all."""
        return network_rows(self.sampler, self.num_steps, self.guidance_scale)


class Outcome(enum.Enum):
    """How a request ended."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    NETWORK_FAILED = "network_failed"


class Sink(Protocol):
    """Where the engine puts results. Must not block or raise.

    Called on a thread of the engine's, by one at a time.

    A sink that raises loses its request (CANCELLED) and harms no other. From within a sink the
    engine may be asked to cancel, nothing else; EngineThreads may be asked for anything.
    """

    def started(self) -> None:
        """The request's first image enters a batch. At most once, before anything else."""

    def image(self, index: int, pixels: Pixels) -> None:
        """Image `index` (first_index .. first_index + count - 1) is finished: uint8 [C, H, W]."""

    def preview(self, index: int, position: int, pixels: Pixels) -> None:
        """The x_0 estimate of image `index` with `position` of its steps done: uint8 [C, H, W].

        `position` is a multiple of preview_every, in 1 .. num_steps - 1.
        """

    def done(
        self, outcome: Outcome, queue_seconds: float, compute_seconds: float, detail: str
    ) -> None:
        """The request is over. Called exactly once, last.

        Args:
            outcome: how it ended; FINISHED means that every image was handed over.
            queue_seconds: from submission until the first image entered a batch (or the end).
            compute_seconds: from then until the end; 0 if no image entered a batch.
            detail: why, for the server's log; empty for FINISHED. Never for a client's eyes.
        """


class NullSink:
    """A sink for those who only want the work done."""

    def started(self) -> None:
        """Does nothing."""

    def image(self, index: int, pixels: Pixels) -> None:
        """Does nothing."""

    def preview(self, index: int, position: int, pixels: Pixels) -> None:
        """Does nothing."""

    def done(
        self, outcome: Outcome, queue_seconds: float, compute_seconds: float, detail: str
    ) -> None:
        """Does nothing."""


class QueueFull(Exception):
    """The queue has no room for a request.

    Args:
        what: of which there are too many, "images" or "requests".
        limit: that may wait.
        waiting: that wait.
        retry_after_seconds: when room is expected, from the measured pace; above 0.
    """

    def __init__(self, what: str, limit: int, waiting: int, retry_after_seconds: float) -> None:
        super().__init__(
            f"{waiting} of at most {limit} {what} wait; room in about {retry_after_seconds:.2f} s"
        )
        self.what = what
        self.limit = limit
        self.waiting = waiting
        self.retry_after_seconds = retry_after_seconds


class DeadlineUnmeetable(Exception):
    """A request's deadline would pass before it is finished, at the measured pace.

    Args:
        estimate_seconds: from now until it would be finished.
        left_seconds: from now until its deadline.
        retry_after_seconds: when the same time may be enough, from the measured pace; above 0.
    """

    def __init__(
        self, estimate_seconds: float, left_seconds: float, retry_after_seconds: float
    ) -> None:
        super().__init__(
            f"it would take about {estimate_seconds:.2f} s and has {left_seconds:.2f} s"
        )
        self.estimate_seconds = estimate_seconds
        self.left_seconds = left_seconds
        self.retry_after_seconds = retry_after_seconds
