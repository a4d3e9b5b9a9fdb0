"""A request has an id: the client's, if it is one that can be logged, or one of our own."""

import pytest

from serving import request_id


@pytest.mark.parametrize("sent", ["a", "7b3c-42", "x" * 64, "!~/:;="])
def test_a_short_visible_id_is_taken_over(sent: str) -> None:
    assert request_id.choose([("other", "1"), ("x-request-id", sent)]) == sent


@pytest.mark.parametrize("sent", ["", "x" * 65, "two words", "line\nbreak", "\x1b[31m", "é", b"a"])
def test_any_other_id_is_replaced(sent: str | bytes) -> None:
    chosen = request_id.choose([("x-request-id", sent)])
    assert chosen != sent
    assert len(chosen) == 16


def test_ids_of_our_own_differ() -> None:
    assert len({request_id.choose(None) for _ in range(100)}) == 100
