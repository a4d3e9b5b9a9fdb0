"""Stand-ins for the tests of the engine: a network, a clock, a sink, and the smallest bundle."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from diffusion.reference import sample, to_uint8
from diffusion.samplers import make_plan
from diffusion.schedule import Schedule, cosine_schedule
from serving.bundle import (
    EMBEDDING_NAME,
    UNET_NAME,
    Defaults,
    ImageFormat,
    Manifest,
    ScheduleNumbers,
    file_entry,
    write_manifest,
)
from serving.engine_model import EngineModel
from serving.request import GenerateSpec, Outcome

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

NULL_LABEL = 10
_LABEL_COLUMN = 2  # of the fake embedding: the label itself, so that a fake network can see it


def fake_model(
    num_train_timesteps: int = 50, image_shape: tuple[int, int, int] = (1, 3, 5)
) -> EngineModel:
    """A model whose embedding is [shift by t, gain by label, label]."""
    t = np.arange(num_train_timesteps, dtype=np.float32)[:, None]
    label = np.arange(NULL_LABEL + 1, dtype=np.float32)[None, :]
    columns = (0.3 * t / num_train_timesteps + 0 * label, 0.5 + 0.05 * label + 0 * t, label + 0 * t)
    table = np.stack(columns, axis=-1).astype(np.float32)
    schedule = cosine_schedule(num_train_timesteps)
    return EngineModel(image_shape, NULL_LABEL, schedule, table)


def fake_eps(x_t: Floats, emb: Floats) -> Floats:
    """Nonlinear, and row by row: only IEEE operations, element by element."""
    shift, gain = (emb[:, column].reshape(-1, 1, 1, 1) for column in (0, 1))
    return np.asarray(gain * x_t / (1 + np.abs(x_t)) + shift, dtype=np.float32)


class FakeClock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeNetwork:
    """fake_eps, with a diary and with faults on demand.

    Attributes:
        batches: labels of the rows of every call, null rows included.
        clock, seconds_per_row, fixed_seconds: if there is a clock, a call takes that long.
        nan_labels: rows with one of these labels give `nan` (at the calls in nan_calls, if any).
        raise_on: numbers of the calls (from 0) that raise.
        gate: if given, each call waits until it is set.
        on_call: called first, with the number of the call.
        parts: if given, so many batches can be computed at once.
    """

    clock: FakeClock | None = None
    seconds_per_row: float = 0.01
    fixed_seconds: float = 0.0
    nan_labels: set[int] = field(default_factory=set)
    nan_calls: set[int] | None = None
    nan: float = float("nan")
    raise_on: set[int] = field(default_factory=set)
    gate: threading.Event | None = None
    on_call: Callable[[int], None] | None = None
    batches: list[list[int]] = field(default_factory=list)
    parts: int = 1

    @property
    def workers(self) -> tuple["FakeNetwork", ...]:
        return (self,) * self.parts

    def __call__(self, x_t: Floats, emb: Floats, /) -> Floats:
        assert x_t.dtype == emb.dtype == np.float32
        assert x_t.flags.c_contiguous
        assert emb.flags.c_contiguous
        assert len(x_t) == len(emb)
        call = len(self.batches)
        labels = emb[:, _LABEL_COLUMN].astype(int).tolist()
        self.batches.append(labels)
        if self.on_call is not None:
            self.on_call(call)
        if self.gate is not None:
            assert self.gate.wait(30)
        if self.clock is not None:
            self.clock.now += self.fixed_seconds + self.seconds_per_row * len(x_t)
        if call in self.raise_on:
            raise RuntimeError("the device fell off")
        eps = fake_eps(x_t, emb)
        if self.nan_calls is None or call in self.nan_calls:
            for row in np.flatnonzero(np.isin(labels, list(self.nan_labels))):
                eps[row, 0, 0, 0] = self.nan
        return eps


@dataclass
class RecordingSink:
    """Keeps what it is told, and objects to anything out of order."""

    was_started: int = 0
    images: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    previews: dict[tuple[int, int], npt.NDArray[np.uint8]] = field(default_factory=dict)
    endings: list[tuple[Outcome, float, float, str]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def started(self) -> None:
        assert not self.was_started
        assert not self.endings
        self.was_started += 1

    def image(self, index: int, pixels: npt.NDArray[np.uint8]) -> None:
        assert self.was_started
        assert not self.endings
        assert index not in self.images
        assert pixels.dtype == np.uint8
        self.images[index] = pixels

    def preview(self, index: int, position: int, pixels: npt.NDArray[np.uint8]) -> None:
        assert self.was_started
        assert not self.endings
        assert index not in self.images
        assert (index, position) not in self.previews
        self.previews[index, position] = pixels

    def done(
        self, outcome: Outcome, queue_seconds: float, compute_seconds: float, detail: str
    ) -> None:
        self.endings.append((outcome, queue_seconds, compute_seconds, detail))
        self.ended.set()

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; fails if that was said twice."""
        assert len(self.endings) <= 1
        return self.endings[0][0] if self.endings else None


def spec(**changes: Any) -> GenerateSpec:
    """A small request: one image of label 3 in 4 DDPM steps."""
    fields: dict[str, Any] = {
        "label": 3,
        "count": 1,
        "first_index": 0,
        "seed": 7,
        "sampler": "ddpm",
        "num_steps": 4,
        "guidance_scale": 1.0,
    }
    return GenerateSpec(**{**fields, **changes})


def reference_x_0(model: EngineModel, request: GenerateSpec) -> Floats:
    """What diffusion.reference draws for a request, float32 [count, C, H, W]."""

    def network(x_t: Floats, t: Ints, label: Ints) -> Floats:
        return fake_eps(x_t, model.embedding_table[t, label])

    return sample(
        network,
        make_plan(request.sampler, model.schedule, request.num_steps),
        [request.label] * request.count,
        request.seed,
        model.image_shape,
        model.null_label,
        guidance_scale=request.guidance_scale,
        first_index=request.first_index,
        clip=model.clip,
    )


def assert_reference_pixels(
    model: EngineModel, request: GenerateSpec, images: dict[int, npt.NDArray[np.uint8]]
) -> None:
    """`images` are all of the request's, and those that diffusion.reference draws."""
    assert sorted(images) == list(
        range(request.first_index, request.first_index + request.count)
    ), "not every image, or one too many"
    drawn = np.stack([images[index] for index in sorted(images)])
    np.testing.assert_array_equal(drawn, to_uint8(reference_x_0(model, request)))


def write_tiny_bundle(
    directory: Path,
    *,
    name: str = "tiny",
    version: str = "1.0.0",
    image_shape: tuple[int, int, int] = (1, 4, 4),
    label_names: tuple[str, ...] = ("zero", "one", "two"),
    num_train_timesteps: int = 20,
    embedding_width: int = 8,
    embedding: onnx.ModelProto | None = None,
    unet: onnx.ModelProto | None = None,
) -> Path:
    """Writes a bundle with small random graphs, or with the graphs given; returns `directory`."""
    labels = len(label_names) + 1
    embedding = embedding or embedding_graph(num_train_timesteps, labels, embedding_width)
    unet = unet or unet_graph(image_shape, embedding_width)
    files = {
        EMBEDDING_NAME: embedding.SerializeToString(),
        UNET_NAME: unet.SerializeToString(),
    }
    schedule: Schedule = cosine_schedule(num_train_timesteps)
    channels, height, width = image_shape
    manifest = Manifest(
        name=name,
        version=version,
        label_names=list(label_names),
        null_label=len(label_names),
        image=ImageFormat(channels=channels, height=height, width=width),
        schedule=ScheduleNumbers(
            num_train_timesteps=num_train_timesteps,
            alphas_cumprod=schedule.alphas_cumprod.tolist(),
        ),
        embedding_width=embedding_width,
        defaults=Defaults(sampler="ddpm", num_steps=4, guidance_scale=1.0),
        files={file: file_entry(content) for file, content in files.items()},
    )
    directory.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (directory / file).write_bytes(content)
    write_manifest(manifest, directory)
    return directory


def embedding_graph(
    num_train_timesteps: int, labels: int, width: int, *, batch: str | int = "batch"
) -> onnx.ModelProto:
    """emb = table_t[t] + table_label[label]."""
    generator = np.random.default_rng(1)
    tables = [
        numpy_helper.from_array(
            generator.normal(size=(rows, width)).astype(np.float32), f"table_{name}"
        )
        for name, rows in (("t", num_train_timesteps), ("label", labels))
    ]
    nodes = [
        helper.make_node("Gather", ["table_t", "t"], ["of_t"]),
        helper.make_node("Gather", ["table_label", "label"], ["of_label"]),
        helper.make_node("Add", ["of_t", "of_label"], ["emb"]),
    ]
    inputs = [tensor(name, TensorProto.INT64, [batch]) for name in ("t", "label")]
    return _model(nodes, inputs, [tensor("emb", TensorProto.FLOAT, [batch, width])], tables)


def unet_graph(
    image_shape: tuple[int, int, int],
    width: int,
    *,
    batch: str | int = "batch",
    weights_seed: int = 2,
) -> onnx.ModelProto:
    """eps = tanh(conv(x_t) + project(emb))."""
    channels = image_shape[0]
    generator = np.random.default_rng(weights_seed)
    weights = [
        numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name)
        for name, shape in (("kernel", (channels, channels, 3, 3)), ("into", (width, channels)))
    ]
    axes = numpy_helper.from_array(np.array([2, 3], dtype=np.int64), "axes")
    nodes = [
        helper.make_node("Conv", ["x_t", "kernel"], ["convolved"], pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["emb", "into"], ["projected"]),
        helper.make_node("Unsqueeze", ["projected", "axes"], ["spread"]),
        helper.make_node("Add", ["convolved", "spread"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["eps"]),
    ]
    image = [batch, *image_shape]
    inputs = [
        tensor("x_t", TensorProto.FLOAT, image),
        tensor("emb", TensorProto.FLOAT, [batch, width]),
    ]
    return _model(nodes, inputs, [tensor("eps", TensorProto.FLOAT, image)], [*weights, axes])


def tensor(name: str, kind: int, shape: list[str | int]) -> onnx.ValueInfoProto:
    """The declaration of an input or output."""
    return helper.make_tensor_value_info(name, kind, shape)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
