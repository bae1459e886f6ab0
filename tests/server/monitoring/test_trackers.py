"""What TensorBoard and MLflow are written of real runs, read back with their own readers, and what it costs a run when they fail."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from server.coordinator import Coordinator
from server.errors import ConfigurationError
from server.monitoring.trackers import MLflow, TensorBoard, Tracker
from server.records import RunState
from tests.hostile import drawn_vector, joined
from tests.loopback import committed_round, everyone, run_in_state, serving, small_spec, until

SIZE = 67
KEYS = [Ed25519PrivateKey.generate() for _ in range(3)]


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of MLflow, in files."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "mlruns").as_uri()


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """Read one series of the only run in a folder of TensorBoard's."""
    [run] = folder.iterdir()
    events = EventAccumulator(str(run)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def only_run(address: str) -> Any:
    """Return the only run of MLflow, or None; of files that are being written, also None."""
    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name("choral")
    try:
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
    except ValueError:
        return None
    assert len(runs) <= 1
    return runs[0] if runs else None


def history(address: str, name: str) -> list[tuple[int, float]]:
    run_id = only_run(address).info.run_id
    return [(point.step, point.value) for point in MlflowClient(address).get_metric_history(run_id, name)]


async def play_round(coordinator: Coordinator, run_id: str, number: int) -> None:
    """Let three clients contribute to one round, whose training loss is its number."""
    async with everyone([joined(coordinator.address, key) for key in KEYS]) as sessions:
        tasks = [await session.task() for session in sessions]
        for session, task in zip(sessions, tasks, strict=True):
            assert task.round == number
            await session.contribute(task, drawn_vector(number, SIZE), metrics={"loss": float(number)})
        await committed_round(coordinator, run_id, number)


async def test_run_that_is_taken_up_again_goes_on_where_it_was(tmp_path: Path, address: str) -> None:
    board = tmp_path / "board"

    def trackers() -> tuple[Tracker, ...]:
        return TensorBoard(board), MLflow(address)

    async def is_finished() -> bool:
        run = only_run(address)
        return run is not None and run.info.status == "FINISHED"

    async def has_first() -> bool:
        run = only_run(address)
        return run is not None and run.data.tags["choral.round"] == "1"

    async with serving(tmp_path / "c", trackers=trackers()) as coordinator:
        run = await coordinator.runs.submit(small_spec(rounds=3))
        await play_round(coordinator, run.run_id, 1)
        await until(has_first, "the first round in MLflow")
    async with serving(tmp_path / "c") as coordinator:
        # A coordinator without trackers: what it plays is made up for.
        await play_round(coordinator, run.run_id, 2)
    async with serving(tmp_path / "c", trackers=trackers()) as coordinator:
        await play_round(coordinator, run.run_id, 3)
        finished = await run_in_state(coordinator, run.run_id, RunState.FINISHED)
        await until(is_finished, "the end in MLflow")
        model = coordinator.runs.model_path(finished).read_bytes()
    assert scalars(board, "train_loss") == history(address, "train_loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert scalars(board, "round/contributions") == [(number, 3.0) for number in (1, 2, 3)]
    tracked = only_run(address)
    assert tracked.info.run_name == "small"
    assert tracked.data.params["learner.name"] == "mlp"
    assert tracked.data.params["cohort.size"] == "3"
    assert tracked.data.tags["choral.run_id"] == run.run_id
    [kept] = list((tmp_path / "mlruns").glob("*/*/artifacts/model/*.safetensors"))
    assert kept.read_bytes() == model
    [folder] = board.iterdir()
    text = EventAccumulator(str(folder)).Reload().Tensors("spec/text_summary")[-1]
    assert b"learner.name: mlp" in text.tensor_proto.string_val[0]


async def test_trackers_that_fail_cost_one_line_each_and_no_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    board = tmp_path / "board"
    board.write_text("a file, where a folder should be", encoding="utf-8")
    trackers: tuple[Tracker, ...] = (TensorBoard(board), MLflow("http://ana:secret@127.0.0.1:1"))

    def lines() -> list[str]:
        told = [
            record
            for record in caplog.records
            if record.name.startswith(("server.monitoring.trackers", "mlflow", "urllib3"))
        ]
        assert all(
            (record.name, record.levelno) == ("server.monitoring.trackers", logging.WARNING) for record in told
        ), told
        return [record.getMessage() for record in told]

    async def both() -> bool:
        return len(lines()) == 2

    async with serving(tmp_path / "c", trackers=trackers) as coordinator:
        run = await coordinator.runs.submit(small_spec(rounds=2))
        await play_round(coordinator, run.run_id, 1)
        await until(both, lambda: f"two lines, got {lines()}")
        board.unlink()
        await play_round(coordinator, run.run_id, 2)
        await run_in_state(coordinator, run.run_id, RunState.FINISHED)

        async def is_mended() -> bool:
            return board.is_dir() and len(scalars(board, "train_loss")) == 2

        await until(is_mended, "what the folder could not take before")
    assert scalars(board, "train_loss") == [(1, 1.0), (2, 2.0)]
    assert "http://****@127.0.0.1:1/" in lines()[1]
    assert "secret" not in caplog.text
    assert [line.partition(" cannot be written, trying again with each round: ")[0] for line in lines()] == [
        "TensorBoard",
        "MLflow",
    ]


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        pytest.param("localhost:5000", "localhost:5000", id="no-scheme"),
        pytest.param("127.0.0.1:5000", "127.0.0.1:5000", id="no-scheme-that-would-be-a-file"),
        pytest.param("mlflow.example.org", "mlflow.example.org", id="a-host-alone"),
        pytest.param("http:/localhost:5000", "http:/localhost:5000", id="no-host"),
        pytest.param("htps://ana:secret@localhost:5000", "htps://****@localhost:5000", id="an-unknown-scheme"),
        pytest.param("ana:secret@localhost:5000", "****@localhost:5000", id="a-password-without-scheme"),
    ],
)
def test_address_that_mlflow_does_not_take_is_refused_at_the_start(uri: str, told: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^MLflow: tracking URI must have one of the schemes databricks, "
    ) as refusal:
        MLflow(uri)
    assert str(refusal.value).endswith(f", got {told!r}. Give a server as http://HOST:5000.")


@pytest.mark.parametrize(
    "uri", ["http://mlflow:5000", "https://ana:secret@mlflow/path", "file:/runs", "databricks", "databricks://profile"]
)
def test_address_that_mlflow_takes_is_taken_without_asking_it(uri: str) -> None:
    assert MLflow(uri).name == "MLflow"


async def test_metric_that_is_not_finite_is_left_out(tmp_path: Path, address: str) -> None:
    board = tmp_path / "board"

    async def is_finished() -> bool:
        run = only_run(address)
        return run is not None and run.info.status == "FINISHED"

    async with serving(tmp_path / "c", trackers=(TensorBoard(board), MLflow(address))) as coordinator:
        run = await coordinator.runs.submit(small_spec(rounds=1))
        async with everyone([joined(coordinator.address) for _ in range(3)]) as sessions:
            for session in sessions:
                task = await session.task()
                await session.contribute(task, drawn_vector(1, SIZE), metrics={"loss": 1.0, "odd": np.inf})
            await run_in_state(coordinator, run.run_id, RunState.FINISHED)
        await until(is_finished, "the end in MLflow")
    assert scalars(board, "train_loss") == [(1, 1.0)]
    assert "train_odd" not in only_run(address).data.metrics
