"""A whole simulation: what it leaves, how it goes on after a kill, and what it refuses."""

import asyncio
import csv
import functools
import gc
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import choral
from client.data import load, parse_source
from server.errors import QuorumError
from server.records import RoundRecord, RunState
from server.store import open_store
from simulation.engines import choose
from simulation.errors import SimulationError
from simulation.partition import local_data, partition
from simulation.resources import Resources
from simulation.serial import run_serially
from simulation.simulate import RESULTS
from tests.federation import finished, tensor_bytes
from wire import RELEASE
from wire.errors import SpecError
from wire.spec import validate_spec

SPEC: dict[str, Any] = {
    "name": "digits",
    "seed": 3,
    "learner": {"name": "mlp", "inputs": [1, 8, 8], "hidden": [16], "dropout": 0.1},
    "rounds": 4,
    "cohort": {"size": 5},
    "local": {"batch_size": 16},
    "server": {"optimizer": {"name": "adam", "learning_rate": 0.01}},
}
LARGE = {"name": "mlp", "hidden": [10_000]}
BATCH_NORM = {"name": "mlp", "batch_norm": True}
SETTING: dict[str, Any] = {"clients": 20, "partition": "dirichlet,alpha=0.5"}

BEHAVIOUR: dict[str, Any] = {
    "cohort": {"size": 5, "quorum": 1, "return_seconds": 5.0, "deadline_seconds": 100.0},
    "simulation": {
        "seconds_per_example": {"name": "lognormal", "median": 0.5, "sigma": 1.0},
        "dropout": 0.2,
        "presence": {"present_seconds": 40.0, "absent_seconds": 40.0},
    },
}

KILLED = """
import os, signal, sys
import choral
from simulation import ledger
from tests.simulation.test_simulate import BEHAVIOUR, SETTING, SPEC
put_round = ledger.Ledger.put_round
async def put_or_die(self, record, *events):
    if record.number == 3:
        os.kill(os.getpid(), signal.Signals[sys.argv[2]])
    await put_round(self, record, *events)
ledger.Ledger.put_round = put_or_die
ledger.COMMIT_SECONDS = float(sys.argv[4])
choral.simulate(SPEC, sys.argv[1], engine=sys.argv[3], **SETTING)
"""
LATE_CTRL_C = """
import signal, sys
import choral
from server.model import ModelShop
from simulation import ledger
from tests.simulation.test_simulate import SETTING, SPEC
next_model, made = ModelShop.next, []
def next_or_end(self, *arguments):
    made.append(arguments)
    if len(made) == 3:
        signal.raise_signal(signal.SIGINT)
    return next_model(self, *arguments)
ModelShop.next = next_or_end
ledger.COMMIT_SECONDS = 1e9
choral.simulate(SPEC, sys.argv[1], engine="serial", **SETTING)
"""
EARLY_CTRL_C = """
import signal, sys
import choral
from simulation import simulate
from tests.simulation.test_simulate import SETTING, SPEC
read, build = simulate._sites, simulate.build
def read_then_end(*arguments):
    signal.raise_signal(signal.SIGINT)
    return read(*arguments)
def build_and_tell(*arguments):
    print("built")
    return build(*arguments)
simulate._sites, simulate.build = read_then_end, build_and_tell
choral.simulate(SPEC, sys.argv[1], engine="serial", **SETTING)
"""
AT_ONCE, AT_THE_END = "0", "1e9"
"""Seconds between commits: round 2 is durable in round 3, or not."""

LIMIT_SECONDS = 200
"""Longest wait for a process, which takes a few seconds where it has a core to itself."""

Undisturbed = Callable[[str], Path]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Simulate without a disturbance, once on each engine that is asked for, and return the folder."""

    @functools.cache
    def simulate(engine: str) -> Path:
        folder = tmp_path_factory.mktemp(engine)
        choral.simulate(SPEC, folder, engine=engine, **SETTING)
        return folder

    return simulate


def test_simulate_is_the_serial_run_on_the_partition(tmp_path: Path) -> None:
    told: list[RoundRecord] = []
    result = choral.simulate(SPEC, tmp_path / "whole", told.append, engine="serial", **SETTING)
    assert result.run.state is RunState.FINISHED
    assert [record.number for record in result.rounds] == [1, 2, 3, 4]
    assert tuple(told) == result.rounds
    assert all({"accuracy", "loss", "train_loss"} <= record.metrics.keys() for record in result.rounds)

    spec, examples = validate_spec(SPEC), load(parse_source("digits"))
    sites = local_data(examples, partition(examples, "dirichlet,alpha=0.5", 20, 3))

    async def play() -> None:
        store = await open_store(str(tmp_path / "store.sqlite"))
        await run_serially(spec, sites, store, tmp_path / "serial")
        await store.close()

    asyncio.run(play())
    assert tensor_bytes(tmp_path / "whole" / "model.safetensors") == tensor_bytes(
        tmp_path / "serial" / "round-0000004.safetensors"
    )


def test_simulate_leaves_model_history_and_plot(tmp_path: Path) -> None:
    result = choral.simulate(SPEC, tmp_path, **SETTING)
    assert {path.name for path in tmp_path.iterdir()} >= set(RESULTS)
    assert sum(tensor.numel() for tensor in load_file(tmp_path / "model.safetensors").values()) >= 64 * 16
    with (tmp_path / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["round"]) for row in rows] == [1, 2, 3, 4]
    assert [int(row["clients"]) for row in rows] == [5] * 4
    assert [float(row["simulated_train_seconds"]) for row in rows] == [0.0] * 4
    assert float(rows[-1]["accuracy"]) == pytest.approx(result.rounds[-1].metrics["accuracy"], rel=1e-5)
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize(
    ("engine", "commit_seconds"),
    [("serial", AT_ONCE), ("serial", AT_THE_END), ("vectorized", AT_THE_END), ("processes", AT_ONCE)],
)
def test_simulate_that_was_cut_off_goes_on_to_the_undisturbed_model(
    tmp_path: Path, undisturbed: Undisturbed, engine: str, commit_seconds: str, number: signal.Signals
) -> None:
    setting = SETTING | {"engine": engine}
    arguments = ["-c", KILLED, str(tmp_path / "cut"), number.name, engine, commit_seconds]
    # What makes processes of its own has to be a program of its own.
    code, output = finished(arguments, tmp_path / "log", LIMIT_SECONDS, is_forked=engine != "processes")
    assert code == -number, output
    durable = 1 if number is signal.SIGKILL and commit_seconds == AT_THE_END else 2
    assert committed_rounds(tmp_path / "cut") == durable
    if number is signal.SIGINT:
        assert_results(tmp_path / "cut", 2)
    told: list[int] = []
    result = choral.simulate(SPEC, tmp_path / "cut", lambda record: told.append(record.number), **setting)
    assert told == [1, 2, 3, 4]
    assert [record.number for record in result.rounds] == told
    assert_same_model(tmp_path / "cut", undisturbed(engine))


@pytest.mark.parametrize(
    ("learner", "workers", "engine", "reason"),
    [
        pytest.param({"name": "mlp"}, 2, "vectorized", "with 4,810 parameters, many clients at a time", id="small"),
        pytest.param(LARGE, 2, "processes", "750,010 parameters, .+ there is room for 2 workers", id="large"),
        pytest.param(LARGE, 1, "serial", "with 750,010 parameters, a client keeps", id="large-on-one-core"),
        pytest.param(BATCH_NORM, 1, "serial", "keeps statistics of its batches", id="batch-norm"),
    ],
)
def test_choose_auto_says_why(learner: dict[str, Any], workers: int, engine: str, reason: str) -> None:
    chosen, why = choose("auto", validate_spec(SPEC | {"learner": learner}), Resources(device="cpu", workers=workers))
    assert chosen == engine
    assert re.search(reason, why)


def test_simulate_with_an_engine_that_cannot_train_the_learner_is_refused(tmp_path: Path) -> None:
    spec = SPEC | {"learner": SPEC["learner"] | {"batch_norm": True}}
    with pytest.raises(SpecError, match=r"the vectorized engine cannot train it: .+ Take processes or serial\."):
        choral.simulate(spec, tmp_path, engine="vectorized", **SETTING)


def test_simulate_twice_shows_the_same_result_without_a_new_round(tmp_path: Path) -> None:
    first = choral.simulate(SPEC, tmp_path, **SETTING)
    assert choral.simulate(SPEC, tmp_path, **SETTING).rounds == first.rounds
    assert first.run.code_version == RELEASE
    # However many rounds there are, it is shown in a line or two.
    assert len(first.rounds) == 4
    assert "RoundRecord(" not in repr(first)


def test_rounds_are_played_without_the_collector_looking_at_what_the_start_has_made(tmp_path: Path) -> None:
    counts: list[int] = []
    gc.unfreeze()
    choral.simulate(SPEC, tmp_path, lambda _: counts.append(gc.get_freeze_count()), **SETTING)
    # Torch alone has made more than that.
    assert len(counts) == 4
    assert min(counts) > 50_000
    assert gc.get_freeze_count() == 0


def test_simulate_stops_early(tmp_path: Path) -> None:
    spec = SPEC | {"rounds": 50, "stop_when": {"metric": "loss", "at_most": 100.0}}
    result = choral.simulate(spec, tmp_path, **SETTING, device="cpu")
    assert len(result.rounds) == 1
    assert result.run.reason.startswith("loss reached")
    assert (result.engine, result.engine_reason[:22]) == ("vectorized", "with 1,210 parameters,")


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        pytest.param(({"rounds": 5}, {}), "rounds must be that of the simulation that it holds, 4, got 5", id="spec"),
        pytest.param(({}, {"clients": 21}), "clients must be that .+, 20, got 21", id="setting"),
    ],
)
def test_simulate_in_the_folder_of_another_simulation_is_refused(
    tmp_path: Path, changed: tuple[dict[str, Any], dict[str, Any]], key: str
) -> None:
    choral.simulate(SPEC, tmp_path, **SETTING)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(SimulationError, match=rf"^Folder .+: {key}\. Give the same, choose another folder"):
        choral.simulate(SPEC | changed[0], tmp_path, **SETTING | changed[1])
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("text", [None, "", "garbage", "[]", '{"spec": 1}', "\0"])
def test_simulate_in_a_folder_that_does_not_say_whose_it_is_is_refused(tmp_path: Path, text: str | None) -> None:
    choral.simulate(SPEC, tmp_path, **SETTING)
    note = tmp_path / "simulation.json"
    note.unlink()
    if text is not None:
        note.write_text(text)
    with pytest.raises(
        SimulationError, match=r"^File .+simulation\.json: must say which simulation the folder holds, got "
    ):
        choral.simulate(SPEC, tmp_path, **SETTING)
    assert (note.read_text() if note.exists() else None) == text


def test_simulate_that_could_not_start_leaves_the_folder_to_another(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cohort\.size must be at most the number of sites, 4, got 5"):
        choral.simulate(SPEC, tmp_path, clients=4)
    assert len(choral.simulate(SPEC, tmp_path, **SETTING).rounds) == 4


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        pytest.param({"clients": 0}, "clients .+greater than or equal to 1, got 0", id="no-clients"),
        pytest.param({"partitoin": "iid"}, "partitoin is not a key that exists here", id="unknown"),
        pytest.param({"clients": 20, "held_out": 1.0}, "held_out .+less than 1, got 1.0", id="nothing-to-train-on"),
    ],
)
def test_simulate_setting_that_breaks_a_rule_is_refused(tmp_path: Path, setting: dict[str, Any], rule: str) -> None:
    with pytest.raises(SimulationError, match=rule):
        choral.simulate(SPEC, tmp_path / "new", **setting)
    assert not (tmp_path / "new").exists()


def test_simulate_with_another_trace_than_the_folders_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("seconds_per_example\n0.5\n")
    spec = SPEC | {"rounds": 2, "simulation": {"trace": str(trace)}}
    first = choral.simulate(spec, tmp_path / "out", **SETTING)
    assert all(record.phase_seconds["train"] > 0 for record in first.rounds)
    assert choral.simulate(spec, tmp_path / "out", **SETTING).rounds == first.rounds
    trace.write_text("seconds_per_example\n0.6\n")
    with pytest.raises(SimulationError, match=r"trace_sha256 must be that of the simulation that it holds"):
        choral.simulate(spec, tmp_path / "out", **SETTING)


@pytest.mark.parametrize("key", ["data", "own_data"])
def test_simulate_with_other_data_than_the_folders_is_refused(tmp_path: Path, key: str) -> None:
    digits, path = load(parse_source("digits")), tmp_path / "digits.npz"
    np.savez(path, x=digits.inputs, y=digits.targets)
    spec = SPEC | {"rounds": 1, "evaluate": {"on": "coordinator"}}
    setting = SETTING | {"own_data": "digits", key: f"npz:{path}"}
    first = choral.simulate(spec, tmp_path / "out", **setting)
    assert choral.simulate(spec, tmp_path / "out", **setting).rounds == first.rounds
    digits.inputs[7, 0, 3, 3] += 1
    np.savez(path, x=digits.inputs, y=digits.targets)
    with pytest.raises(
        SimulationError, match=rf"{key}_sha256 must be that of the simulation that it holds, .+ data back"
    ):
        choral.simulate(spec, tmp_path / "out", **setting)


def deserted(trace: Path) -> dict[str, Any]:
    """Write a trace, and return a spec of clients of whom all are there for the first two rounds, of about 40 s each; then two are left."""
    rows = [f"client-{number:04},0.5,0,{999_999 if number < 2 else 100}" for number in range(20)]
    trace.write_text("\n".join(["client,seconds_per_example,from_seconds,until_seconds", *rows]))
    cohort = {"size": 5, "quorum": 3, "deadline_seconds": 60.0, "wait_seconds": 5.0, "return_seconds": 1.0}
    return SPEC | {"cohort": cohort, "simulation": {"trace": str(trace)}}


def test_round_without_its_quorum_leaves_the_results_of_the_rounds_before(tmp_path: Path) -> None:
    with pytest.raises(
        QuorumError, match=r"^Round 3: at least 3 clients must be present within 5 s, got .\. In the spec, raise"
    ):
        choral.simulate(deserted(tmp_path / "trace.csv"), tmp_path / "out", clients=20)
    assert_results(tmp_path / "out", committed_rounds(tmp_path / "out"))


def assert_results(folder: Path, count: int) -> None:
    assert count > 0
    assert (folder / "history.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "history.csv").open(newline="") as file:
        assert [int(row["round"]) for row in csv.DictReader(file)] == list(range(1, count + 1))
    newest = folder / "checkpoints" / f"round-{count:07}.safetensors"
    assert (folder / "model.safetensors").read_bytes() == newest.read_bytes()


def assert_same_model(one: Path, other: Path) -> None:
    assert tensor_bytes(one / "model.safetensors") == tensor_bytes(other / "model.safetensors")


def test_ctrl_c_between_a_rounds_sum_and_its_commit_leaves_the_round_before_it(
    tmp_path: Path, undisturbed: Undisturbed
) -> None:
    code, output = finished(["-c", LATE_CTRL_C, str(tmp_path / "cut")], tmp_path / "log", LIMIT_SECONDS)
    assert code == -signal.SIGINT, output
    assert committed_rounds(tmp_path / "cut") == 2
    choral.simulate(SPEC, tmp_path / "cut", engine="serial", **SETTING)
    assert_same_model(tmp_path / "cut", undisturbed("serial"))


def test_ctrl_c_while_the_data_is_read_ends_before_anything_is_built(tmp_path: Path) -> None:
    code, output = finished(["-c", EARLY_CTRL_C, str(tmp_path / "out")], tmp_path / "log", LIMIT_SECONDS)
    assert code == -signal.SIGINT, output
    assert "built" not in output.splitlines()


def committed_rounds(folder: Path) -> int:
    async def read() -> int:
        store = await open_store(str(folder / "simulation.sqlite"))
        (run,) = await store.runs()
        await store.close()
        return run.round_number

    return asyncio.run(read())


class CutError(Exception):
    """Ends a simulation in the middle, as an error of a user's does."""


@pytest.mark.parametrize("seed", [3, 21])
def test_simulate_with_behaviour_that_is_cut_after_every_round_ends_with_the_undisturbed_model(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulation.ledger.COMMIT_SECONDS", float(AT_ONCE))
    spec = SPEC | BEHAVIOUR | {"seed": seed}
    spec["simulation"] = spec["simulation"] | {"presence": {"present_seconds": 8.0, "absent_seconds": 12.0}}
    spec["cohort"] = spec["cohort"] | {"return_seconds": 20.0, "over_selection": 1.2}
    setting = SETTING | {"engine": "serial", "clients": 12}
    undisturbed = choral.simulate(spec, tmp_path / "undisturbed", **setting)
    told: set[int] = set()

    def cut(record: RoundRecord) -> None:
        if record.number not in told:
            told.add(record.number)
            raise CutError

    for _ in undisturbed.rounds:
        with pytest.raises(CutError):
            choral.simulate(spec, tmp_path / "cut", cut, **setting)
    result = choral.simulate(spec, tmp_path / "cut", cut, **setting)
    assert [record.selected for record in result.rounds] == [record.selected for record in undisturbed.rounds]
    assert result.run.model_sha256 == undisturbed.run.model_sha256


def test_simulate_with_behaviour_goes_on_at_the_moment_at_which_it_was_cut_off(tmp_path: Path) -> None:
    # Presence is a matter of the time of day: on a clock that started again, other clients would be there.
    setting = SETTING | {"engine": "serial"}
    undisturbed = choral.simulate(SPEC | BEHAVIOUR, tmp_path / "undisturbed", **setting)
    program = KILLED.replace("(SPEC,", "(SPEC | BEHAVIOUR,")
    arguments = ["-c", program, str(tmp_path / "cut"), "SIGKILL", "serial", AT_ONCE]
    code, output = finished(arguments, tmp_path / "log", LIMIT_SECONDS)
    assert code == -signal.SIGKILL, output
    result = choral.simulate(SPEC | BEHAVIOUR, tmp_path / "cut", **setting)
    assert [record.selected for record in result.rounds] == [record.selected for record in undisturbed.rounds]
    assert result.run.model_sha256 == undisturbed.run.model_sha256
    with (tmp_path / "cut" / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    phases = [sum(float(row[f"simulated_{name}_seconds"]) for name in ("select", "train", "evaluate")) for row in rows]
    assert phases == pytest.approx([float(row["simulated_seconds"]) for row in rows], abs=0.01)
    assert phases[0] > 0
    for own, other in zip(result.rounds, undisturbed.rounds, strict=True):
        assert own.phase_seconds == pytest.approx(other.phase_seconds, rel=1e-6)


async def test_simulate_works_where_an_event_loop_runs_as_in_a_notebook(tmp_path: Path) -> None:
    assert len(choral.simulate(SPEC, tmp_path, **SETTING).rounds) == 4
