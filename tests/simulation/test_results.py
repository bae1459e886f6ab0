"""Results that cannot be written, as on a full disk: nothing that was there is lost, and no other error is hidden."""

import errno
from pathlib import Path
from typing import Any

import pytest

import choral
from server.errors import QuorumError
from simulation.errors import SimulationError
from simulation.simulate import RESULTS
from tests.simulation.test_simulate import SETTING, SPEC, assert_results, deserted


def write_half(path: Path, *_: Any) -> None:
    path.write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_results_that_cannot_be_written_leave_those_before_and_come_when_they_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choral.simulate(SPEC, tmp_path, **SETTING)
    before = {name: (tmp_path / name).read_bytes() for name in RESULTS}
    with monkeypatch.context() as patch:
        patch.setattr("simulation.simulate.write_history", write_half)
        with pytest.raises(
            SimulationError,
            match=r"^Result .+history\.csv: must be writable, got: No space left on device\. The rounds",
        ):
            choral.simulate(SPEC, tmp_path, **SETTING)
    assert {name: (tmp_path / name).read_bytes() for name in RESULTS} == before
    assert list(tmp_path.glob("*.tmp")) == []
    (tmp_path / "history.csv").unlink()
    choral.simulate(SPEC, tmp_path, **SETTING)
    assert_results(tmp_path, 4)


def test_error_is_not_hidden_by_results_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("simulation.simulate.write_plot", write_half)
    with pytest.raises(QuorumError, match=r"^Round 3: at least 3 clients"):
        choral.simulate(deserted(tmp_path / "trace.csv"), tmp_path / "out", clients=20)
    assert "history.png: must be writable, got: No space left on device." in caplog.text
    assert (tmp_path / "out" / "history.csv").is_file()
