"""From a checkpoint to models/NAME: whole and verified, or not at all."""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from export.graphs import Graphs, export_graphs
from export.provenance import describe
from export.settings import BundleSettings
from export.verification import Trajectory, Verification, verify
from serving.bundle import (
    EMBEDDING_NAME,
    MANIFEST_NAME,
    UNET_NAME,
    BundleError,
    Defaults,
    ImageFormat,
    Manifest,
    ScheduleNumbers,
    file_entry,
    load_bundle,
    write_manifest,
)
from training.checkpoint import (
    Checkpoint,
    CheckpointError,
    ema_model,
    load_checkpoint,
    newest_checkpoint,
)
from training.model import DiffusionModel
from training.schedule import make_schedule

logger = logging.getLogger(__name__)

_FILES = frozenset({MANIFEST_NAME, EMBEDDING_NAME, UNET_NAME})


class ExportError(Exception):
    """A bundle that cannot be written; the message is one line."""


def find_checkpoint(path: Path) -> Path:
    """The file itself, or the newest checkpoint of a run's folder.

    Raises:
        CheckpointError: there is none.
    """
    if not path.is_dir():
        return path
    newest = newest_checkpoint(path)
    if newest is None:
        raise CheckpointError(f"{path}: no checkpoint in this folder")
    return newest


def export_bundle(
    checkpoint_path: Path,
    output: Path,
    settings: BundleSettings,
    *,
    force: bool = False,
    report: Callable[[Verification], None],
) -> Manifest:
    """Export, verify, write.

    Args:
        checkpoint_path: a checkpoint, or a run's folder for its newest.
        output: the bundle's directory. Nothing stands there until all is verified.
        settings: name, version and defaults.
        force: replace a bundle that stands there.
        report: gets the verification when it has passed, before anything is written.

    Returns:
        The manifest that was written.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ExportError: ``output`` is taken or cannot be written, or a setting is out of range.
        VerificationFailed: the graphs are not the model.
        BundleError: what was written cannot be read back.
        OSError: it cannot be written.
    """
    require_free(output, force)
    path = find_checkpoint(checkpoint_path)
    checkpoint = load_checkpoint(path)
    # Now: a run that goes on removes its older checkpoints.
    checkpoint_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    model = _finite_ema_model(checkpoint, path)
    _warn_if_unfinished(checkpoint)
    logger.info("exporting the EMA weights of train step %d", checkpoint.train_step)
    graphs = export_graphs(model)
    provenance = describe(checkpoint, checkpoint_sha256, model, graphs)
    try:
        manifest = _manifest(checkpoint, graphs, settings, provenance)
    except KeyError as error:
        raise CheckpointError(f"{path}: its provenance has no {error}") from error
    logger.info("verifying against PyTorch; a minute or two for a network of full size")
    default = Trajectory(settings.sampler, settings.num_steps, settings.guidance_scale)
    verification = verify(model, make_schedule(checkpoint.config), graphs, default)
    report(verification)
    manifest = manifest.model_copy(update={"verification": verification.to_dict()})
    write_bundle(manifest, graphs, output, force=force)
    return manifest


def _finite_ema_model(checkpoint: Checkpoint, path: Path) -> DiffusionModel:
    try:
        model = ema_model(checkpoint)
    except RuntimeError as error:  # from load_state_dict: names or shapes differ
        raise CheckpointError(f"{path}: its weights are not those of its configuration") from error
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise CheckpointError(f"{path}: {name} holds NaN or Inf")
    return model


def _warn_if_unfinished(checkpoint: Checkpoint) -> None:
    total = checkpoint.provenance.get("train_steps_total")
    if isinstance(total, int) and checkpoint.train_step < total:
        logger.warning(
            "warning: this run is not finished: train step %d of %d; the model may draw poorly",
            checkpoint.train_step,
            total,
        )


def _manifest(
    checkpoint: Checkpoint, graphs: Graphs, settings: BundleSettings, provenance: dict[str, Any]
) -> Manifest:
    """The manifest without its verification."""
    config = checkpoint.config.model
    schedule = make_schedule(checkpoint.config)
    try:
        return Manifest(
            name=settings.name,
            version=settings.version,
            label_names=checkpoint.provenance["label_names"],
            null_label=config.num_labels,
            image=ImageFormat(
                channels=config.image_channels, height=config.image_size, width=config.image_size
            ),
            schedule=ScheduleNumbers(
                num_train_timesteps=schedule.num_train_timesteps,
                alphas_cumprod=schedule.alphas_cumprod.tolist(),
            ),
            embedding_width=config.condition_width,
            defaults=Defaults(
                sampler=settings.sampler,
                num_steps=settings.num_steps,
                guidance_scale=settings.guidance_scale,
            ),
            files={
                EMBEDDING_NAME: file_entry(graphs.embedding_onnx),
                UNET_NAME: file_entry(graphs.unet_onnx),
            },
            provenance=provenance,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ExportError(f"{at + ': ' if at else ''}{message}") from error


def require_free(output: Path, force: bool) -> None:
    """Refuse an ``output`` that cannot be written or is taken, but for a bundle and ``force``."""
    _require_writable(output.resolve().parent)
    if not output.exists():
        return
    if not output.is_dir():
        raise ExportError(f"{output} is not a directory")
    found = {entry.name for entry in output.iterdir()}
    if MANIFEST_NAME in found and not force:
        raise ExportError(f"{output} holds a bundle already; --force replaces it")
    if found - _FILES or (found and MANIFEST_NAME not in found):
        raise ExportError(
            f"{output} holds other files ({', '.join(sorted(found - _FILES or found))}); "
            "name a new directory"
        )


def _require_writable(directory: Path) -> None:
    """Try it: there are more reasons against it than permissions."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    try:
        tempfile.TemporaryDirectory(dir=existing).cleanup()
    except OSError as error:
        reason = f"user {os.getuid()} cannot write to {existing}: {error.strerror}"
        raise ExportError(reason) from error


def write_bundle(manifest: Manifest, graphs: Graphs, output: Path, *, force: bool) -> None:
    """Write beside ``output``, read back, and only then give it its name."""
    output = output.resolve()  # what a symbolic link names is replaced, not the link
    output.parent.mkdir(parents=True, exist_ok=True)
    with _sibling(output, "partial") as partial:
        partial.mkdir()
        (partial / EMBEDDING_NAME).write_bytes(graphs.embedding_onnx)
        (partial / UNET_NAME).write_bytes(graphs.unet_onnx)
        write_manifest(manifest, partial)
        try:
            written = load_bundle(partial)
        except BundleError as error:
            raise BundleError(str(error).replace(str(partial), str(output))) from error
        if written.manifest != manifest:
            raise BundleError(f"{output}: the manifest does not read back as it was written")
        require_free(output, force)
        with _sibling(output, "replaced") as replaced:
            if output.exists():
                output.rename(replaced)
            try:
                partial.rename(output)
            except BaseException:  # Ctrl-C too: what is still in ``replaced`` gets removed
                if replaced.exists():
                    replaced.rename(output)
                raise


@contextmanager
def _sibling(output: Path, kind: str) -> Iterator[Path]:
    """A free path in the directory of ``output``; what stands there in the end is removed."""
    path = output.parent / f".{output.name}.{kind}-{os.getpid()}"
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
