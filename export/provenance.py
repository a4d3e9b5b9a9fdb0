"""Where the weights of a bundle came from."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import onnx

from export.graphs import Graphs
from export.structure import multiply_adds
from training.checkpoint import Checkpoint
from training.config import to_dict
from training.model import DiffusionModel

# Fields of the training configuration that name a machine's directories, or only an action.
_LEFT_OUT = ("data_dir", "output", "resume", "dry_run")


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
        "export_code": git_state(Path(__file__).resolve().parent.parent),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "multiply_adds_per_image_and_call": {
            "embedding.onnx": multiply_adds(onnx.load_from_string(graphs.embedding_onnx)),
            "unet.onnx": multiply_adds(onnx.load_from_string(graphs.unet_onnx)),
        },
    }


def git_state(root: Path) -> dict[str, Any]:
    """Commit and whether files that git knows differ from it; both None outside a checkout."""
    nothing = {"git_commit": None, "git_dirty": None}
    top = _git(root, "rev-parse", "--show-toplevel")
    # Installed into an environment that lies in somebody's checkout is not that checkout.
    if top is None or Path(top).resolve() != root:
        return nothing
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return nothing
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None where there is no git, no checkout, or no answer."""
    program = shutil.which("git")
    if program is None:
        return None
    try:
        completed = subprocess.run(
            [program, "-C", str(root), *arguments],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return completed.stdout.strip()
