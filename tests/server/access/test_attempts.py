"""Failed attempts: who has to wait, how long, and how much of it is remembered."""

import pytest

from server.access import attempts
from server.access.attempts import MOST_FAILURES, WINDOW_SECONDS, Attempts


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fail(attempts: Attempts, address: str, count: int) -> None:
    for _ in range(count):
        attempts.note_failure(address)


def test_address_waits_after_the_last_failure_it_is_allowed(clock: Clock) -> None:
    counted = Attempts(clock)
    fail(counted, "192.0.2.1", MOST_FAILURES - 1)
    assert counted.seconds_to_wait("192.0.2.1") == 0
    fail(counted, "192.0.2.1", 1)
    assert counted.seconds_to_wait("192.0.2.1") == WINDOW_SECONDS
    assert counted.seconds_to_wait("192.0.2.2") == 0
    clock.now += WINDOW_SECONDS - 0.5
    assert counted.seconds_to_wait("192.0.2.1") == 1
    clock.now += 0.5
    assert counted.seconds_to_wait("192.0.2.1") == 0
    fail(counted, "192.0.2.1", 1)
    assert counted.seconds_to_wait("192.0.2.1") == 0


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("", "unix", False),
    ],
)
def test_subscriber_of_ipv6_is_one_address(clock: Clock, one: str, other: str, are_same: bool) -> None:
    counted = Attempts(clock)
    fail(counted, one, MOST_FAILURES)
    assert (counted.seconds_to_wait(other) > 0) is are_same


def test_addresses_beyond_the_bound_push_out_the_oldest(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "ADDRESS_COUNT", 5)
    counted = Attempts(clock)
    for number in range(50):
        clock.now += 0.001
        fail(counted, f"192.0.2.{number}", MOST_FAILURES)
    waiting = [number for number in range(50) if counted.seconds_to_wait(f"192.0.2.{number}")]
    assert waiting == [45, 46, 47, 48, 49]
