"""A stream that breaks is taken up where it broke: every image once, none left out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.client import GeneratedImage, ModelChangedError, Preview
from serving.client.requests import build_request
from serving.client.resumption import Resumption
from simple_diffusion.v1 import diffusion_pb2 as pb
from tests.client_harness import image


def finished(index: int) -> pb.GenerateStreamResponse:
    return pb.GenerateStreamResponse(image=image(7, index))


def preview(index: int) -> pb.GenerateStreamResponse:
    return pb.GenerateStreamResponse(preview=pb.Preview(image=image(7, index), step=2))


SUMMARY = pb.GenerateStreamResponse(summary=pb.GenerateSummary(seed=7, model="tiny"))


def span(request: pb.GenerateRequest) -> tuple[int, int]:
    return request.first_index, request.count


def test_the_first_request_is_the_callers() -> None:
    request = build_request(3, 5, seed=7, first_index=4, num_steps=9, preview_every=2)
    assert Resumption(request).request() == request


def test_what_is_missing_is_asked_for_with_all_other_fields_kept() -> None:
    request = build_request(3, 6, seed=7, first_index=4, guidance_scale=2.0)
    resumption = Resumption(request)
    for index in (4, 5, 7):
        assert isinstance(resumption.take(finished(index)), GeneratedImage)
    again = resumption.request()
    assert span(again) == (6, 4)
    again.first_index, again.count = 4, 6
    assert again == request


def test_images_that_come_twice_and_previews_of_them_are_dropped() -> None:
    resumption = Resumption(build_request(3, 3, seed=7))
    assert isinstance(resumption.take(preview(1)), Preview)
    assert isinstance(resumption.take(finished(1)), GeneratedImage)
    assert resumption.take(finished(1)) is None
    assert resumption.take(preview(1)) is None
    assert resumption.take(finished(9)) is None, "nobody asked for it"


def test_a_summary_that_is_missing_alone_is_asked_for_with_the_last_image() -> None:
    resumption = Resumption(build_request(3, 3, seed=7, first_index=2))
    for index in (2, 3, 4):
        resumption.take(finished(index))
    assert span(resumption.request()) == (4, 1), "not complete"
    assert resumption.take(finished(4)) is None
    assert resumption.take(SUMMARY) is None
    assert resumption.complete
    assert resumption.summary is not None
    assert (resumption.summary.label, resumption.summary.model) == (3, "tiny")


def of_version(version: str, response: pb.GenerateStreamResponse) -> pb.GenerateStreamResponse:
    versioned = pb.GenerateStreamResponse(model_version=version)
    versioned.MergeFrom(response)
    return versioned


def test_messages_of_another_version_of_the_model_are_refused() -> None:
    resumption = Resumption(build_request(3, 4, seed=7))
    for index, version in enumerate(("", "1.0.0", "")):  # "" is what older servers say
        assert resumption.take(of_version(version, finished(index))) is not None
    for message in (finished(3), preview(3), SUMMARY):
        with pytest.raises(ModelChangedError, match=r"1\.0\.0 of the model to 2\.0\.0"):
            resumption.take(of_version("2.0.0", message))
    assert not resumption.complete


@given(data=st.data(), first=st.integers(0, 100), count=st.integers(1, 30))
def test_whatever_breaks_every_image_comes_once(
    data: st.DataObject, first: int, count: int
) -> None:
    resumption = Resumption(build_request(1, count, seed=7, first_index=first))
    got: list[int] = []
    for _ in range(count + 1):
        request = resumption.request()
        assert request.count >= 1
        order = data.draw(
            st.permutations(range(request.first_index, request.first_index + request.count))
        )
        survive = data.draw(st.integers(0, len(order)))
        for index in order[:survive]:
            event = resumption.take(finished(index))
            got += [event.index] if event is not None else []
    while not resumption.complete:
        request = resumption.request()
        for index in range(request.first_index, request.first_index + request.count):
            event = resumption.take(finished(index))
            got += [event.index] if event is not None else []
        resumption.take(SUMMARY)
    assert sorted(got) == list(range(first, first + count))
