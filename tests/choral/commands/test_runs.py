"""Submitting, watching and steering runs against a real coordinator; what is printed fits into 80 columns and is not cut."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from safetensors.torch import load_file

from choral.commands.runs import rounds_table
from models import MODELS
from server.records import RefusalRecord, RunState
from tests.choral.command_line import WIDTH, Choral, Outcome, sentence
from tests.federation import Federation, wait_until
from tests.hostile import joined
from tests.loopback import everyone, serving, small_spec
from tests.server.rest import new_token
from tests.server.store.samples import make_round, make_run

ODD_NAME = "[/red]north"

SPEC: dict[str, Any] = {
    "name": "digits-mlp",
    "learner": {"name": "mlp", "inputs": [1, 8, 8]},
    "rounds": 2,
    "cohort": {"size": 1, "wait_seconds": 60},
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A coordinator and one client."""
    with Federation(tmp_path_factory.mktemp("federation")) as federation:
        federation.start_coordinator()
        federation.start_client("site-0", "digits,blocks=0", "--name", ODD_NAME)
        federation.wait_for_clients(1)
        yield federation


@pytest.fixture(autouse=True)
def url(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORAL_URL", f"http://{federation.http_address}")


@pytest.fixture(scope="module")
def finished(federation: Federation) -> str:
    """A run of two rounds that has ended."""
    return str(federation.wait_for_end(federation.submit(SPEC))["run_id"])


@pytest.fixture
def waiting(federation: Federation) -> Iterator[str]:
    """A run that waits for a second client."""
    run_id = federation.submit({**SPEC, "name": "waits", "cohort": {"size": 2, "wait_seconds": 600}})
    wait_until(lambda: "waiting" in federation.run(run_id)["status"], "the run to wait")
    yield run_id
    if federation.run(run_id)["state"] in ("queued", "running", "paused"):
        federation.rest.post(f"/runs/{run_id}/stop")


def shown(outcome: Outcome) -> str:
    """Check that a command succeeded within 80 columns and cut nothing, and return its words on one line."""
    assert (outcome.code, outcome.err) == (0, "")
    assert max(map(len, outcome.lines), default=0) <= WIDTH
    assert "…" not in outcome.out
    return " ".join(outcome.out.split())


def test_submit_and_watch_follow_a_run_to_its_end(choral: Choral, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(SPEC))
    outcome = choral("submit", str(path), "--watch")
    text = shown(outcome)
    found = re.search(r"Run (\w{12}) \(digits-mlp\): queued: about to start Watch it with: choral runs watch \1", text)
    assert found
    for number in (1, 2):
        assert re.search(rf"round {number}: 1 clients, accuracy 0\.\d+, loss \d\.\d+, train_loss \d\.\d+", text)
    assert outcome.lines[-1] == f"Run {found[1]}: finished"
    again = choral("runs", "watch", found[1])
    assert again.lines[-1] == f"Run {found[1]}: finished"


def test_submit_bad_spec_asks_no_coordinator(choral: Choral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORAL_URL", "http://127.0.0.1:1")
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({**SPEC, "learner": {"name": "mpl"}}))
    known = ", ".join(sorted(MODELS))
    assert sentence(choral("submit", str(path))) == f"Learner: name must be one of {known}, got 'mpl'."


def test_list_shows_runs_with_what_they_do(choral: Choral, finished: str, waiting: str) -> None:
    outcome = choral("runs", "list")
    text = shown(outcome)
    assert outcome.lines[0].split() == ["run", "name", "rounds", "submitted", "status"]
    assert re.search(rf"{finished} digits-mlp 2/2 \d\d-\d\d \d\d:\d\d finished", text)
    row = next(line for line in outcome.lines if waiting in line)
    assert row.split()[1:3] == ["waits", "0/2"]
    # The status has a column of its own, over as many lines as it takes.
    column = outcome.lines[0].index("status")
    start = outcome.lines.index(row)
    status = " ".join(line[column:].strip() for line in outcome.lines[start : start + 3])
    assert re.match(r"round 1: select: waiting for 1 of 2 clients, (600|5\d\d) s left", status)


def test_show_says_in_full_what_a_run_waits_for(choral: Choral, waiting: str) -> None:
    outcome = choral("runs", "show", waiting[:8])
    assert f"waits ({waiting}): running" in shown(outcome)
    assert any(
        re.fullmatch(r"Now: round 1: select: waiting for 1 of 2 clients, (600|5\d\d) s left", line)
        for line in outcome.lines
    )
    assert "0 of 2 rounds committed; model none yet" in shown(outcome)


async def test_show_says_how_many_updates_a_round_waits_for(choral: Choral, tmp_path: Path) -> None:
    async with serving(tmp_path) as coordinator, everyone([joined(coordinator.address) for _ in range(3)]) as sessions:
        run = await coordinator.runs.submit(small_spec())
        for session in sessions:
            await session.task()
        arguments = ["runs", "show", run.run_id[:6], "--url", f"http://{coordinator.http_address}"]
        outcome = await asyncio.to_thread(choral, *arguments)
        assert re.search(r"Now: round 1: train: waiting for 3 of 3 updates, \d+ s left", outcome.out)


def test_show_has_the_last_rounds(choral: Choral, federation: Federation, finished: str) -> None:
    outcome = choral("runs", "show", finished)
    text = shown(outcome)
    assert f"digits-mlp ({finished}): finished" in text
    assert f"2 of 2 rounds committed; model {federation.run(finished)['model_sha256'][:16]}" in text
    assert re.search(r"1 1/1 0 \d+\.\d% \d\.\d+ \d\.\d+ 0\.02 MB \d+\.\d", text)


def test_rounds_has_every_round_and_as_json_everything(choral: Choral, federation: Federation, finished: str) -> None:
    outcome = choral("runs", "rounds", finished)
    headings = "round clients refused accuracy loss train loss received seconds"
    assert " ".join(outcome.lines[0].split()) == headings
    assert [line.split()[0] for line in outcome.lines[2:]] == ["1", "2"]
    shown(outcome)
    assert json.loads(choral("runs", "rounds", finished, "--json").out) == federation.rounds(finished)


async def test_rounds_names_who_was_refused_and_who_did_not_evaluate(choral: Choral, tmp_path: Path) -> None:
    record = make_round(1).with_(
        evaluation_failures=[RefusalRecord(client_id="ana", reason="client_error", detail="the disk is gone")]
    )
    async with serving(tmp_path) as coordinator:
        await coordinator.store.put_run(make_run(round_number=1).with_(state=RunState.PAUSED))
        await coordinator.store.put_round(record)
        arguments = ["runs", "rounds", "run-1", "--url", f"http://{coordinator.http_address}"]
        outcome = await asyncio.to_thread(choral, *arguments)
    assert outcome.lines[-2:] == [
        "round 1: ben refused, not finite: coordinate 3",
        "round 1: ana not evaluated, client error: the disk is gone",
    ]


def test_rounds_table_of_a_large_run_fits_and_marks_the_open_round() -> None:
    part = {"byte_count": 400_000_000}
    record = {
        "number": 1199,
        "state": "committed",
        "selected": ["a"] * 1000,
        "contributions": [part] * 1000,
        "refusals": [{}] * 100,
        "metrics": {"accuracy": 1.0, "loss": 1.234567e-5, "train_loss": 1234567.0},
        "started_time": 0.0,
        "ended_time": 86400.0,
    }
    opened = {**record, "number": 1200, "state": "open", "contributions": [], "metrics": {}}
    console = Console(width=WIDTH)
    with console.capture() as capture:
        console.print(rounds_table([record, opened]))
    lines = [line.split() for line in capture.get().splitlines()]
    assert lines[2] == ["1199", "1000/1000", "100", "100.0%", "0.0000", "1.23e+06", "400", "GB", "86400"]
    assert lines[3][:4] == ["1200", "open", "0/1000", "100"]


def test_clients_are_listed_with_odd_names_as_they_are(choral: Choral, federation: Federation) -> None:
    outcome = choral("clients")
    assert f"{federation.client_id('site-0')[:8]} {ODD_NAME} cpu digits 104 26 idle" in shown(outcome)


def test_model_is_downloaded(choral: Choral, federation: Federation, finished: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    outcome = choral("runs", "model", finished[:10], "-o", str(path))
    assert outcome.code == 0
    assert outcome.out == f"{path}: the model after round 2\n"
    assert {name: tuple(tensor.shape) for name, tensor in load_file(path).items()} == {
        "1.weight": (64, 64),
        "1.bias": (64,),
        "3.weight": (10, 64),
        "3.bias": (10,),
    }


def test_card_is_printed_or_written(choral: Choral, finished: str, waiting: str, tmp_path: Path) -> None:
    outcome = choral("runs", "card", finished[:10])
    assert outcome.code == 0
    card = json.loads(outcome.out)
    assert (card["run_id"], card["rounds"], card["name"]) == (finished, 2, "digits-mlp")
    assert [(site["name"], site["rounds"]) for site in card["sites"]] == [(ODD_NAME, 2)]
    path = tmp_path / "card.json"
    assert choral("runs", "card", finished, "-o", str(path)).out == f"{path}: the card of the model\n"
    assert json.loads(path.read_text(encoding="utf-8")) == card
    outcome = choral("runs", "card", waiting)
    assert outcome.code == 1
    message = f"Error: Run {waiting}: at least one round must be committed before its model has a card, got none."
    assert message in outcome.err.splitlines()
    outcome = choral("runs", "card", finished, "-o", str(tmp_path))
    assert f"Error: File {tmp_path}: must be writable, got: Is a directory." in outcome.err.splitlines()


def test_model_that_cannot_be_had_or_written_is_one_sentence(
    choral: Choral, finished: str, waiting: str, tmp_path: Path
) -> None:
    outcome = choral("runs", "model", waiting, "-o", str(tmp_path / "x"))
    assert outcome.code == 1
    message = f"Error: Run {waiting}: at least one round must be committed before it has a model, got none."
    assert message in outcome.err.splitlines()
    assert not (tmp_path / "x").exists()
    outcome = choral("runs", "model", finished, "-o", str(tmp_path))
    assert outcome.code == 1
    assert f"Error: File {tmp_path}: must be writable, got: Is a directory." in outcome.err.splitlines()


def test_run_is_paused_resumed_and_stopped(choral: Choral, federation: Federation, waiting: str) -> None:
    paused = choral("runs", "pause", waiting[:8])
    assert paused.lines == [f"Run {waiting} (waits): paused: Paused by the operator."]
    assert federation.run(waiting)["state"] == "paused"
    assert "Now: paused: Paused by the operator." in choral("runs", "show", waiting).lines
    resumed = choral("runs", "resume", waiting)
    assert resumed.lines == [f"Run {waiting} (waits): queued: about to start"]
    wait_until(lambda: "waiting" in federation.run(waiting)["status"], "the run to wait again")
    stopped = choral("runs", "stop", waiting)
    assert stopped.lines == [f"Run {waiting} (waits): stopped: Stopped by the operator."]
    assert federation.run(waiting)["state"] == "stopped"


@pytest.mark.parametrize("command", ["pause", "resume", "stop"])
def test_refusal_is_the_sentence_of_the_rest_api(
    choral: Choral, federation: Federation, finished: str, command: str
) -> None:
    url = f"http://{federation.http_address}/api/v1/runs/{finished}/{command}"
    detail = httpx.post(url).json()["detail"]
    assert detail.endswith(", got finished.")
    assert sentence(choral("runs", command, finished)) == detail


def test_run_is_named_by_the_beginning_of_its_identity_if_it_is_the_only_one(
    choral: Choral, finished: str, waiting: str
) -> None:
    for command in ("show", "rounds", "pause", "stop", "model"):
        message = "Run 'zz': must be the beginning of one run's identity, got 0 that match. See: choral runs list"
        assert sentence(choral("runs", command, "zz")) == message
    assert sentence(choral("runs", "show", "")).startswith("Run '': must be the beginning of one run's identity, got ")


async def test_token_is_asked_for_and_sent(choral: Choral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as coordinator:
        token = await new_token(coordinator)
        monkeypatch.setenv("CHORAL_URL", f"http://{coordinator.http_address}")
        refused = await asyncio.to_thread(choral, "runs", "list")
        assert sentence(refused) == "A valid bearer token must be given, got none or another one."
        assert (await asyncio.to_thread(choral, "runs", "list", "--token", token)).code == 0
        # As it is read from a file with an end of line.
        monkeypatch.setenv("CHORAL_TOKEN", f"{token} \n")
        assert (await asyncio.to_thread(choral, "clients")).code == 0
