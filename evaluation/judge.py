"""Judges: small CNNs, trained on real digits, that look at generated ones through ONNX Runtime."""

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Read when ONNX Runtime is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

JUDGES = Path(__file__).parent / "judges"
"""Where the shipped judges lie."""
_ROWS = 500


class Judge:
    """One judge.

    Args:
        path: ONNX file with input image float32 [batch, 1, 28, 28] in [-1, 1] and outputs logits
            [batch, 10] and features [batch, D].

    Attributes:
        sha256: of the file, to be printed beside every number that it gives.
        test_accuracy: share of the real test images that it reads correctly.
    """

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.test_accuracy = float(metadata.get("test_accuracy", "nan"))

    def _run(self, output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = []
        for start in range(0, len(images), _ROWS):
            image = images[start : start + _ROWS].astype(np.float32) / 127.5 - 1
            parts.append(self._session.run([output], {"image": image})[0])
        return np.concatenate(parts)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Labels read from uint8 [N, 1, 28, 28]: int64 [N]."""
        labels: NDArray[np.int64] = self._run("logits", images).argmax(axis=1)
        return labels

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Penultimate features of uint8 [N, 1, 28, 28]: float32 [N, D]."""
        return self._run("features", images)
