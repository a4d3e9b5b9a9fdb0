"""How a command ends that fails: one line on stderr (and one per bad field), exit code 1."""

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import click

from serving.client.dataset.unfinished import DatasetError
from serving.client.errors import ClientError

_P = ParamSpec("_P")


def one_line_errors(command: Callable[_P, None]) -> Callable[_P, None]:
    """Decorates a command whose errors are for the person, or with --json the program, who asks."""

    @wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # whoever read our output has left: click ends quietly
        except (ClientError, DatasetError, OSError) as error:
            fields = _fields(error)
            text = json.dumps({"error": fields}) if kwargs["as_json"] else _lines(fields)
            click.echo(text, err=True)
            sys.exit(1)

    return run


def _fields(error: Exception) -> dict[str, Any]:
    """The same for every error: code and violations are those of a server's refusal."""
    if isinstance(error, ClientError):
        return {
            "code": error.code,
            "message": str(error),
            "violations": [
                {"field": field, "description": text} for field, text in error.violations
            ],
            "retry_after_seconds": error.retry_after_seconds,
            "request_id": error.request_id,
        }
    if isinstance(error, OSError):
        message = f"cannot write {error.filename}: {error.strerror}"
    else:
        message = str(error)
    return {"code": None, "message": message, "violations": []}


def _lines(fields: dict[str, Any]) -> str:
    if not fields["violations"]:
        return f"error: {fields['message']}"
    lines = [f"error: {fields['code']}: the server refuses the request"]
    lines += [f"  {each['field']}: {each['description']}" for each in fields["violations"]]
    return "\n".join(lines)
