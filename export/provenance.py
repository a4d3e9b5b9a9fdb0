"""Where the weights of a bundle came from."""

from typing import Any

import onnx

from export.graphs import Graphs
from export.structure import multiply_adds
from training.checkpoint import Checkpoint
from training.config import to_dict
from training.model import DiffusionModel
from training.source_code import git_state

# Fields of the training configuration that name a machine's directories, or only an action.
_LEFT_OUT = ("data_dir", "output", "initialize_from", "resume", "dry_run", "overfit_one_batch")


def describe(
    checkpoint: Checkpoint, checkpoint_sha256: str, model: DiffusionModel, graphs: Graphs
) -> dict[str, Any]:
    """The manifest's section: data, configuration, code and cost. It holds no local path.

    Args:
        checkpoint: the run.
        checkpoint_sha256: of its file, in hexadecimal.
        model: what was exported, for the number of parameters.
        graphs: for the number of multiply-adds.
    """
    config = {k: v for k, v in to_dict(checkpoint.config).items() if k not in _LEFT_OUT}
    # Named in the manifest itself.
    run = {k: v for k, v in checkpoint.provenance.items() if k != "label_names"}
    return {
        **run,
        "train_step": checkpoint.train_step,
        "seed": checkpoint.config.seed,
        "config": config,
        "checkpoint_sha256": checkpoint_sha256,
        "export_code": git_state(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "multiply_adds_per_image_and_call": {
            "embedding.onnx": multiply_adds(onnx.load_from_string(graphs.embedding_onnx)),
            "unet.onnx": multiply_adds(onnx.load_from_string(graphs.unet_onnx)),
        },
    }
