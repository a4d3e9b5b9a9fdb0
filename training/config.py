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


def require_choices(config: Any) -> None:
    """Raise ValueError unless every field of a dataclass with a Literal type has a legal value."""
    for option in dataclasses.fields(config):
        if get_origin(option.type) is Literal:
            legal = get_args(option.type)
            value = getattr(config, option.name)
            require(value in legal, option.name, value, ", ".join(legal))


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network. All of it is fixed by a checkpoint."""

    image_channels: int = 1
    """C of the images, at least 1."""
    image_size: int = 28
    """H and W of the images in pixels; halved between resolutions without remainder."""
    num_labels: int = 10
    """Number of classes, at least 1; one more index, null, stands for "no label"."""
    patch_size: int = 1
    """Pixels along the side of the squares that become channels before the first convolution and
    pixels again after the last (Hoogeboom et al. 2023, "simple diffusion", section 3.2), at least
    1. With 2 the finest resolution of the network is half that of the images."""
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
    """Features of the condition embedding that the blocks see, at least 1."""
    prediction: Literal["eps", "v", "residual_eps"] = "v"
    """What the last convolution gives. eps is always what the network gives: from v as
    sigma_t * x_t + alpha_t * v (Salimans and Ho 2022, section 4), from the residual r as
    sigma_t * x_t + r."""
    dropout: float = 0.0
    """Dropout before the second convolution of each block, 0 up to but not including 1."""

    def __post_init__(self) -> None:
        widths = self.widths
        for name in (
            "image_channels", "num_labels", "blocks_per_resolution", "middle_blocks",
            "attention_head_width", "groups", "embedding_width", "patch_size",
        ):  # fmt: skip
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        legal = "at least two multiples of 16"
        require(len(widths) >= 2, "widths", widths, legal)
        require(all(w >= 16 and w % 16 == 0 for w in widths), "widths", widths, legal)
        factor = self.patch_size * 2 ** (len(widths) - 1)
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
        require_choices(self)

    @property
    def condition_width(self) -> int:
        """E of the condition embedding: what the blocks see, and how x_t enters eps (0 or 2)."""
        return self.embedding_width + (0 if self.prediction == "eps" else 2)


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Fields named in ``FREE_ON_RESUME`` may differ when a run is resumed."""

    preset: Literal["tiny", "small", "base"] = "base"
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
    initialize_from: Path | None = None
    """Checkpoint, or folder of a run, whose EMA weights the run starts from in place of random
    ones: to train a model further, or on other data. The rest begins anew."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""
    overfit_one_batch: int = 0
    """Instead of the run: this many train steps on one fixed batch of at most 16 images, and exit
    code 1 unless the loss falls below a tenth; writes nothing. At least 2; 0: off."""

    epochs: float = 30.0
    """Passes over the training images, above 0; may be a fraction."""
    batch_size: int = 64
    """Images per train step, over all processes; at least 1, a multiple of their number times
    gradient_accumulation."""
    gradient_accumulation: int = 1
    """Micro-batches, at least 1, that each process takes its images of a train step in: less
    memory, the same train step up to rounding and to what dropout drops."""
    seed: int = 0
    """Of weights, order, t, eps and label dropout; 0 .. 2**31-1."""

    num_train_timesteps: int = 1000
    """T, the number of noise levels, 2 .. 100000."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Noise schedule: cosine cut to log-SNR +8 .. -10, or Ho et al.'s linear."""
    t_sampling: Literal["uniform", "stratified"] = "stratified"
    """How t is drawn: independently, or one from each of batch_size equal strata."""
    loss_weighting: Literal["eps", "min_snr", "soft_v", "v"] = "v"
    """Weight of each image's squared error on eps. eps: 1 (Ho et al. 2020). min_snr: min(SNR, 5)
    / SNR (Hang et al. 2023). v: 1 / alpha_t^2, a plain error on v; soft_v: 1 / alpha_t. Both need
    prediction v, whose error on eps falls with alpha_t."""
    label_dropout: float = 0.1
    """Share of labels replaced by null, for classifier-free guidance; 0 .. 1."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the kernels of hidden convolutions and AdamW for the rest; adamw: for all."""
    learning_rate: float = 1.5e-3
    """Peak learning rate of AdamW, reached after the warm-up; above 0."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon, reached after the warm-up; above 0."""
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
    ema_relative_width: float = 0.05
    """Width of the power-function EMA relative to the run so far (Karras et al. 2024); between 0
    and 0.28."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA when there is a device."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of autocast. auto: bf16 where the device has bf16 arithmetic, else fp32. There is no fp16:
    gradients overflow in it."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """auto: channels_last, except for bf16 on a CPU, where it was slower."""
    num_threads: int = 0
    """CPU threads; 0: PyTorch's choice."""
    compile: bool = False
    """Compile the network with torch.compile: takes minutes, then train steps are faster, and the
    same up to rounding. Without a compiler the run says so and goes on uncompiled."""
    deterministic: bool = False
    """Use deterministic algorithms only, so that two runs on one machine are equal to the bit on
    CUDA too, where they are slower; on a CPU they are equal anyway."""

    log_every: int = 50
    """Train steps between log lines, at least 1."""
    checkpoint_every: int = 500
    """Train steps between checkpoints, at least 1."""
    sample_every: int = 1000
    """Train steps between sample grids and loss curves; 0: only at the end."""
    sample_num_steps: int = 20
    """num_steps of the sample grid's DDPM, 1 .. num_train_timesteps."""
    validate_every: int = 1000
    """Train steps between measurements of the EMA weights on test images; 0: only at the end."""
    validate_num_images: int = 500
    """Images drawn at each of them for a quick Frechet distance and label accuracy, 10 .. 60000;
    0: none."""
    select_by: Literal["eps_mse", "frechet"] = "eps_mse"
    """Which of them, at its lowest so far, makes a checkpoint best.safetensors."""
    tensorboard: bool = True
    """Write TensorBoard event files into ``output``."""
    stop_after: int = 0
    """Save and stop after this many train steps of the schedule; 0: run to the end."""

    def __post_init__(self) -> None:
        require_choices(self)
        for name in ("epochs", "learning_rate", "muon_learning_rate", "gradient_clip"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "above 0, finite")
        for name in ("warmup_fraction", "adam_beta1", "adam_beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, name, value, f"0 <= {name} < 1")
        for name in ("batch_size", "gradient_accumulation", "log_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("num_threads", "sample_every", "validate_every", "stop_after"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require(
            self.overfit_one_batch == 0 or self.overfit_one_batch >= 2,
            "overfit_one_batch",
            self.overfit_one_batch,
            "0, or at least 2",
        )
        require(
            self.batch_size % self.gradient_accumulation == 0,
            "gradient_accumulation",
            self.gradient_accumulation,
            f"divisors of batch_size, {self.batch_size}",
        )
        images = self.validate_num_images
        require(
            images == 0 or 10 <= images <= 60_000, "validate_num_images", images, "0, 10 .. 60000"
        )
        require(
            self.select_by == "eps_mse" or images > 0,
            "select_by",
            self.select_by,
            "eps_mse, when validate_num_images is 0",
        )
        require(0 <= self.seed < 2**31, "seed", self.seed, "0 .. 2**31-1")
        require(
            2 <= self.num_train_timesteps <= 100_000,
            "num_train_timesteps",
            self.num_train_timesteps,
            "2 .. 100000",
        )
        require(0 <= self.label_dropout <= 1, "label_dropout", self.label_dropout, "0 .. 1")
        require(
            self.loss_weighting not in {"v", "soft_v"} or self.model.prediction == "v",
            "loss_weighting",
            self.loss_weighting,
            "eps or min_snr, unless prediction is v",
        )
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
    # About 33 M multiply-adds per network call: a first model of one's own.
    "tiny": TrainConfig(preset="tiny", model=ModelConfig(widths=(16, 32, 64)), epochs=4.0),
    # About 53 M: between the two.
    "small": TrainConfig(
        preset="small", model=ModelConfig(widths=(16, 48, 96), middle_blocks=2), epochs=16.0
    ),
    # About 131 M: the embedded model.
    "base": TrainConfig(),
}
"""Networks for three budgets, trained alike; docs/training.md has what each costs and gives."""

FREE_ON_RESUME = frozenset(
    {
        "data_dir",
        "output",
        "resume",
        "dry_run",
        "overfit_one_batch",
        "gradient_accumulation",
        "device",
        "num_threads",
        "memory_format",
        "compile",
        "deterministic",
        "log_every",
        "checkpoint_every",
        "sample_every",
        "sample_num_steps",
        "validate_every",
        "validate_num_images",
        "select_by",
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
    # Of a run from before there was a choice:
    plain = {"optimizer": "adamw", "loss_weighting": "eps"} | plain
    model = {"prediction": "eps"} | plain.pop("model")
    model["widths"] = tuple(model["widths"])
    plain["output"] = Path(plain["output"])
    for name in ("data_dir", "initialize_from"):  # the latter is younger than the first runs
        plain[name] = None if plain.get(name) is None else Path(plain[name])
    return TrainConfig(model=ModelConfig(**model), **plain)
