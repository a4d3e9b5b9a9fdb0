"""`python -m serving`: the gRPC server."""

from serving import launch

if __name__ == "__main__":
    launch.prepare()

import asyncio
import logging
import os
import sys
import threading

import click

from serving import logs
from serving.bundle import BundleError
from serving.configuration import ServerConfig
from serving.flags import ConfiguredCommand, command_line
from serving.listening import PortError, raise_file_limit
from serving.network import ProviderError
from serving.ready_file import ReadyFileError
from serving.server import Server
from serving.tls import TlsError
from serving.tokens import TokensError
from serving.tracing import TracingError

_CANNOT_START = (
    PortError, TlsError, TokensError, TracingError, ReadyFileError, BundleError, ProviderError,
)  # fmt: skip

_log = logging.getLogger(__name__)


@click.command(
    cls=ConfiguredCommand,
    configuration=ServerConfig,
    context_settings={"show_default": True, "max_content_width": 100},
)
def main(config: ServerConfig) -> None:
    """Serves models over gRPC. Each option is also read from SIMPLE_DIFFUSION_<OPTION>."""
    logs.set_up(config.log_level, config.log_format)
    _log.info("configuration: %s", command_line(config))
    raise_file_limit()
    _exit(asyncio.run(serve(config)))


async def serve(config: ServerConfig) -> int:
    """Runs a server; returns the exit code, after one line on stderr if it could not start."""
    try:
        return await Server(config).run()
    except _CANNOT_START as error:
        if config.log_format == "json":
            _log.critical("%s", error)
        else:
            logs.flush()
            click.echo(f"error: {error}", err=True)
        return 1


def _exit(code: int) -> None:
    if any(thread.name in ("loader", "engine") for thread in threading.enumerate()):
        # A thread is still inside the network, which cannot be interrupted, and an interpreter that
        # shuts down under it may crash.
        logs.flush()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main(prog_name="python -m serving")
