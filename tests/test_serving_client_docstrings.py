"""The client's public names: an editor shows what each parameter and each field is."""

import dataclasses
import inspect
import re
from collections.abc import Iterator

import pytest

from serving import client
from serving.client.requests import RequestOptions

PUBLIC = [(name, getattr(client, name)) for name in client.__all__]


def explained(text: str | None) -> set[str]:
    """The names that a docstring's Args or Attributes explain, each in words."""
    return set(re.findall(r"^ +(?:\*\*)?(\w+): \S+", text or "", re.MULTILINE))


def methods() -> Iterator[tuple[str, object]]:
    for name, kind in PUBLIC:
        for method_name, method in inspect.getmembers(kind, inspect.isfunction):
            if not method_name.startswith("_") and method.__module__.startswith("serving.client"):
                yield f"{name}.{method_name}", method


@pytest.mark.parametrize(("name", "method"), list(methods()), ids=[name for name, _ in methods()])
def test_every_parameter_of_a_method_is_explained(name: str, method: object) -> None:
    parameters = set(inspect.signature(method).parameters) - {"self"}
    if "options" in parameters:
        parameters |= RequestOptions.__annotations__.keys()
    assert method.__doc__
    assert parameters <= explained(method.__doc__)


@pytest.mark.parametrize("kind", [client.Client, client.AsyncClient])
def test_every_setting_of_a_client_is_explained(kind: type) -> None:
    assert set(inspect.signature(kind).parameters) <= explained(kind.__doc__)


@pytest.mark.parametrize(("name", "kind"), PUBLIC, ids=client.__all__)
def test_every_field_of_a_value_is_explained(name: str, kind: type) -> None:
    assert kind.__doc__
    if dataclasses.is_dataclass(kind):
        docs = "".join(base.__doc__ or "" for base in kind.__mro__[:-1])
        assert {field.name for field in dataclasses.fields(kind)} <= explained(docs)


def test_a_range_and_a_unit_are_given_where_there_is_one() -> None:
    text = client.Client.generate.__doc__ or ""
    for words in (
        "count: images wanted, 1 ..",
        "guidance_scale: 0 .. 20",
        "num_steps: reverse steps",
    ):
        assert words in text
