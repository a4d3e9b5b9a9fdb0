"""Every hyperparameter of a run, once: the fields are the flags of ``python -m training.train``."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin


def require(condition: bool, name: str, value: object, legal: str) -> None:
    """Raise ValueError naming the field, its value and the legal range unless ``condition``."""
    if not condition:
        raise ValueError(f"{name} is {value}; legal: {legal}")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network. All of it is fixed by a checkpoint."""

    image_channels: int = 1
    """C of the images, at least 1."""
    image_size: int = 28
    """H and W of the images in pixels; halved between resolutions without remainder."""
    num_labels: int = 10
    """Number of classes, at least 1; one more index, null, stands for "no label"."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels per resolution, finest first; at least two, multiples of 16."""
    blocks_per_resolution: int = 1
    """Residual blocks at each resolution but the lowest, on the way down and again on the way up;
    at least 1."""
    middle_blocks: int = 3
    """Residual blocks at the lowest resolution, at least 1."""
    attention: bool = True
    """Self-attention after the first block at the lowest resolution."""
    attention_head_width: int = 32
    """Channels per attention head; divides the last width."""
    groups: int = 8
    """Groups of every GroupNorm; divides every width."""
    sinusoidal_width: int = 128
    """D of the sinusoidal position embedding of t; even, at least 4."""
    embedding_width: int = 128
    """E, features of the condition embedding, at least 1."""
    dropout: float = 0.0
    """Dropout before the second convolution of each block, 0 up to but not including 1."""

    def __post_init__(self) -> None:
        widths = self.widths
        for name in (
            "image_channels", "num_labels", "blocks_per_resolution", "middle_blocks",
            "attention_head_width", "groups", "embedding_width",
        ):  # fmt: skip
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        legal = "at least two multiples of 16"
        require(len(widths) >= 2, "widths", widths, legal)
        require(all(w >= 16 and w % 16 == 0 for w in widths), "widths", widths, legal)
        factor = 2 ** (len(widths) - 1)
        size = self.image_size
        require(size >= 1 and size % factor == 0, "image_size", size, f"multiples of {factor}")
        require(
            widths[-1] % self.attention_head_width == 0,
            "attention_head_width",
            self.attention_head_width,
            f"divisors of the last width, {widths[-1]}",
        )
        shared = math.gcd(*widths)
        require(shared % self.groups == 0, "groups", self.groups, f"divisors of {shared}")
        require(
            self.sinusoidal_width >= 4 and self.sinusoidal_width % 2 == 0,
            "sinusoidal_width",
            self.sinusoidal_width,
            "even, at least 4",
        )
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 <= dropout < 1")


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Fields named in ``FREE_ON_RESUME`` may differ when a run is resumed."""

    preset: Literal["tiny", "base"] = "base"
    """Defaults to start from; any other flag overrides them."""
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: Literal["mnist", "fashion_mnist"] = "mnist"
    """What to learn."""
    data_dir: Path | None = None
    """Directory with the four IDX files (raw or .gz); unset: downloaded into ``data/DATASET``."""
    allow_other_data: bool = False
    """Accept files in ``data_dir`` that are not the canonical ones: your own images as IDX."""
    output: Path = Path("runs/latest")
    """Where checkpoints, logs, samples and curves go."""
    resume: bool = False
    """Continue from the newest checkpoint in ``output``, to the bit."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""

    epochs: float = 20.0
    """Passes over the training images, above 0; may be a fraction."""
    batch_size: int = 128
    """Images per train step, over all processes; at least 1, a multiple of their number."""
    seed: int = 0
    """Of weights, order, t, eps and label dropout; 0 .. 2**31-1."""

    num_train_timesteps: int = 1000
    """T, the number of noise levels, 2 .. 100000."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Noise schedule: cosine cut to log-SNR +8 .. -10, or Ho et al.'s linear."""
    t_sampling: Literal["uniform", "stratified"] = "stratified"
    """How t is drawn: independently, or one from each of batch_size equal strata."""
    label_dropout: float = 0.1
    """Share of labels replaced by null, for classifier-free guidance; 0 .. 1."""

    learning_rate: float = 1.5e-3
    """Peak learning rate of AdamW, reached after the warm-up; above 0."""
    warmup_fraction: float = 0.03
    """Share of the train steps with linear warm-up, then cosine decay to zero; 0 up to but not
    including 1."""
    adam_beta1: float = 0.9
    """AdamW's decay of the mean gradient, 0 up to but not including 1."""
    adam_beta2: float = 0.99
    """AdamW's decay of the mean squared gradient, 0 up to but not including 1."""
    weight_decay: float = 0.01
    """AdamW's, relative to the learning rate; at least 0."""
    gradient_clip: float = 1.0
    """Largest norm of the whole gradient, above 0; a longer one is scaled down to it."""
    ema_relative_width: float = 0.08
    """Width of the power-function EMA relative to the run so far (Karras et al. 2024); between 0
    and 0.28."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA when there is a device."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of autocast. auto: bf16 where the device has bf16 arithmetic, else fp32."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """auto: channels_last, except for bf16 on a CPU, where it was slower."""
    num_threads: int = 0
    """CPU threads; 0: PyTorch's choice."""

    log_every: int = 50
    """Train steps between log lines, at least 1."""
    checkpoint_every: int = 500
    """Train steps between checkpoints, at least 1."""
    sample_every: int = 1000
    """Train steps between sample grids and loss curves; 0: only at the end."""
    sample_num_steps: int = 20
    """num_steps of the sample grid's DDPM, 1 .. num_train_timesteps."""
    tensorboard: bool = True
    """Write TensorBoard event files into ``output``."""
    stop_after: int = 0
    """Save and stop after this many train steps of the schedule; 0: run to the end."""

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            if get_origin(option.type) is Literal:
                legal = get_args(option.type)
                value = getattr(self, option.name)
                require(value in legal, option.name, value, ", ".join(legal))
        for name in ("epochs", "learning_rate", "gradient_clip"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "above 0, finite")
        for name in ("warmup_fraction", "adam_beta1", "adam_beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, name, value, f"0 <= {name} < 1")
        for name in ("batch_size", "log_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("num_threads", "sample_every", "stop_after"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require(0 <= self.seed < 2**31, "seed", self.seed, "0 .. 2**31-1")
        require(
            2 <= self.num_train_timesteps <= 100_000,
            "num_train_timesteps",
            self.num_train_timesteps,
            "2 .. 100000",
        )
        require(0 <= self.label_dropout <= 1, "label_dropout", self.label_dropout, "0 .. 1")
        require(
            0 <= self.weight_decay < math.inf,
            "weight_decay",
            self.weight_decay,
            "at least 0, finite",
        )
        require(
            0 < self.ema_relative_width < 0.28,
            "ema_relative_width",
            self.ema_relative_width,
            "0 < ema_relative_width < 0.28",
        )
        require(
            1 <= self.sample_num_steps <= self.num_train_timesteps,
            "sample_num_steps",
            self.sample_num_steps,
            f"1 .. num_train_timesteps, {self.num_train_timesteps}",
        )


PRESETS: dict[str, TrainConfig] = {
    # About 33 M multiply-adds per network call: minutes on a laptop, and the embedded model.
    "tiny": TrainConfig(preset="tiny", model=ModelConfig(widths=(16, 32, 64)), epochs=12.0),
    # About 131 M multiply-adds per network call.
    "base": TrainConfig(),
}

FREE_ON_RESUME = frozenset(
    {
        "data_dir",
        "output",
        "resume",
        "dry_run",
        "device",
        "num_threads",
        "memory_format",
        "log_every",
        "checkpoint_every",
        "sample_every",
        "sample_num_steps",
        "tensorboard",
        "stop_after",
    }
)
"""What may change without changing what a train step computes (up to a device's rounding)."""


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """JSON-ready dictionary, nested like the dataclasses."""
    plain = dataclasses.asdict(config)
    for name, value in plain.items():
        if isinstance(value, Path):
            plain[name] = str(value)
    plain["model"]["widths"] = list(config.model.widths)
    return plain


def from_dict(plain: dict[str, Any]) -> TrainConfig:
    """Inverse of :func:`to_dict`.

    Raises:
        TypeError: a field is unknown.
        ValueError: a value is out of range.
    """
    plain = dict(plain)
    model = dict(plain.pop("model"))
    model["widths"] = tuple(model["widths"])
    plain["output"] = Path(plain["output"])
    plain["data_dir"] = None if plain["data_dir"] is None else Path(plain["data_dir"])
    return TrainConfig(model=ModelConfig(**model), **plain)
