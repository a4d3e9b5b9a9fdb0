"""Judges: small CNNs, trained on real images, that look at generated ones through ONNX Runtime."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.cpu_count import usable_cpus

# Read when ONNX Runtime is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

JUDGES = Path(__file__).parent / "judges"
"""Where the shipped judges lie, in one directory per data set."""
FEATURES = "features"
"""Name of judge F, which measures distances."""
LABELS = ("labels-1", "labels-2", "labels-3")
"""Names of judges C, which read labels."""
_ROWS = 500


class Judge:
    """One judge.

    Args:
        path: ONNX file with input image float32 [batch, 1, 28, 28] in [-1, 1] and outputs logits
            [batch, 10] and features [batch, D].
        num_threads: for ONNX Runtime; None: as many as this process may use CPUs.

    Attributes:
        name: the file's, without its suffix.
        sha256: of the file, to be printed beside every number that it gives.
        metadata: network, epochs, seed, dataset, dataset_md5 (JSON) and test_accuracy.
        test_accuracy: share of the real test images that it reads correctly, in [0, 1].
        num_features: D.
    """

    def __init__(self, path: Path, num_threads: int | None = None) -> None:
        content = path.read_bytes()
        self.name = path.stem
        self.sha256 = hashlib.sha256(content).hexdigest()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = usable_cpus() if num_threads is None else num_threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            content, sess_options=options, providers=["CPUExecutionProvider"]
        )
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.test_accuracy = float(self.metadata.get("test_accuracy", "nan"))
        shapes = {output.name: output.shape for output in self._session.get_outputs()}
        self.num_features = int(shapes["features"][1])

    def _run(self, output: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if images.dtype != np.uint8 or images.shape[1:] != (1, 28, 28) or not len(images):
            raise ValueError(
                f"images are {images.dtype} {list(images.shape)}; legal: uint8 [N, 1, 28, 28]"
            )
        parts = []
        for start in range(0, len(images), _ROWS):
            image = images[start : start + _ROWS].astype(np.float32) / 127.5 - 1
            parts.append(self._session.run([output], {"image": image})[0])
        return np.concatenate(parts)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits of uint8 [N, 1, 28, 28], N > 0: float32 [N, 10]."""
        return self._run("logits", images)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Labels read from uint8 [N, 1, 28, 28], N > 0: int64 [N]."""
        labels: NDArray[np.int64] = self.logits(images).argmax(axis=1)
        return labels

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Penultimate features of uint8 [N, 1, 28, 28], N > 0: float32 [N, num_features]."""
        return self._run("features", images)


@dataclass(frozen=True)
class Judges:
    """The judges of one data set. Their networks differ in shape.

    Attributes:
        features: F, for distances; it never reads labels.
        labels: C, three that read labels.
    """

    features: Judge
    labels: tuple[Judge, ...]


def load_judges(dataset: str, folder: Path = JUDGES, num_threads: int | None = None) -> Judges:
    """The judges that were trained on ``dataset``.

    Args:
        dataset: as in mnist or fashion_mnist.
        folder: holds DATASET/NAME.onnx.
        num_threads: as of ``Judge``.

    Raises:
        FileNotFoundError: the data set has no judges, or not all of them.
        ValueError: a file's judge was trained on another data set.
    """

    def load(name: str) -> Judge:
        path = folder / dataset / f"{name}.onnx"
        if not path.is_file():
            known = sorted(other.parent.name for other in folder.glob(f"*/{FEATURES}.onnx"))
            raise FileNotFoundError(
                f"{path}: no judge {name!r} for data set {dataset!r}; data sets with judges: "
                f"{', '.join(known) or 'none'}"
            )
        judge = Judge(path, num_threads)
        trained_on = judge.metadata.get("dataset")
        if trained_on != dataset:
            raise ValueError(f"{path}: trained on {trained_on!r}, not on {dataset!r}")
        return judge

    return Judges(load(FEATURES), tuple(load(name) for name in LABELS))
