"""Law L7 in words: what a run waits for, how much is missing, and how long it may still take."""

import re
import time

import pytest

from server.monitoring.status import Status, Wait


@pytest.mark.parametrize(
    ("have", "until_time", "sentence"),
    [
        pytest.param(7, 1041.0, "waiting for 3 of 10 updates, 41 s left", id="some"),
        pytest.param(10, 1041.0, "waiting for 0 of 10 updates, 41 s left", id="all"),
        pytest.param(12, 1041.0, "waiting for 0 of 10 updates, 41 s left", id="too-many"),
        pytest.param(0, 990.0, "waiting for 10 of 10 updates, 0 s left", id="overdue"),
        pytest.param(4, None, "waiting for 6 of 10 updates", id="without-an-end"),
    ],
)
def test_wait_says_what_is_missing_and_how_long_it_may_take(have: int, until_time: float | None, sentence: str) -> None:
    assert Wait("updates", lambda: have, 10, until_time).sentence(1000.0) == sentence


def test_status_begins_queued() -> None:
    assert Status().sentence() == "queued"


def test_status_follows_phases_and_waits() -> None:
    status, arrived = Status(), 0
    status.enter("train", 7)
    assert status.sentence() == "round 7: train"
    with status.waiting("updates", lambda: arrived, 3, 60.0):
        assert re.fullmatch(r"round 7: train: waiting for 3 of 3 updates, (60|59) s left", status.sentence())
        arrived = 2
        assert status.sentence().startswith("round 7: train: waiting for 1 of 3 updates, ")
        assert status.wait is not None
        assert status.wait.until_time == pytest.approx(time.time() + 60, abs=5)
    assert status.sentence() == "round 7: train"
    with status.waiting("clients", lambda: 0, 1, None):
        assert status.sentence() == "round 7: train: waiting for 1 of 1 clients"
    status.enter("finished", 0)
    assert status.sentence() == "finished"


def test_status_forgets_a_wait_that_was_broken_off() -> None:
    status = Status()
    with pytest.raises(KeyError), status.waiting("clients", lambda: 0, 1, 1.0):
        raise KeyError
    assert status.wait is None
