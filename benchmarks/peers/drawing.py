"""What every peer is asked to draw, and the tables that it draws with: those of the bundle.

NumPy, ONNX Runtime and the standard library only: it runs in the environments of the peers.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from diffusion.noise import INITIAL_STEP, standard_normal
from diffusion.plan import Plan
from diffusion.samplers import make_plan
from diffusion.schedule import Schedule

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

SAMPLER = "ddpm"
"""Of every request: it draws noise at every step, which is the most work."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """One request: images 0 .. count-1 of a label and a seed.

    Attributes:
        label: class index.
        count: images, at least 1.
        num_steps: network calls of each image, 1 .. T.
        seed: 0 .. 2^63-1.
        shared_noise: draw the noise that our server draws, for the proof that images are equal;
            otherwise each peer draws it with the generator of its own library.
    """

    label: int
    count: int
    num_steps: int
    seed: int
    shared_noise: bool = False

    @property
    def rows(self) -> int:
        """Rows of the network that it takes."""
        return self.count * self.num_steps

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Drawing":
        """The drawing of to_json."""
        return cls(**json.loads(line))


class Loop(Protocol):
    """The whole denoising loop of a batch."""

    def draw(self, batch: "Batch", plan: Plan) -> Pixels:
        """Draws every row of the batch: uint8 [N, H, W]."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows that are denoised together, all at the same step of one plan.

    Attributes:
        label: int64 [N].
        seed: uint64 [N].
        index: int64 [N], of each image in its request.
        shared_noise: as in Drawing.
    """

    label: npt.NDArray[np.int64]
    seed: npt.NDArray[np.uint64]
    index: npt.NDArray[np.int64]
    shared_noise: bool

    @classmethod
    def of(cls, drawings: Sequence[Drawing]) -> "Batch":
        """All images of requests that agree in num_steps and shared_noise."""
        counts = [each.count for each in drawings]
        return cls(
            np.repeat(np.array([each.label for each in drawings], dtype=np.int64), counts),
            np.repeat(np.array([each.seed for each in drawings], dtype=np.uint64), counts),
            np.concatenate([np.arange(count, dtype=np.int64) for count in counts]),
            drawings[0].shared_noise,
        )

    def __len__(self) -> int:
        return len(self.label)

    def part(self, rows: slice) -> "Batch":
        """Some of the rows."""
        return Batch(self.label[rows], self.seed[rows], self.index[rows], self.shared_noise)

    def noise_of_server(self, step: int, shape: tuple[int, ...]) -> Floats:
        """The noise that our server draws at a step: float32 [N, *shape]."""
        steps = np.full(len(self), step, dtype=np.int64)
        drawn = standard_normal(self.seed, self.index, steps, int(np.prod(shape)))
        return drawn.reshape(len(self), *shape)


class Tables:
    """The bundle's schedule and its embedding of (timestep, label), as our server has them.

    Attributes:
        image_shape: [C, H, W].
        embedding: float32 [T, labels + 1, E].
    """

    def __init__(self, model: Path) -> None:
        manifest = json.loads((model / "manifest.json").read_text(encoding="utf-8"))
        image: dict[str, Any] = manifest["image"]
        self.image_shape = (image["channels"], image["height"], image["width"])
        self._schedule = Schedule(manifest["schedule"]["alphas_cumprod"])
        timesteps, labels = self._schedule.num_train_timesteps, manifest["null_label"] + 1
        t, label = np.divmod(np.arange(timesteps * labels, dtype=np.int64), labels)
        session = onnxruntime.InferenceSession(
            model / "embedding.onnx", providers=["CPUExecutionProvider"]
        )
        [emb] = session.run(["emb"], {"t": t, "label": label})
        self.embedding: Floats = emb.reshape(timesteps, labels, -1)

    def plan(self, num_steps: int) -> Plan:
        """Our plan of SAMPLER."""
        return make_plan(SAMPLER, self._schedule, num_steps)


NoiseOf = Callable[[int], Any]
"""Noise of one step, like x; INITIAL_STEP is x_T."""

__all__ = ["INITIAL_STEP", "SAMPLER", "Batch", "Drawing", "Loop", "NoiseOf", "Pixels", "Tables"]
