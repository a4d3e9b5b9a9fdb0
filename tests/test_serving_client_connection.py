"""Where a client connects, and what it says about itself."""

from pathlib import Path

import pytest

from serving.client.connection import Tls, call_metadata, split_targets


def test_targets_are_split_at_commas_each_once() -> None:
    assert split_targets("a:1") == ("a:1",)
    assert split_targets("a:1, [::1]:2,a:1") == ("a:1", "[::1]:2")


@pytest.mark.parametrize("target", ["", "a:1,", ",a:1", "a:1,,b:2"])
def test_an_empty_target_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="target must be HOST:PORT"):
        split_targets(target)


def test_a_token_travels_as_a_bearer_token() -> None:
    assert call_metadata("s3cret") == (("authorization", "Bearer s3cret"),)
    assert call_metadata(None) == ()


@pytest.mark.parametrize("token", ["", "two words", "line\n", "tök"])
def test_a_token_that_no_header_holds_is_refused_without_repeating_it(token: str) -> None:
    with pytest.raises(ValueError, match="a token must be") as caught:
        call_metadata(token)
    assert not token or token not in str(caught.value)


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(ValueError, match="needs its key"):
        Tls(cert_file=Path("cert.pem"))
    with pytest.raises(ValueError, match="needs its key"):
        Tls(key_file=Path("key.pem"))
