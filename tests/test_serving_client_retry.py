"""Which failures are tried again, where and after how long: decided without a clock of its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.client import ClientError, DeadlineExceededError, RetryPolicy
from serving.client.retry import Attempts, Rotation
from tests.fakes import FakeClock


def error(code: str, retry_after_seconds: float | None = None) -> ClientError:
    return ClientError(code, code, retry_after_seconds=retry_after_seconds)


UNAVAILABLE = error("UNAVAILABLE")


def longest(_: float, most: float) -> float:
    return most


def none(least: float, _: float) -> float:
    return least


def begin(
    clock: FakeClock,
    policy: RetryPolicy | None,
    *,
    targets: tuple[str, ...] = ("one",),
    timeout_seconds: float = 1000.0,
    uniform: object = longest,
    **settings: bool,
) -> Attempts:
    rotation = Rotation(targets, clock)
    return Attempts(rotation, policy, timeout_seconds, clock=clock, uniform=uniform, **settings)


def test_the_wait_grows_up_to_its_cap() -> None:
    policy = RetryPolicy(8, 0.1, 1.0, 2.0)
    attempts = begin(FakeClock(), policy)
    assert [attempts.after(UNAVAILABLE) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_the_wait_is_drawn_from_zero_to_the_longest() -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    attempts = begin(FakeClock(), RetryPolicy(), uniform=uniform)
    assert [attempts.after(UNAVAILABLE), attempts.after(UNAVAILABLE)] == [0.0, 0.0]
    assert asked == [(0.0, 0.1), (0.0, 0.2)]


def test_the_last_attempt_ends_with_its_error() -> None:
    attempts = begin(FakeClock(), RetryPolicy(max_attempts=3))
    attempts.after(UNAVAILABLE)
    attempts.after(UNAVAILABLE)
    last = error("UNAVAILABLE")
    with pytest.raises(ClientError) as caught:
        attempts.after(last)
    assert caught.value is last


def test_a_busy_server_is_asked_again_when_it_said_and_a_little_later() -> None:
    busy = error("RESOURCE_EXHAUSTED", 7.0)
    assert begin(FakeClock(), RetryPolicy(), uniform=none).after(busy) == 7.0
    assert begin(FakeClock(), RetryPolicy(), uniform=longest).after(busy) == pytest.approx(7.7)
    assert begin(FakeClock(), RetryPolicy(), uniform=none).after(error("UNAVAILABLE", 3.0)) == 3.0


@pytest.mark.parametrize(
    "code",
    ["CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND",
     "RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "UNIMPLEMENTED", "UNKNOWN"],
)  # fmt: skip
def test_everything_else_is_final(code: str) -> None:
    attempts = begin(FakeClock(), RetryPolicy(), wait_for_ready=True)
    with pytest.raises(ClientError, match=code):
        attempts.after(error(code))


def test_without_a_policy_nothing_is_tried_again() -> None:
    attempts = begin(FakeClock(), None, wait_for_ready=True)
    with pytest.raises(ClientError, match="UNAVAILABLE"):
        attempts.after(UNAVAILABLE)


def test_a_wait_that_would_outlast_the_call_is_not_begun() -> None:
    clock = FakeClock()
    attempts = begin(clock, RetryPolicy(), timeout_seconds=10.0, uniform=none)
    clock.now += 6.0
    with pytest.raises(ClientError, match="RESOURCE_EXHAUSTED"):
        attempts.after(error("RESOURCE_EXHAUSTED", 4.0))
    assert attempts.after(error("RESOURCE_EXHAUSTED", 3.9)) == 3.9
    clock.now += 3.9
    assert attempts.remaining_seconds() == pytest.approx(0.1)
    clock.now += 0.1
    with pytest.raises(DeadlineExceededError, match="did not come in time"):
        attempts.remaining_seconds()


def test_waiting_for_ready_goes_on_until_the_time_is_over() -> None:
    clock = FakeClock()
    attempts = begin(clock, RetryPolicy(2, 0.5, 0.5), timeout_seconds=60.0, wait_for_ready=True)
    for _ in range(119):
        clock.now += attempts.after(UNAVAILABLE)
    with pytest.raises(ClientError, match="UNAVAILABLE"):
        attempts.after(UNAVAILABLE)


def test_progress_counts_anew() -> None:
    attempts = begin(FakeClock(), RetryPolicy(max_attempts=2))
    for _ in range(5):
        assert attempts.after(UNAVAILABLE) == 0.1
        attempts.progressed()


def test_another_server_is_asked_at_once_and_all_of_them_after_a_wait() -> None:
    attempts = begin(FakeClock(), RetryPolicy(6), targets=("a", "b", "c"))
    asked = [attempts.target]
    waits = []
    for _ in range(5):
        waits.append(attempts.after(UNAVAILABLE))
        asked.append(attempts.target)
    assert asked == ["a", "b", "c", "a", "b", "c"]
    assert waits == [0.0, 0.0, 0.1, 0.0, 0.0]


def test_targets_take_turns() -> None:
    rotation = Rotation(["a", "b", "c"], FakeClock())
    assert [rotation.take() for _ in range(7)] == ["a", "b", "c", "a", "b", "c", "a"]


def test_a_target_that_cannot_be_reached_is_passed_over_for_a_second() -> None:
    clock = FakeClock()
    rotation = Rotation(["a", "b", "c"], clock)
    rotation.avoid("b")
    assert [rotation.take() for _ in range(4)] == ["a", "c", "a", "c"]
    clock.now += 1.0
    assert [rotation.take() for _ in range(3)] == ["a", "b", "c"]


def test_if_all_are_avoided_the_one_that_failed_first_is_asked() -> None:
    clock = FakeClock()
    rotation = Rotation(["a", "b"], clock)
    for target in ("b", "a"):
        rotation.avoid(target)
        clock.now += 0.1
    assert [rotation.take() for _ in range(2)] == ["b", "b"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_attempts": 0}, "max_attempts must be at least 1, got 0"),
        ({"initial_backoff_seconds": 0}, "initial_backoff_seconds must be above 0"),
        ({"initial_backoff_seconds": 6}, "at most max_backoff_seconds 5, got 6"),
        ({"backoff_multiplier": 0.5}, "backoff_multiplier must be at least 1, got 0.5"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetryPolicy(**settings)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_call_without_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="timeout_seconds must be above 0"):
        begin(FakeClock(), RetryPolicy(), timeout_seconds=seconds)


failures = st.sampled_from(
    [UNAVAILABLE, error("UNAVAILABLE", 0.3), error("RESOURCE_EXHAUSTED", 0.2)]
) | st.builds(error, st.just("RESOURCE_EXHAUSTED"), st.floats(0, 100))


@given(
    policy=st.builds(RetryPolicy, max_attempts=st.integers(1, 8)),
    targets=st.sampled_from([("a",), ("a", "b"), ("a", "b", "c")]),
    timeout_seconds=st.floats(0.01, 50),
    share=st.floats(0, 1),
    failed=st.lists(st.tuples(failures, st.floats(0, 5)), min_size=9, max_size=9),
)
def test_no_call_outlasts_its_time_or_its_attempts(
    policy: RetryPolicy,
    targets: tuple[str, ...],
    timeout_seconds: float,
    share: float,
    failed: list[tuple[ClientError, float]],
) -> None:
    clock = FakeClock()
    begun_seconds = clock.now
    attempts = begin(
        clock, policy, targets=targets, timeout_seconds=timeout_seconds,
        uniform=lambda low, high: low + share * (high - low),
    )  # fmt: skip
    tried = 0

    def call() -> None:
        nonlocal tried
        for failure, seconds in failed:
            tried += 1
            clock.now += min(seconds, attempts.remaining_seconds())
            clock.now += attempts.after(failure)

    with pytest.raises(ClientError):
        call()
    assert tried <= policy.max_attempts
    assert clock.now - begun_seconds <= timeout_seconds * (1 + 1e-9)
