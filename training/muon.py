"""Muon for the convolutions, AdamW for all other parameters, as one optimiser.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") makes every
update of a weight matrix orthogonal: all directions move equally far, the ones with small gradients
too. PyTorch's own (torch.optim.Muon) takes two-dimensional parameters only, which convolutions are
not, and orthogonalises in bfloat16, which many CPUs emulate.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from training.config import TrainConfig

NEWTON_SCHULZ_STEPS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that drives singular values toward 1 (Jordan et al. 2024)."""
SMALLEST_SIDE = 16
"""Kernels from or to fewer channels, the first and the last of the network, stay with AdamW."""


def orthogonalise(matrices: Sequence[Tensor]) -> list[Tensor]:
    """U V^T of the singular value decomposition U S V^T, roughly: singular values in 0.7 .. 1.2.

    Newton-Schulz iteration, products of matrices only (Jordan et al. 2024). One step is
    X <- (a I + b G + c G^2) X with G = X X^T. Its factors are polynomials of the first G and
    commute, so they are multiplied up among matrices of [rows, rows], and X, nine times as wide or
    more for a 3x3 kernel, is multiplied once.

    Matrices with as many rows go through the iteration in one stack: a GPU takes no longer for all
    of them than for one, and each operation that is left out saves the time to launch it.

    Args:
        matrices: [rows, columns] float32 each; the longer side counts as columns.
    """
    wide = [each if each.shape[0] <= each.shape[1] else each.T for each in matrices]
    stacks: dict[int, list[int]] = {}
    for number, x in enumerate(wide):
        stacks.setdefault(len(x), []).append(number)
    orthogonal: list[Tensor] = list(wide)
    for numbers in stacks.values():
        factors = _newton_schulz(torch.stack([wide[number] @ wide[number].T for number in numbers]))
        for number, factor in zip(numbers, factors.unbind(), strict=True):
            orthogonal[number] = factor @ wide[number]
    return [
        x if each.shape[0] <= each.shape[1] else x.T
        for x, each in zip(orthogonal, matrices, strict=True)
    ]


def _newton_schulz(gram: Tensor) -> Tensor:
    """By what X is to be multiplied, of G = X X^T: [N, rows, rows] both."""
    a, b, c = _COEFFICIENTS
    # The Frobenius norm of X, by which X is divided first.
    norm = gram.diagonal(dim1=1, dim2=2).sum(1).sqrt_().add_(1e-7)[:, None, None]
    gram = gram / norm.square()
    product = gram
    for step in range(NEWTON_SCHULZ_STEPS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor @ product if step else factor
        if step < NEWTON_SCHULZ_STEPS - 1:
            gram = factor @ gram @ factor
    return product / norm


def is_hidden_kernel(parameter: Tensor) -> bool:
    """Whether Muon takes it: the kernel of a convolution between hidden layers."""
    return parameter.ndim == 4 and min(parameter.shape[:2]) >= SMALLEST_SIDE


class Muon(torch.optim.Optimizer):
    """Muon for hidden convolution kernels, AdamW (Loshchilov and Hutter 2019) for the rest.

    A kernel [out, in, h, w] is the matrix [out, h*w*in]. Each group's learning rate starts at the
    value given and stands in ``group["initial_lr"]`` for whoever schedules ``group["lr"]``.

    Args:
        parameters: all of the model's; float32.
        learning_rate: of AdamW.
        muon_learning_rate: of Muon: how far every direction of a kernel moves in one step, for
            kernels with fewer rows than columns; taller ones move by sqrt(rows / columns) more.
        betas: AdamW's.
        weight_decay: AdamW's, relative to its learning rate. Muon's kernels have none.
        momentum: of Muon's Nesterov momentum.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        muon_learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        momentum: float = 0.95,
    ) -> None:
        kernels: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for parameter in parameters:
            (kernels if is_hidden_kernel(parameter) else others).append(parameter)
        defaults = {"betas": betas, "weight_decay": weight_decay, "momentum": momentum}
        groups = [
            {"params": params, "lr": rate, "initial_lr": rate, "muon": muon}
            for params, rate, muon in (
                (kernels, muon_learning_rate, True),
                (others, learning_rate, False),
            )
            if params
        ]
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. ``closure`` is not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._step_kernels if group["muon"] else self._step_others)(parameters, group)

    def _step_kernels(self, kernels: list[Tensor], group: dict[str, Any]) -> None:
        for kernel in kernels:
            state = self.state[kernel]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(kernel)
        gradients = [kernel.grad for kernel in kernels if kernel.grad is not None]
        momenta = [self.state[kernel]["momentum_buffer"] for kernel in kernels]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])  # noqa: SLF001
        # In this order a channels_last kernel is a matrix as it lies.
        updates = orthogonalise(
            [each.permute(0, 2, 3, 1).reshape(len(each), -1) for each in nesterov]
        )
        for kernel, update in zip(kernels, updates, strict=True):
            out, channels, height, width = kernel.shape
            scale = max(1.0, out / update.shape[1]) ** 0.5
            moved = update.reshape(out, height, width, channels).permute(0, 3, 1, 2)
            kernel.add_(moved, alpha=-group["lr"] * scale)

    def _step_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def make_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that the configuration names; AdamW's is the last parameter group."""
    betas = (config.adam_beta1, config.adam_beta2)
    if config.optimizer == "muon":
        return Muon(
            model.parameters(),
            learning_rate=config.learning_rate,
            muon_learning_rate=config.muon_learning_rate,
            betas=betas,
            weight_decay=config.weight_decay,
        )
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=betas,
        weight_decay=config.weight_decay,
        fused=True,
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer
