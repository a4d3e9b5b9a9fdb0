"""`python -m serving`: the gRPC server."""

import asyncio
import logging
import os
import sys
import threading
from pathlib import Path

import click

from serving.bundle import BundleError
from serving.listening import PortError
from serving.network import ProviderError
from serving.server import Server, ServerConfig

_LOG_LEVELS = ("debug", "info", "warning", "error")
_PORT = click.IntRange(0, 65535)


@click.command(
    context_settings={
        "auto_envvar_prefix": "SIMPLE_DIFFUSION",
        "show_default": True,
        "max_content_width": 100,
    }
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    multiple=True,
    default=("models/mnist",),
    help="Directory of a model bundle. Several times for several models (in the environment:"
    " separated by colons); the first is the default one.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    help="Address to listen on; 0.0.0.0 for every interface. There is no authentication yet.",
)
@click.option("--port", type=_PORT, default=50051, help="gRPC port; 0 takes a free one.")
@click.option(
    "--http-port",
    type=_PORT,
    default=8080,
    help="Port of /metrics, /livez and /readyz; 0 takes a free one.",
)
@click.option(
    "--provider",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Where the network runs. auto: cuda if it works, else cpu. cuda never falls back.",
)
@click.option(
    "--num-threads",
    type=click.IntRange(1, 1024),
    help="CPU threads of one network call. [default: the CPUs this process may use]",
)
@click.option(
    "--max-lanes",
    type=click.IntRange(1, 4096),
    default=64,
    help="Images denoised at once, per model.",
)
@click.option(
    "--max-queued-images",
    type=click.IntRange(1, 10_000_000),
    default=4096,
    help="Accepted images that may wait for a lane, per model; beyond: RESOURCE_EXHAUSTED.",
)
@click.option(
    "--max-images-per-request",
    type=click.IntRange(1, 1_000_000),
    default=1024,
    help="Largest count of one request.",
)
@click.option(
    "--drain-grace-seconds",
    type=click.FloatRange(0, 3600),
    default=1.0,
    help="After SIGTERM: how long to go on accepting while load balancers notice that this"
    " server is not ready. SIGINT (Ctrl-C) skips it.",
)
@click.option(
    "--drain-timeout-seconds",
    type=click.FloatRange(0, 86_400),
    default=60.0,
    help="How long accepted requests may take to finish after that. A second signal exits at once.",
)
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Written once the server is ready: JSON with host, grpc_port, http_port and pid.",
)
@click.option("--log-level", type=click.Choice(_LOG_LEVELS, case_sensitive=False), default="info")
def main(
    *,
    model: tuple[Path, ...],
    host: str,
    port: int,
    http_port: int,
    provider: str,
    num_threads: int | None,
    max_lanes: int,
    max_queued_images: int,
    max_images_per_request: int,
    drain_grace_seconds: float,
    drain_timeout_seconds: float,
    ready_file: Path | None,
    log_level: str,
) -> None:
    """Serves models over gRPC. Each option is also read from SIMPLE_DIFFUSION_<OPTION>."""
    if max_images_per_request > max_queued_images:
        raise click.UsageError(
            f"--max-images-per-request {max_images_per_request} is more than"
            f" --max-queued-images {max_queued_images}: such a request could never be accepted"
        )
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = ServerConfig(
        models=model,
        host=host,
        port=port,
        http_port=http_port,
        provider=provider,
        num_threads=num_threads,
        max_lanes=max_lanes,
        max_queued_images=max_queued_images,
        max_images_per_request=max_images_per_request,
        drain_grace_seconds=drain_grace_seconds,
        drain_timeout_seconds=drain_timeout_seconds,
        ready_file=ready_file,
    )
    _exit(asyncio.run(serve(config)))


async def serve(config: ServerConfig) -> int:
    """Runs a server; returns the exit code, after one line on stderr if it could not start."""
    try:
        return await Server(config).run()
    except (PortError, BundleError, ProviderError) as error:
        click.echo(f"error: {error}", err=True)
        return 1


def _exit(code: int) -> None:
    if any(thread.name in ("loader", "engine") for thread in threading.enumerate()):
        # A thread is still inside the network, which cannot be interrupted, and an interpreter that
        # shuts down under it may crash.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main(prog_name="python -m serving")
