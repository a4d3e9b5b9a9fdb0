"""Hugging Face diffusers: a DiffusionPipeline with our U-Net in PyTorch and our plan's table.

Tuned as the documentation of diffusers and PyTorch says: inference_mode, channels_last, autocast to
bfloat16; torch.compile of the denoiser, on CPUs with freezing, on GPUs as max-autotune, which
records CUDA graphs.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers import ConfigMixin, DiffusionPipeline, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from benchmarks.peers.drawing import INITIAL_STEP, Batch, Pixels, Tables
from benchmarks.torch_unet import load_unet
from diffusion.plan import Plan
from serving.bundle import load_bundle

Variant = Literal["eager-fp32", "compile-fp32", "eager-bf16", "compile-bf16"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)


class PlanScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A scheduler of diffusers whose step is one row of our plan."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self) -> None:
        self.timesteps = torch.empty(0, dtype=torch.int64)

    def set_plan(self, plan: Plan) -> None:
        """What other schedulers do in set_timesteps."""
        self.timesteps = torch.from_numpy(plan.timesteps.copy())
        self._alpha, self._sigma = plan.alpha.tolist(), plan.sigma.tolist()
        self._coefficients = plan.coefficients.tolist()

    def step(
        self, eps: Tensor, k: int, sample: Tensor, x_0_previous: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x at position k + 1 without its noise, and x_0."""
        x_0 = ((sample - self._sigma[k] * eps) / self._alpha[k]).clamp_(-1.0, 1.0)
        a, b, c, _ = self._coefficients[k]
        x = a * sample + b * x_0
        return (x + c * x_0_previous if c else x), x_0

    def noise_scale(self, k: int) -> float:
        """S of position k."""
        return float(self._coefficients[k][3])


class DigitPipeline(DiffusionPipeline):  # type: ignore[misc]
    """The loop of diffusers' DDPMPipeline, with a label."""

    def __init__(self, unet: nn.Module, scheduler: PlanScheduler, table: Tensor) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self._table = table
        self.set_progress_bar_config(disable=True)

    @torch.inference_mode()
    def __call__(self, batch: Batch, plan: Plan, shape: tuple[int, ...], autocast: Any) -> Tensor:
        """Draws every row of the batch: float32 [N, C, H, W]."""
        device = self._table.device
        label = torch.from_numpy(batch.label).to(device)
        generator = torch.Generator(device).manual_seed(int(batch.seed[0]))

        def noise_of(step: int) -> Tensor:
            if batch.shared_noise:
                return torch.from_numpy(batch.noise_of_server(step, shape)).to(device)
            return torch.randn((len(batch), *shape), generator=generator, device=device)

        self.scheduler.set_plan(plan)
        image = noise_of(INITIAL_STEP)
        x_0 = torch.zeros_like(image)
        for k, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            with autocast():
                eps = self.unet(image, self._table[t][label])
            image, x_0 = self.scheduler.step(eps.float(), k, image, x_0)
            if scale := self.scheduler.noise_scale(k):
                image = image + scale * noise_of(k)
        return image


class DiffusersLoop:
    """One variant of the pipeline.

    Args:
        model: the bundle's directory.
        tables: of the same bundle.
        num_threads: of PyTorch, in this process.
        variant: eager or compiled, float32 or autocast to bfloat16.
        device: of PyTorch: cpu or cuda.
    """

    def __init__(
        self,
        model: Path,
        tables: Tables,
        num_threads: int,
        variant: Variant,
        device: str = "cpu",
    ) -> None:
        torch.set_num_threads(num_threads)
        self._device = device
        self._shape = tables.image_shape
        execution, precision = variant.split("-")
        self._bf16 = precision == "bf16"
        on_cpu = device == "cpu"
        unet: nn.Module = load_unet(load_bundle(model)).to(device)
        unet = unet.to(memory_format=torch.channels_last)
        if execution == "compile":
            from torch._inductor import config as inductor

            inductor.freezing = on_cpu
            unet.compile(dynamic=False, mode=None if on_cpu else "max-autotune")
        table = torch.from_numpy(tables.embedding).to(device)
        self._pipeline = DigitPipeline(unet, PlanScheduler(), table)

    def draw(self, batch: Batch, plan: Plan) -> Pixels:
        """Draws every row of the batch: uint8 [N, H, W] (the first channel)."""
        image = self._pipeline(batch, plan, self._shape, self._autocast)
        pixels: Pixels = ((image.clamp(-1.0, 1.0) + 1.0) * 127.5).round().byte()[:, 0].cpu().numpy()
        return pixels

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device, torch.bfloat16) if self._bf16 else nullcontext()
