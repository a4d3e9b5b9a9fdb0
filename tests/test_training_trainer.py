"""One train step: what goes in, how far it goes, and that ways to compute it agree."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.tiny_training import small_digits, tiny_trainer
from training.batches import batch_indices
from training.cost import forward_flop
from training.source_code import git_state
from training.trainer import Trainer, TrainingDiverged


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Those of the last train step, after clipping."""
    named = trainer.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


# --- What goes in ----------------------------------------------------------------------------


def test_the_network_sees_the_images_in_minus_one_to_one(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    trainer.loss.register_forward_pre_hook(
        lambda _module, arguments: seen.append((arguments[0], arguments[1]))
    )
    trainer.run_train_step()
    [(x_0, label)] = seen
    indices = batch_indices(trainer.config, 1, 500)
    data = small_digits().train
    expected = torch.from_numpy(data.images[indices].astype(np.float32) / 127.5 - 1)[:, None]
    torch.testing.assert_close(x_0, expected)
    assert x_0.min() == -1.0
    assert 0.9 < x_0.max() <= 1.0
    assert label.tolist() == data.labels[indices].tolist()


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_a_long_gradient_is_cut_to_the_asked_norm(tmp_path: Path, clip: float) -> None:
    trainer = tiny_trainer(tmp_path, gradient_clip=clip)
    trainer.run_train_step()
    norm = float(torch.nn.utils.get_total_norm(gradients(trainer).values()))
    assert norm == pytest.approx(1e-3, rel=1e-2) if clip < 1 else norm > 1e-2


def test_the_loss_falls_on_real_digits_within_sixty_train_steps(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, epochs=1.92, batch_size=16, learning_rate=4e-3)
    assert trainer.total == 60
    losses = [trainer.run_train_step().item() for _ in range(trainer.total)]
    assert losses[0] == pytest.approx(1.0, abs=0.06)
    assert np.mean(losses[-10:]) < 0.4


# --- In how many parts -----------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 8])
def test_a_batch_in_parts_is_the_batch_at_once(tmp_path: Path, parts: int) -> None:
    # Large enough a clip that nothing hides a gradient of another length.
    at_once = tiny_trainer(tmp_path, gradient_clip=1e6)
    in_parts = tiny_trainer(tmp_path, gradient_clip=1e6, gradient_accumulation=parts)
    sizes: list[int] = []
    in_parts.loss.register_forward_pre_hook(
        lambda _module, arguments: sizes.append(len(arguments[0]))
    )
    for _ in range(2):
        loss, loss_in_parts = at_once.run_train_step(), in_parts.run_train_step()
        torch.testing.assert_close(loss_in_parts, loss, rtol=1e-5, atol=0)
        expected = gradients(at_once)
        for name, gradient in gradients(in_parts).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)
    assert sizes == [8 // parts] * 2 * parts


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("parts", [1, 4])
def test_processes_exchange_gradients_once_per_train_step(tmp_path: Path, parts: int) -> None:
    trainer = tiny_trainer(tmp_path, gradient_accumulation=parts)
    trainer.loss = DistributedDataParallel(trainer.loss)
    exchanges = 0

    def count(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
        nonlocal exchanges
        exchanges += bucket.is_last()
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    trainer.loss.register_comm_hook(None, count)
    trainer.run_train_step()
    assert exchanges == 1


# --- What is kept of it ----------------------------------------------------------------------


def test_a_checkpoint_says_which_code_computed_what_and_at_what_cost(
    tmp_path: Path, repository: Path
) -> None:
    trainer = tiny_trainer(tmp_path)
    for _ in range(3):
        trainer.run_train_step()
    provenance = trainer.checkpoint().provenance
    assert provenance["images_seen"] == 24
    assert provenance["training_flop"] == 3 * 24 * forward_flop(trainer.config.model)
    assert provenance["git_commit"] == git_state(repository)["git_commit"]
    assert "git_dirty" in provenance


def test_what_was_measured_last_goes_with_the_run(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.validation = {"train_step": 7, "validation_eps_mse": 0.5}
    other = tiny_trainer(tmp_path)
    other.restore(trainer.checkpoint())
    assert other.validation == {"train_step": 7, "validation_eps_mse": 0.5}


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, gradient_accumulation=2)
    forward = trainer.loss.forward
    calls = 0

    def poisoned(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return forward(*arguments) * (float("nan") if calls == 2 else 1.0)

    trainer.loss.forward = poisoned
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(TrainingDiverged, match="^train step 1: the gradient norm is nan"):
        trainer.run_train_step()
    assert trainer.train_step == 0
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
