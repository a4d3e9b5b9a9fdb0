"""Classification accuracy score: are generated images good enough to learn to read digits from?

A classifier is trained on generated images and the labels that were asked for, and tested on real
images (Ravuri and Vinyals 2019, "Classification Accuracy Score for Conditional Generative Models",
arXiv:1905.10887, section 3). Wrong labels, missing modes and artefacts all lower the score; a model
that memorised its training images does not, so it is read beside evaluation.memorisation.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from evaluation.checks import check_images, check_labels
from training.config import require

BATCH_SIZE = 128
PEAK_LEARNING_RATE = 3e-3
MAX_SHIFT = 2
"""Pixels that a training image is moved by at most, along each axis."""
_TEST_ROWS = 1000


class PooledCnn(nn.Module):
    """Convolutions without padding, maxima pooled before normalisation (in the manner of VGG).

    28 -> 24 -> 12 -> 10 -> 8 -> 4. No judge has this shape, so that the score does not depend on
    what the judges happen to look at.

    Args:
        num_labels: number of classes.
    """

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 24, 5, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 48, 3, bias=False), nn.BatchNorm2d(48), nn.ReLU(),
            nn.Conv2d(48, 64, 3, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 4 * 4, 128, bias=False),
            nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, num_labels),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        """image: float32 [B, 1, 28, 28] in [-1, 1]. Returns logits [B, num_labels]."""
        logits: Tensor = self.layers(image)
        return logits


def classification_accuracy_score(
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    test_images: NDArray[np.uint8],
    test_labels: NDArray[np.integer],
    *,
    seed: int,
    epochs: int = 10,
    progress: bool = True,
) -> float:
    """Share of real test images that a network reads correctly which saw ``images`` only.

    The recipe is fixed: AdamW under one cycle of the learning rate (Smith and Topin 2017,
    arXiv:1708.07120), label smoothing, every image shifted by up to MAX_SHIFT pixels. The same
    arguments on the same machine with as many threads give the same score; PyTorch's global random
    state is left as it was.

    Args:
        images: uint8 [N, 1, 28, 28], what to learn from; N at least BATCH_SIZE. MNIST's protocol
            takes 60,000. The rows of an epoch that fill no batch are left out of it.
        labels: int [N], what the images were asked to be; 0 or more.
        test_images: uint8 [M, 1, 28, 28], real ones.
        test_labels: int [M], theirs.
        seed: of the weights, the order, the shifts and dropout; 0 .. 2^63 - 1.
        epochs: passes over ``images``, at least 1.
        progress: whether to show a bar.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: shapes, sizes or values are not as above.
    """
    check_images("images", images, (1, 28, 28), BATCH_SIZE)
    check_labels("labels", labels, len(images))
    check_images("test_images", test_images, (1, 28, 28))
    check_labels("test_labels", test_labels, len(test_images))
    require(0 <= seed < 2**63, "seed", seed, "0 .. 2^63 - 1")
    require(epochs >= 1, "epochs", epochs, "at least 1")
    num_labels = 1 + int(max(labels.max(), test_labels.max()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _train(images, labels, num_labels, epochs, progress)
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(test_images), _TEST_ROWS):
            rows = slice(start, start + _TEST_ROWS)
            logits = network(_scaled(torch.tensor(test_images[rows])))
            correct += int((logits.argmax(dim=1).numpy() == test_labels[rows]).sum())
    return correct / len(test_images)


def _train(
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    num_labels: int,
    epochs: int,
    progress: bool,
) -> nn.Module:
    """A network in eval mode; random numbers come from PyTorch's global state."""
    network = PooledCnn(num_labels).to(memory_format=torch.channels_last)  # faster on CPUs
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.02)
    batches = len(images) // BATCH_SIZE
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=epochs * batches
    )
    pixels, classes = torch.tensor(images), torch.tensor(np.asarray(labels, np.int64))
    padded = functional.pad(pixels, (MAX_SHIFT,) * 4)  # black
    with tqdm(
        total=epochs * batches, desc="CAS", unit="step", disable=None if progress else True
    ) as bar:
        for _ in range(epochs):
            order = torch.randperm(len(pixels))
            for i in range(batches):
                rows = order[i * BATCH_SIZE : (i + 1) * BATCH_SIZE]
                logits = network(_scaled(_shifted(padded[rows])))
                loss = functional.cross_entropy(logits, classes[rows], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                cycle.step()
                bar.update()
    return network.eval()


def _shifted(padded: Tensor) -> Tensor:
    """Of each padded image, a window of its own: [B, 1, H + 2s, W + 2s] -> [B, 1, H, W]."""
    batch, _, height, width = padded.shape
    inner = torch.arange(height - 2 * MAX_SHIFT), torch.arange(width - 2 * MAX_SHIFT)
    down, right = torch.randint(0, 2 * MAX_SHIFT + 1, (2, batch, 1))
    rows, columns = down + inner[0], right + inner[1]
    image = torch.arange(batch)[:, None, None]
    return padded[image, 0, rows[:, :, None], columns[:, None, :]][:, None]


def _scaled(pixels: Tensor) -> Tensor:
    """uint8 [B, 1, H, W] -> float32 in [-1, 1]."""
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
