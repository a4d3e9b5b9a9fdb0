"""Holds a GenerateRequest against the model it asks for.

A request either becomes a `GenerateSpec` in which every value is set and in range, or it is refused
with all of its bad fields at once, so that a caller needs one round trip to learn what is wrong.
"""

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serving.request import GenerateSpec
from simple_diffusion.v1 import diffusion_pb2 as pb

MAX_GUIDANCE_SCALE = 20.0
"""Beyond it images only saturate; a bound keeps nonsense out of the network."""

MAX_INDEX = 2**31 - 1
"""Image indices travel as int32."""

SAMPLER_NAMES = {
    pb.SAMPLER_DDPM: "ddpm",
    pb.SAMPLER_DDIM: "ddim",
    pb.SAMPLER_DPMPP_2M: "dpmpp_2m",
    pb.SAMPLER_DDIM_STOCHASTIC: "ddim_stochastic",
}
"""The engine's name of each sampler of the contract."""

SAMPLER_NUMBERS = {name: number for number, name in SAMPLER_NAMES.items()}

_SAMPLERS = frozenset(pb.Sampler.values())
_FORMATS = frozenset(pb.ImageFormat.values())
_PNG_CHANNELS = (1, 3)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the edge knows about one loaded model.

    Attributes:
        name: what requests call it.
        version: the version of its weights.
        label_names: what each label stands for; labels are 0 .. len(label_names) - 1.
        channels: channels of an image.
        height: rows of an image.
        width: pixels per row.
        num_train_timesteps: T, the largest num_steps.
        default_sampler: key of `diffusion.samplers.SAMPLERS`.
        default_num_steps: 1 .. T.
        default_guidance_scale: 0 .. 20.
        train_label_counts: training images of each label; empty if the bundle does not say.
    """

    name: str
    version: str
    label_names: tuple[str, ...]
    channels: int
    height: int
    width: int
    num_train_timesteps: int
    default_sampler: str
    default_num_steps: int
    default_guidance_scale: float
    train_label_counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Violation:
    """One bad field: its name, what is wrong with it in words, and a constant for programs."""

    field: str
    description: str
    reason: str


class InvalidRequestError(Exception):
    """A request has bad fields; `violations` holds one entry for each."""

    def __init__(self, violations: list[Violation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))


class _Violations:
    def __init__(self) -> None:
        self.found: list[Violation] = []

    def add(self, field: str, description: str, reason: str) -> None:
        self.found.append(Violation(field, description, reason))

    def in_range(self, field: str, value: int, low: int, high: int) -> None:
        if not low <= value <= high:
            self.add(field, f"{value} is not in {low}..{high}", "OUT_OF_RANGE")


def draw_seed() -> int:
    """Returns a fresh seed, 0 .. 2**53 - 1.

    53 bits survive JSON and spreadsheets, which hold numbers as doubles: a person who reads the
    seed anywhere can type it in again.
    """
    return secrets.randbits(53)


def validate(
    request: pb.GenerateRequest,
    model: ServedModel,
    *,
    max_images_per_request: int,
    streaming: bool,
    deadline_seconds: float | None = None,
    new_seed: Callable[[], int] = draw_seed,
) -> GenerateSpec:
    """Returns the request with every default filled in.

    Args:
        request: what the client sent.
        model: the model it names.
        max_images_per_request: the largest count.
        streaming: whether GenerateStream was called; only there previews are allowed.
        deadline_seconds: the client's deadline on the clock of `time.monotonic`, or None.
        new_seed: where the seed comes from if the request has none.

    Raises:
        InvalidRequestError: naming every bad field, its value and its range.
    """
    bad = _Violations()
    count = request.count if request.HasField("count") else 1
    num_steps = request.num_steps if request.HasField("num_steps") else model.default_num_steps
    guidance_scale = (
        request.guidance_scale
        if request.HasField("guidance_scale")
        else model.default_guidance_scale
    )
    _check_label(request, model, bad)
    bad.in_range("count", count, 1, max_images_per_request)
    _check_sampler(request, bad)
    bad.in_range("num_steps", num_steps, 1, model.num_train_timesteps)
    if not (math.isfinite(guidance_scale) and 0.0 <= guidance_scale <= MAX_GUIDANCE_SCALE):
        bad.add(
            "guidance_scale",
            f"{guidance_scale:g} is not in 0..{MAX_GUIDANCE_SCALE:g}",
            "OUT_OF_RANGE",
        )
    _check_format(request, model, bad)
    _check_first_index(request.first_index, max(1, min(count, max_images_per_request)), bad)
    _check_preview_every(request.preview_every, streaming, bad)
    if bad.found:
        raise InvalidRequestError(bad.found)
    return GenerateSpec(
        label=request.label,
        count=count,
        first_index=request.first_index,
        seed=request.seed if request.HasField("seed") else new_seed(),
        sampler=SAMPLER_NAMES.get(request.sampler, model.default_sampler),
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        # Beyond num_steps there is nothing to preview, however far beyond.
        preview_every=min(request.preview_every, num_steps),
        deadline_seconds=deadline_seconds,
    )


def _check_label(request: pb.GenerateRequest, model: ServedModel, bad: _Violations) -> None:
    last = len(model.label_names) - 1
    if not request.HasField("label"):
        bad.add("label", f"is not set; it must be in 0..{last}", "REQUIRED")
    else:
        bad.in_range("label", request.label, 0, last)


def _check_sampler(request: pb.GenerateRequest, bad: _Violations) -> None:
    if request.sampler not in _SAMPLERS:
        _add_unknown_enum("sampler", request.sampler, pb.Sampler.items(), bad)


def _check_format(request: pb.GenerateRequest, model: ServedModel, bad: _Violations) -> None:
    if request.format not in _FORMATS:
        _add_unknown_enum("format", request.format, pb.ImageFormat.items(), bad)
    elif request.format != pb.IMAGE_FORMAT_RAW_UINT8 and model.channels not in _PNG_CHANNELS:
        bad.add(
            "format",
            f"PNG holds 1 or 3 channels and this model draws {model.channels}; "
            "ask for IMAGE_FORMAT_RAW_UINT8",
            "UNSUPPORTED",
        )


def _add_unknown_enum(
    field: str, value: int, known: Sequence[tuple[str, int]], bad: _Violations
) -> None:
    names = ", ".join(f"{number} ({name})" for name, number in known)
    bad.add(field, f"{value} is not one of {names}", "UNKNOWN_VALUE")


def _check_first_index(first_index: int, count: int, bad: _Violations) -> None:
    last = MAX_INDEX - count + 1
    if not 0 <= first_index <= last:
        bad.add(
            "first_index", f"{first_index} is not in 0..{last} (for count {count})", "OUT_OF_RANGE"
        )


def _check_preview_every(preview_every: int, streaming: bool, bad: _Violations) -> None:
    # Ignoring the field in Generate would leave a caller waiting for previews that never come.
    if preview_every < 0:
        bad.add("preview_every", f"{preview_every} is negative; 0 = no previews", "OUT_OF_RANGE")
    elif preview_every and not streaming:
        bad.add(
            "preview_every",
            f"{preview_every} is not 0; only GenerateStream sends previews",
            "UNSUPPORTED",
        )
