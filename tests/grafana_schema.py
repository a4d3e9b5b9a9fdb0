"""Whether Grafana knows what stands in a dashboard, by the types that Grafana Labs publish for it.

Grafana itself takes any JSON, and leaves out in silence what it does not know.
"""

import enum
import json
import types
import typing
from collections.abc import Iterator
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

UNITS = frozenset(value for value in vars(units).values() if isinstance(value, str))


def mistakes(dashboard: dict[str, Any]) -> list[str]:
    """What Grafana would not know, or not as it is: one line for each, with where it stands."""
    register_default_plugins()
    read = Dashboard.from_json(dashboard)
    written = json.loads(json.dumps(read, cls=JSONEncoder))
    unread = [
        f"{panel['title']}: there is no panel {panel['type']}"
        for panel, written_panel in zip(dashboard["panels"], read.panels or (), strict=True)
        if isinstance(getattr(written_panel, "options", None), dict)
    ]
    return [*unread, *_unknown(dashboard, written, "dashboard"), *_unfit(read, Dashboard, "")]


def _unknown(given: object, kept: object, where: str) -> Iterator[str]:
    """What is gone once it was read and written again: names that the types do not have."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for name, value in given.items():
            if name in kept:
                yield from _unknown(value, kept[name], f"{where}.{name}")
            else:
                yield f"{where}.{name}: unknown"
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for number, (value, other) in enumerate(zip(given, kept, strict=True)):
            yield from _unknown(value, other, f"{where}[{number}]")
    elif given != kept:
        yield f"{where}: {given!r} is read as {kept!r}"


def _unfit(value: object, hint: Any, where: str) -> Iterator[str]:
    """Values that are not of the declared type, or not among the declared ones."""
    declared, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if declared in (typing.Union, types.UnionType):
        yield from min(([*_unfit(value, each, where)] for each in arguments), key=len)
    elif declared is object:  # what depends on the kind of panel or query
        if hasattr(value, "to_json"):
            yield from _unfit(value, type(value), where)
    elif hasattr(declared, "from_json") and isinstance(value, dict):
        yield from _unfit(declared.from_json(value), declared, where)
    elif not _fits(value, declared, arguments):
        yield f"{where}: {value!r} is no {declared.__name__}"
    else:
        for name, part, its_hint in _parts(value, declared, arguments):
            yield from _unfit(part, its_hint, where + name)


def _fits(value: object, declared: Any, arguments: tuple[Any, ...]) -> bool:
    if declared is typing.Literal:
        return value in arguments
    if issubclass(declared, enum.Enum):
        return value in [each.value for each in declared]
    if isinstance(value, bool):
        return declared is bool
    return isinstance(value, (int, float) if declared is float else declared)


def _parts(
    value: Any, declared: Any, arguments: tuple[Any, ...]
) -> Iterator[tuple[str, object, Any]]:
    """What a list, a dict or one of Grafana's types consists of, each with its declared type."""
    if declared is list:
        for number, each in enumerate(value):
            yield f"[{number}]", each, arguments[0]
    elif declared is dict:
        for name, each in value.items():
            yield f".{name}", each, arguments[1]
    elif hasattr(declared, "to_json"):
        for name, hint in typing.get_type_hints(declared).items():
            yield f".{name}", getattr(value, name), hint
