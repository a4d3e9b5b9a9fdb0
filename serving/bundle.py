"""A model bundle: the manifest, the two graphs as bytes, and every check that needs no session."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from diffusion.samplers import SAMPLERS
from diffusion.schedule import Schedule

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
EMBEDDING_NAME = "embedding.onnx"
UNET_NAME = "unet.onnx"

MAX_MANIFEST_BYTES = 16 * 2**20
"""A manifest is some 100 kB; a larger file is not one, and is not read."""

_MISSING = "no such directory; name one that `python -m export` has written, as models/mnist is"

# StringStringEntryProto{key: "location"}, which a TensorProto with external data has (onnx.proto).
_EXTERNAL_DATA = b"\x0a\x08location\x12"


class BundleError(Exception):
    """A bundle that cannot be used; the message is one line for the person who named it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ImageFormat(_Strict):
    """What the network draws."""

    channels: int = Field(ge=1, le=16)
    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    value_range: tuple[float, float] = (-1.0, 1.0)

    @field_validator("value_range")
    @classmethod
    def _known_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value != (-1.0, 1.0):
            raise ValueError(f"must be [-1.0, 1.0], got {list(value)}")
        return value


class ScheduleNumbers(_Strict):
    """The noise levels that the weights were trained on."""

    num_train_timesteps: int = Field(ge=1)
    alphas_cumprod: list[FiniteFloat]

    @model_validator(mode="after")
    def _legal_schedule(self) -> Self:
        if len(self.alphas_cumprod) != self.num_train_timesteps:
            raise ValueError(
                f"alphas_cumprod has {len(self.alphas_cumprod)} values, "
                f"num_train_timesteps is {self.num_train_timesteps}"
            )
        self.to_schedule()
        return self

    def to_schedule(self) -> Schedule:
        """The Schedule of these numbers."""
        return Schedule(np.array(self.alphas_cumprod, dtype=np.float64))


class Defaults(_Strict):
    """What a request gets that leaves these fields unset."""

    sampler: str
    num_steps: int = Field(ge=1)
    guidance_scale: FiniteFloat = Field(ge=0.0, le=20.0)

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, value: str) -> str:
        if value not in SAMPLERS:
            raise ValueError(f"must be one of {', '.join(SAMPLERS)}, got {value!r}")
        return value


class FileEntry(_Strict):
    """What a file of the bundle must be."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=1)


class Manifest(_Strict):
    """manifest.json, format version 1. The last three sections are reports, of free form."""

    format_version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    version: str = Field(min_length=1, max_length=64)
    label_names: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    null_label: int
    image: ImageFormat
    schedule: ScheduleNumbers
    embedding_width: int = Field(ge=1)
    defaults: Defaults
    files: dict[str, FileEntry]
    verification: dict[str, Any] = Field(default_factory=dict)
    quality: dict[str, Any] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.label_names)) != len(self.label_names):
            raise ValueError("label_names holds a name twice")
        if self.null_label != len(self.label_names):
            raise ValueError(
                f"null_label must be {len(self.label_names)}, one past the last of label_names, "
                f"got {self.null_label}"
            )
        if self.defaults.num_steps > self.schedule.num_train_timesteps:
            raise ValueError(
                f"defaults.num_steps must be in 1..{self.schedule.num_train_timesteps}, "
                f"got {self.defaults.num_steps}"
            )
        if set(self.files) != {EMBEDDING_NAME, UNET_NAME}:
            raise ValueError(
                f"files must be {EMBEDDING_NAME} and {UNET_NAME}, got {', '.join(self.files)}"
            )
        return self

    @property
    def train_label_counts(self) -> tuple[int, ...]:
        """Training images of each label, in the order of label_names; () where it is not told."""
        told = self.provenance.get("dataset_label_counts")
        if not isinstance(told, list) or len(told) != len(self.label_names):
            return ()
        legal = all(isinstance(count, int) and 0 <= count < 2**63 for count in told)
        return tuple(told) if legal else ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.image.channels, self.image.height, self.image.width

    def to_json(self) -> str:
        """The text of manifest.json: equal manifests give equal bytes.

        Raises:
            ValueError, TypeError: if a report section holds what JSON has no form for (NaN too).
        """
        # Python mode: pydantic's own JSON would quietly turn NaN into null.
        return json.dumps(self.model_dump(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle whose bytes are those that its manifest promises."""

    manifest: Manifest
    embedding_onnx: bytes
    unet_onnx: bytes


def load_bundle(path: str | Path) -> Bundle:
    """Reads and checks models/NAME.

    The graphs themselves are checked where they are loaded (serving.network).

    Raises:
        BundleError: one line that names `path` as the caller wrote it.
    """
    directory = Path(path)
    try:
        if not directory.is_dir():
            state = "not a directory" if directory.exists() else _MISSING
            raise BundleError(state)  # noqa: TRY301  (every refusal gets the path, below)
        manifest = _parse_manifest(_read(directory / MANIFEST_NAME, MAX_MANIFEST_BYTES))
        graphs = {name: _read_checked(directory / name, manifest) for name in manifest.files}
    except BundleError as error:
        raise BundleError(f"bundle {str(path)!r}: {error}") from None
    return Bundle(manifest, graphs[EMBEDDING_NAME], graphs[UNET_NAME])


def write_manifest(manifest: Manifest, directory: str | Path) -> Path:
    """Writes manifest.json (UTF-8) into a directory and returns its path."""
    path = Path(directory) / MANIFEST_NAME
    path.write_text(manifest.to_json(), encoding="utf-8")
    return path


def file_entry(content: bytes) -> FileEntry:
    """The manifest's entry for a file with this content."""
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def _parse_manifest(content: bytes) -> Manifest:
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST_NAME} is not valid JSON ({_one_line(error)})") from None
    if not isinstance(raw, dict):
        raise BundleError(f"{MANIFEST_NAME} must hold a JSON object")
    # Looked at first: the rest of another format's manifest would only give misleading complaints.
    version = raw.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        shown = "missing" if version is None else f"{str(version)[:40]!r}"
        raise BundleError(
            f"{MANIFEST_NAME}: format_version is {shown}, this server reads {FORMAT_VERSION}"
        )
    try:
        # Strict JSON mode: a number in quotes is not a number.
        return Manifest.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise BundleError(f"{MANIFEST_NAME}: {at + ': ' if at else ''}{message}") from None


def _read_checked(path: Path, manifest: Manifest) -> bytes:
    entry = manifest.files[path.name]
    content = _read(path, entry.size_bytes)
    if len(content) != entry.size_bytes:
        raise BundleError(
            f"{path.name} has {len(content)} bytes, {MANIFEST_NAME} says {entry.size_bytes}"
        )
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise BundleError(f"{path.name} is not the file of {MANIFEST_NAME}: its sha256 differs")
    if _EXTERNAL_DATA in content:
        raise BundleError(f"{path.name} keeps tensors in another file (external data)")
    return content


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        size_bytes = path.stat().st_size
        if size_bytes > limit_bytes:
            raise BundleError(f"{path.name} has {size_bytes} bytes, expected {limit_bytes} at most")
        return path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path.name} is missing") from None
    except OSError as error:
        raise BundleError(f"{path.name} cannot be read ({error.strerror})") from None


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))
