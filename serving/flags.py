"""How a setting of the server becomes a flag, an environment variable and a line in the log.

A setting is declared once, as a field of `serving.configuration.ServerConfig` with `flag(...)`;
everything else follows from that: the option of `python -m serving`, its environment variable
SIMPLE_DIFFUSION_<FLAG>, the refusal of variables that mean nothing, and the line in the log.
"""

import dataclasses
import difflib
import math
import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

ENVIRONMENT_PREFIX = "SIMPLE_DIFFUSION_"

# What the client reads under the same prefix is no mistake of whoever starts a server.
_CLIENT_VARIABLE = f"{ENVIRONMENT_PREFIX}TARGET"
_CLIENT_PREFIX = f"{ENVIRONMENT_PREFIX}CLIENT_"

_METADATA_KEY = "serving.flag"
_HINT_CUTOFF = 0.6

_ValueT = TypeVar("_ValueT")


@dataclass(frozen=True, slots=True)
class Flag:
    """One setting as people write it.

    Args:
        field_name: its name in the configuration.
        name: its name on the command line, with the dashes.
        kind: which values it takes; None for any text.
        default: its value if nobody says anything; None for "see the help".
        text: the help.
        multiple: whether it can be given several times; the value is a tuple.
    """

    field_name: str
    name: str
    kind: click.ParamType[Any] | None
    default: object
    text: str
    multiple: bool

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return ENVIRONMENT_PREFIX + self.name.removeprefix("--").replace("-", "_").upper()

    @property
    def switch(self) -> bool:
        """Whether it is either given or not, without a value."""
        return isinstance(self.default, bool)


def flag(
    default: _ValueT,
    text: str,
    *,
    kind: "click.ParamType[Any] | None" = None,
    name: str | None = None,
    multiple: bool = False,
) -> _ValueT:
    """Returns a dataclass field that is a flag of the server.

    Args:
        default: a bool makes a switch.
        text: the help, a sentence or two.
        kind: which values it takes; None for any text.
        name: without dashes in front, if the flag is not called as the field is.
        multiple: whether it can be given several times.
    """
    return field(default=default, metadata={_METADATA_KEY: (kind, text, name, multiple)})


def flags_of(configuration: type) -> tuple[Flag, ...]:
    """Returns the flags that a configuration declares, in its order."""
    found = []
    for each in dataclasses.fields(configuration):
        kind, text, name, multiple = each.metadata[_METADATA_KEY]
        name = f"--{(name or each.name).replace('_', '-')}"
        found.append(Flag(each.name, name, kind, each.default, text, multiple))
    return tuple(found)


class ConfigurationError(ValueError):
    """Settings that cannot be meant together; one line that names them."""


class ConfiguredCommand(click.Command):
    """A command with every flag of a configuration. Its callback is given the configuration."""

    def __init__(self, *arguments: Any, configuration: type, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._configuration = configuration
        self.params += [_option(each) for each in flags_of(configuration)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Looks at the environment first: one stray variable explains what comes after it."""
        if "--help" not in args:
            refuse_unknown_variables(self._configuration, os.environ)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Makes the configuration and calls the callback with it."""
        try:
            ctx.params = {"config": self._configuration(**ctx.params)}
        except ConfigurationError as error:
            raise click.UsageError(str(error), ctx) from None
        return super().invoke(ctx)


def refuse_unknown_variables(configuration: type, environment: Mapping[str, str]) -> None:
    """Refuses SIMPLE_DIFFUSION_* variables that no flag has.

    Raises:
        click.UsageError: naming the variable, never its value, and what it might have meant.
    """
    known = [each.variable for each in flags_of(configuration)]
    given = [name for name in environment if name.startswith(ENVIRONMENT_PREFIX)]
    unknown = sorted(
        name
        for name in given
        if name not in (*known, _CLIENT_VARIABLE) and not name.startswith(_CLIENT_PREFIX)
    )
    if not unknown:
        return
    if f"{ENVIRONMENT_PREFIX}SERVICE_HOST" in unknown:
        raise click.UsageError(
            "these environment variables come from Kubernetes, for a Service called"
            " simple-diffusion, and look like settings: set enableServiceLinks: false in the pod"
        )
    raise click.UsageError(f"no such setting: environment variable {_hint(unknown[0], known)}")


def command_line(configuration: object) -> str:
    """Returns the flags that give this configuration, for the log."""
    words = []
    for each in flags_of(type(configuration)):
        value = getattr(configuration, each.field_name)
        if each.switch:
            words += [each.name] if value else []
        elif value is not None:
            for one in value if each.multiple else (value,):
                words += [each.name, _text(one)]
    return shlex.join(words)


def _option(declared: Flag) -> click.Option:
    return _Option(
        [declared.name, declared.field_name],
        type=declared.kind,
        is_flag=declared.switch,
        multiple=declared.multiple,
        default=declared.default,
        envvar=declared.variable,
        help=declared.text,
    )


class _Option(click.Option):
    """An option that also names its variable, if that is where a bad value came from."""

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Returns the flag, and the variable."""
        hint = super().get_error_hint(ctx)
        source = ctx and ctx.get_parameter_source(self.name or "")
        if source is click.core.ParameterSource.ENVIRONMENT:
            hint += f" (environment variable {self.envvar})"
        return hint


class Numbers(click.FloatRange):
    """A range of numbers, in which "nan" is not one."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Returns the number; refuses what is outside of the range."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


class AutoOrInteger(click.IntRange):
    """A range of whole numbers, or "auto"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the number, or "auto"; refuses what is outside of the range."""
        return value if value == "auto" else super().convert(value, param, ctx)


class Choice(click.Choice[str]):
    """One of some words; for another one the error says which might have been meant."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """Returns click's sentence, with the closest choice after it."""
        message = super().get_invalid_choice_message(value, ctx)
        close = difflib.get_close_matches(str(value).lower(), self.choices, 1, _HINT_CUTOFF)
        return f"{message} Did you mean {close[0]!r}?" if close else message


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1, _HINT_CUTOFF)
    return f"{name}. Did you mean {close[0]}?" if close else name


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value.as_posix() if isinstance(value, Path) else str(value)
