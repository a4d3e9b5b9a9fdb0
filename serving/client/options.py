"""The flags that commands of `python -m serving.client` share: how to connect, how to draw."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from serving.client.connection import DEFAULT_TARGET, Tls, split_targets
from serving.client.results import SAMPLERS
from serving.client.retry import DEFAULT_RETRY, RetryPolicy
from serving.client.sync_client import Client

_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])

_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@dataclass(frozen=True, slots=True)
class Connection:
    """The values of the flags."""

    target: str
    timeout_seconds: float
    max_attempts: int
    wait_for_ready: bool
    tls: bool
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    token_file: Path | None

    @property
    def targets(self) -> tuple[str, ...]:
        """Each server."""
        return split_targets(self.target)

    def client(self, target: str | None = None) -> Client:
        """Returns a client of all servers, or of one of them.

        Raises:
            click.UsageError: if the flags do not fit together.
        """
        try:
            return Client(
                target or self.target,
                timeout_seconds=self.timeout_seconds,
                retry=RetryPolicy(max_attempts=self.max_attempts),
                wait_for_ready=self.wait_for_ready,
                tls=self._tls(),
                token=self._token(),
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from None

    def _tls(self) -> Tls | None:
        if self.tls or self.tls_ca or self.tls_cert or self.tls_key:
            return Tls(self.tls_ca, self.tls_cert, self.tls_key)
        return None

    def _token(self) -> str | None:
        return None if self.token_file is None else self.token_file.read_text("utf-8").strip()


@dataclass(frozen=True, slots=True)
class Drawing:
    """How images are drawn; what is None or empty is left to the model."""

    model: str
    sampler: str | None
    num_steps: int | None
    guidance_scale: float | None


def json_option(command: _CommandT) -> _CommandT:
    """Adds the flag --json, `as_json`: what would be said is one JSON object, errors too."""
    flag = click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print one JSON object; a failure is one on stderr, with exit code 1.",
    )
    return flag(command)


def drawing_options(command: _CommandT) -> _CommandT:
    """Adds the flags to a command, which gets them as one argument, `drawing`."""
    flags = (
        click.option("--model", default="", help="Name of a model. [default: the server's first]"),
        click.option("--sampler", type=click.Choice(list(SAMPLERS)), help="[default: the model's]"),
        click.option(
            "--num-steps",
            type=click.IntRange(1, 2**31 - 1),
            help="Network calls per image. [default: the model's]",
        ),
        click.option(
            "--guidance-scale",
            type=float,
            help="1 is the plain conditional model. [default: the model's]",
        ),
    )
    return _as_one_argument(command, "drawing", Drawing, flags)


def connection_options(
    timeout_seconds: float, max_attempts: int = DEFAULT_RETRY.max_attempts
) -> Callable[[_CommandT], _CommandT]:
    """Adds the flags to a command, which gets them as one argument, `connection`."""
    flags = (
        click.option(
            "--target",
            default=DEFAULT_TARGET,
            show_default=True,
            envvar="SIMPLE_DIFFUSION_TARGET",
            show_envvar=True,
            metavar="HOST:PORT[,HOST:PORT...]",
            help="Where the server listens; several servers take turns.",
        ),
        click.option(
            "--timeout-seconds",
            type=click.FloatRange(0, min_open=True),
            default=timeout_seconds,
            show_default=True,
            help="For each call, all its attempts together.",
        ),
        click.option(
            "--max-attempts",
            type=click.IntRange(1),
            default=max_attempts,
            show_default=True,
            help="How often a call is tried while the server is busy or away.",
        ),
        click.option(
            "--wait-for-ready",
            is_flag=True,
            help="While no server is there or ready, try until the time is over.",
        ),
        click.option("--tls", is_flag=True, help="Encrypt, and trust the usual authorities."),
        click.option("--tls-ca", type=_FILE, help="Encrypt, and trust these (PEM) instead."),
        click.option("--tls-cert", type=_FILE, help="Certificate of this client (PEM)."),
        click.option("--tls-key", type=_FILE, help="Private key of that (PEM)."),
        click.option("--token-file", type=_FILE, help="Bearer token that the server asks for."),
    )

    return lambda command: _as_one_argument(command, "connection", Connection, flags)


def _as_one_argument(
    command: _CommandT, argument: str, kind: Any, flags: tuple[Callable[[Any], Any], ...]
) -> _CommandT:
    @wraps(command)
    def run(**arguments: Any) -> Any:
        own = {name: arguments.pop(name) for name in kind.__dataclass_fields__}
        return command(**{argument: kind(**own)}, **arguments)

    decorated: Any = run
    for flag in reversed(flags):
        decorated = flag(decorated)
    return decorated  # type: ignore[no-any-return]
