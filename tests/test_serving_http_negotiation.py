"""What a caller likes best, by its Accept header."""

import pytest

from serving.http.negotiation import EVENTS, JSON, PNG, chosen, is_json


@pytest.mark.parametrize(
    ("accept", "best"),
    [
        (None, JSON),
        ("*/*", JSON),
        ("image/png", PNG),
        ("IMAGE/PNG", PNG),
        ("image/*", PNG),
        ("text/event-stream", EVENTS),
        ("application/json;q=0.5, image/png", PNG),
        ("*/*;q=0.1, text/event-stream;q=0.2", EVENTS),
        ("application/json;q=0, */*", PNG),
        ("text/html, application/xhtml+xml, */*;q=0.8", JSON),
        ("text/html", None),
        ("*/*;q=0", None),
        ("image/png;q=nonsense", None),
        ("", JSON),
    ],
)
def test_the_best_of_json_png_and_events(accept: str | None, best: str | None) -> None:
    assert chosen(accept, (JSON, PNG, EVENTS)) == best


@pytest.mark.parametrize("text", ["application/json", "Application/JSON; charset=utf-8"])
def test_json_is_said_to_be_json(text: str) -> None:
    assert is_json(text)


@pytest.mark.parametrize("text", [None, "", "text/plain", "application/jsonp", "text/json"])
def test_anything_else_is_not(text: str | None) -> None:
    assert not is_json(text)
