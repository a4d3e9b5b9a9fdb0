"""training.muon: orthogonal updates for kernels, AdamW for the rest."""

import numpy as np
import pytest
import torch
from torch import nn

from training.muon import Muon, is_hidden_kernel, orthogonalise

SETTINGS = {
    "learning_rate": 1e-2,
    "muon_learning_rate": 0.02,
    "betas": (0.9, 0.99),
    "weight_decay": 0.1,
}


@pytest.mark.parametrize("shape", [(16, 144), (64, 64), (144, 16)])
def test_an_update_moves_all_directions_about_equally_far(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * torch.logspace(0, -1, shape[1])
    u, lengths, v = torch.linalg.svd(matrix, full_matrices=False)
    [update] = orthogonalise([matrix])
    assert update.shape == shape
    singular = np.diag((u.T @ update @ v.T).numpy())  # the same directions, other lengths
    singular = singular[lengths.numpy() > 0.03 * lengths[0].item()]  # five steps do not reach all
    assert singular.size >= min(shape) - 8
    assert singular.min() > 0.3
    assert singular.max() < 1.3
    assert np.median(singular) > 0.6


def test_the_size_of_the_gradient_does_not_matter() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(16, 32)
    torch.testing.assert_close(orthogonalise([matrix]), orthogonalise([1000 * matrix]))


def test_matrices_are_orthogonalised_side_by_side_as_each_alone() -> None:
    torch.manual_seed(0)
    shapes = [(16, 144), (64, 64), (144, 16), (16, 16), (64, 576), (16, 144)]
    matrices = [torch.randn(shape) * 10.0**n for n, shape in enumerate(shapes)]
    together = orthogonalise(matrices)
    assert [each.shape for each in together] == [torch.Size(shape) for shape in shapes]
    for one, matrix in zip(together, matrices, strict=True):
        torch.testing.assert_close(one, orthogonalise([matrix])[0], rtol=1e-4, atol=1e-5)


def test_a_gradient_of_zeros_moves_nothing() -> None:
    kernel = nn.Parameter(torch.ones(16, 16, 3, 3))
    kernel.grad = torch.zeros_like(kernel)
    Muon([kernel], **SETTINGS).step()
    assert (kernel == 1).all()


@pytest.mark.parametrize(
    ("shape", "taken"),
    [
        ((16, 16, 3, 3), True),
        ((32, 64, 1, 1), True),
        ((48, 4, 3, 3), False),  # first convolution
        ((4, 48, 3, 3), False),  # last convolution
        ((128, 128), False),
        ((64,), False),
    ],
)
def test_kernels_between_hidden_layers_are_taken(shape: tuple[int, ...], taken: bool) -> None:
    assert is_hidden_kernel(torch.zeros(shape)) is taken


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_moves_against_its_orthogonalised_gradient(
    memory_format: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(16, 24, 3, 3).to(memory_format=memory_format))
    before = kernel.detach().clone()
    kernel.grad = torch.randn_like(kernel)
    Muon([kernel], **SETTINGS).step()
    moved = (kernel.detach() - before).permute(0, 2, 3, 1).reshape(16, -1)
    gradient = kernel.grad.permute(0, 2, 3, 1).reshape(16, -1)
    torch.testing.assert_close(moved, -0.02 * orthogonalise([gradient])[0], rtol=1e-4, atol=1e-6)


def test_all_else_moves_as_adamw_moves_it() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(8), torch.randn(5, 8)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = (
        Muon([ours], **SETTINGS),
        torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1),
    )
    for gradient in gradients:
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_parameter_without_a_gradient_stays() -> None:
    kernel, bias = nn.Parameter(torch.ones(16, 16, 1, 1)), nn.Parameter(torch.ones(16))
    Muon([kernel, bias], **SETTINGS).step()
    assert (kernel == 1).all()
    assert (bias == 1).all()


def test_learning_rates_can_be_scheduled_group_by_group() -> None:
    kernel, bias = nn.Parameter(torch.ones(16, 16, 1, 1)), nn.Parameter(torch.ones(16))
    optimizer = Muon([kernel, bias], **SETTINGS)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.02, 1e-2]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    kernel.grad, bias.grad = torch.randn_like(kernel), torch.randn_like(bias)
    optimizer.step()
    assert (kernel == 1).all()
    assert (bias == 1).all()


def test_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="no closure"):
        Muon([nn.Parameter(torch.ones(3))], **SETTINGS).step(lambda: 0.0)
