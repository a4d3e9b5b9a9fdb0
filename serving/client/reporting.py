"""How a command ends that fails: one line on stderr (and one per bad field), exit code 1."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import click

from serving.client.dataset.unfinished import DatasetError
from serving.client.errors import ClientError

_P = ParamSpec("_P")


def one_line_errors(command: Callable[_P, None]) -> Callable[_P, None]:
    """Decorates a command whose errors are for the person who typed it."""

    @wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except ClientError as error:
            if error.violations:
                lines = [f"error: {error.code}: the server refuses the request"]
                lines += [f"  {field}: {text}" for field, text in error.violations]
            else:
                lines = [f"error: {error}"]
            _fail("\n".join(lines))
        except DatasetError as error:
            _fail(f"error: {error}")
        except BrokenPipeError:
            raise  # whoever read our output has left: click ends quietly
        except OSError as error:
            _fail(f"error: cannot write {error.filename}: {error.strerror}")

    return run


def _fail(message: str) -> None:
    click.echo(message, err=True)
    sys.exit(1)
