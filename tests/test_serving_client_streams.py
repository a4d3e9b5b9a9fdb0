"""A stream that another thread closes is closed, whenever that happens."""

import grpc

from serving.client.requests import build_request
from serving.client.resumption import Resumption
from serving.client.retry import Attempts, Rotation
from serving.client.streams import ImageStream


class Cancelled(grpc.RpcError):
    pass


class Call:
    """A call that goes on until it is cancelled."""

    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def __next__(self) -> object:
        assert self.cancelled, "nobody would ever end this call"
        raise Cancelled


def test_a_stream_that_is_closed_while_its_call_begins_cancels_the_call() -> None:
    call = Call()

    def send(*_: object) -> Call:
        stream.close()  # as another thread may, before it can see the call
        return call

    attempts = Attempts(Rotation(["here:1"]), None, 10.0)
    stream = ImageStream(Resumption(build_request(1, 1)), attempts, send, lambda seconds: None)
    assert list(stream) == []
    assert call.cancelled
