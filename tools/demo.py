"""`make demo`: starts a server, asks it over gRPC for ten of each label, writes one picture.

Uses nothing but the parts that serve: no PyTorch, no onnx.
"""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np

from serving.client import Client, ClientError, Generation
from serving.images import Pixels, encode_png, grid

READY_SECONDS = 60.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.02


@contextlib.contextmanager
def running_server(model: Path) -> Iterator[str]:
    """Runs a server on free ports of this machine; yields HOST:PORT; stops it with SIGTERM.

    Raises:
        click.ClickException: if it does not start, or does not end with exit code 0.
    """
    with tempfile.TemporaryDirectory() as directory:
        ready_file = Path(directory) / "ready.json"
        log_file = Path(directory) / "server.log"
        command = [sys.executable, "-m", "serving", "--model", str(model), "--host", "127.0.0.1"]
        command += ["--port", "0", "--http-port", "0", "--ready-file", str(ready_file)]
        command += ["--drain-grace-seconds", "0"]
        with log_file.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield _wait_until_ready(process, ready_file, log_file)
            process.send_signal(signal.SIGTERM)
            if (exit_code := process.wait(STOP_SECONDS)) != 0:
                raise _failure(f"the server ended with exit code {exit_code}", log_file)
        except subprocess.TimeoutExpired:
            raise _failure(f"the server did not stop in {STOP_SECONDS:g} s", log_file) from None
        finally:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], ready_file: Path, log_file: Path) -> str:
    end_seconds = time.monotonic() + READY_SECONDS
    while not ready_file.exists():
        if process.poll() is not None:
            raise _failure("the server did not start", log_file)
        if time.monotonic() > end_seconds:
            raise _failure(f"the server was not ready in {READY_SECONDS:g} s", log_file)
        time.sleep(POLL_SECONDS)
    ready = json.loads(ready_file.read_text())
    return f"{ready['host']}:{ready['grpc_port']}"


def _failure(message: str, log_file: Path) -> click.ClickException:
    return click.ClickException(f"{message}. It said:\n{log_file.read_text(errors='replace')}")


def ask_for_every_label(client: Client, count: int, seed: int) -> list[Generation]:
    """Returns `count` images of each label of the server's first model; one request a label."""
    labels = range(len(client.models().models[0].label_names))
    with ThreadPoolExecutor(max_workers=len(labels)) as threads:
        return list(threads.map(lambda label: client.generate(label, count, seed=seed), labels))


def picture(generations: list[Generation], scale: int) -> Pixels:
    """Returns a grid with a row for each label, each pixel a square of `scale` pixels."""
    rows = [image.pixels for generation in generations for image in generation.images]
    sheet = grid(rows, columns=len(generations[0].images))
    return np.kron(sheet, np.ones((scale, scale, 1), dtype=np.uint8))


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Path(path_type=Path), default=Path("models/mnist"))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("demo.png"))
@click.option("--count", type=click.IntRange(1, 100), default=10, help="Images of each label.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0)
@click.option("--scale", type=click.IntRange(1, 16), default=3, help="Enlargement of a pixel.")
def main(model: Path, output: Path, count: int, seed: int, scale: int) -> None:
    """Serves a model, asks it for images of every label, and writes them as one picture."""
    click.echo(f"starting a server with {model}: a few seconds", err=True)
    start_seconds = time.monotonic()
    with running_server(model) as target:
        ready_seconds = time.monotonic() - start_seconds
        click.echo(f"server  {target}, ready after {ready_seconds:.1f} s")
        with Client(target) as client:
            asked_seconds = time.monotonic()
            try:
                generations = ask_for_every_label(client, count, seed)
            except ClientError as error:
                raise click.ClickException(str(error)) from None
            seconds = time.monotonic() - asked_seconds
        output.write_bytes(encode_png(picture(generations, scale)))
    used, images = generations[0], count * len(generations)
    click.echo(
        f"model   {used.model} {used.model_version}, {used.sampler}, {used.num_steps} steps,"
        f" guidance {used.guidance_scale:g}, seed {seed}"
    )
    click.echo(f"images  {images} in {seconds:.2f} s, {images / seconds:.0f} images/s")
    click.echo(f"picture {output.resolve()}")


if __name__ == "__main__":
    main(prog_name="demo")
