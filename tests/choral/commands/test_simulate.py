"""`choral simulate`: rounds as they come, what is left, and how it goes on."""

import contextlib
import json
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.choral.command_line import Choral, sentence
from tests.federation import Process, wait_until
from tests.simulation.test_simulate import SPEC


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Path of a run spec, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(json.dumps(SPEC))
    return "run.yaml"


def test_simulate_shows_rounds_and_says_what_it_leaves(choral: Choral, spec: str) -> None:
    outcome = choral("simulate", spec, "--clients", "10", "--folder", "out")
    assert outcome.code == 0
    assert "engine vectorized: with 1,210 parameters" in outcome.err
    assert "committed" not in outcome.err
    *rounds, total, files = outcome.lines
    assert [line.partition(",")[0] for line in rounds] == [f"round {number}: 5 clients" for number in (1, 2, 3, 4)]
    assert all("accuracy" in line and "loss" in line for line in rounds)
    assert total.startswith("4 of 4 rounds in ")
    assert files == "In out: model.safetensors, history.csv, history.png."
    assert Path("out/history.png").is_file()


def test_simulate_of_another_federation_in_the_same_folder_is_one_sentence(choral: Choral, spec: str) -> None:
    assert choral("simulate", spec, "--engine", "serial", "--clients", "10").code == 0
    outcome = choral("simulate", spec, "--engine", "serial", "--clients", "11")
    rule = "clients must be that of the simulation that it holds, 10, got 11."
    assert sentence(outcome).startswith(f"Folder simulated: {rule}")
    outcome = choral("simulate", spec, "--engine", "serial")
    rule = "clients must be that of the simulation that it holds, 10, got none. Give the same, choose another folder"
    assert sentence(outcome).startswith(f"Folder simulated: {rule}")


def test_simulate_in_blocks_that_are_no_number_is_refused(choral: Choral, spec: str) -> None:
    outcome = choral("simulate", spec, "--clients", "10", "--block", "abc")
    assert outcome.code == 2
    assert "--block must be a number of clients or auto, got 'abc'." in outcome.err


def test_simulate_whose_data_cannot_be_dealt_is_one_sentence(choral: Choral, spec: str) -> None:
    outcome = choral("simulate", spec, "--clients", "10", "--partition", "shards,per_client=9999")
    assert sentence(outcome).startswith("Partition ")


def test_simulate_interrupted_says_how_it_goes_on(choral: Choral, spec: str, tmp_path: Path) -> None:
    Path(spec).write_text(json.dumps(SPEC | {"rounds": 100_000}))
    folder = str(tmp_path / "simulated")
    command = [sys.executable, "-m", "choral", "simulate", str(tmp_path / spec), "--clients", "10", "--folder", folder]
    with contextlib.closing(Process(command, tmp_path / "log", is_forked=True)) as process:
        wait_until(lambda: "round 1: " in process.output, "the first round")
        process.interrupt()
        assert process.wait() == 130
    said = " ".join(process.output.split())
    assert f"Interrupted. The same command goes on from the last round in {folder}." in said
    assert "Traceback" not in said


def test_simulate_tracked_twice_is_one_run_with_all_rounds_and_the_model(
    choral: Choral, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    address = (tmp_path / "mlruns").as_uri()
    options = ("--engine", "serial", "--clients", "10", "--tensorboard", "board", "--mlflow", address)
    assert choral("simulate", spec, *options).code == 0
    assert choral("simulate", spec, *options).code == 0
    steps = list(range(1, 5))
    [run] = (tmp_path / "board").iterdir()
    assert [event.step for event in EventAccumulator(str(run)).Reload().Scalars("accuracy")] == steps
    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name("choral")
    assert experiment is not None
    [tracked] = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(tracked.info.run_id, "accuracy")] == steps
    [model] = (tmp_path / "mlruns").glob("*/*/artifacts/model/model.safetensors")
    assert model.read_bytes() == Path("simulated/model.safetensors").read_bytes()


def test_simulate_of_one_client_says_so(choral: Choral, spec: str) -> None:
    Path(spec).write_text(json.dumps(SPEC | {"cohort": {"size": 1}, "rounds": 1}))
    assert choral("simulate", spec, "--clients", "1").lines[0].startswith("round 1: 1 client, ")
