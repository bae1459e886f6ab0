"""JSON log lines: those of a real federation of processes, each one object with what it is about."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from choral.logs import json_handler
from choral.rest import Rest
from server.web import TLS
from tests.client.certificates import Authority
from tests.federation import HERE, Federation, Process, finished, wait_until
from tests.loopback import serving
from wire.logs import about

JSON = ("--log-format", "json")
FIELDS = {"time", "level", "logger", "message", "run_id", "round", "client_id", "exception"}
SPEC: dict[str, Any] = {
    "name": "logged",
    "seed": 3,
    "learner": {"name": "mlp", "inputs": [1, 8, 8], "hidden": [8]},
    "rounds": 2,
    "cohort": {"size": 2, "quorum": 1, "return_seconds": 0.1},
    "local": {"batch_size": 32},
}

Line = dict[str, Any]


def lines_of(text: str) -> list[Line]:
    """Parse log lines, each of which must be one object with the fields that are documented."""
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines
    for line in lines:
        assert line.keys() <= FIELDS
        assert FIELDS - line.keys() <= {"run_id", "round", "client_id", "exception"}
        moment = datetime.fromisoformat(line["time"])
        assert moment.utcoffset() == timedelta(0)
        assert timedelta(0) <= datetime.now(UTC) - moment < timedelta(minutes=10)
    return lines


def one(lines: list[Line], text: str) -> Line:
    found = [line for line in lines if text in line["message"]]
    assert len(found) == 1, f"{len(found)} lines have {text!r}"
    return found[0]


def test_every_line_of_a_federation_is_an_object_with_what_it_is_about(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("minimum_cohort: 3\n", encoding="utf-8")
    with Federation(tmp_path, *JSON) as federation:
        coordinator = federation.start_coordinator()
        willing = federation.start_client("ana", "digits,blocks=0", *JSON)
        unwilling = federation.start_client("ben", "digits,blocks=1", "--policy", str(policy), *JSON)
        federation.wait_for_clients(2)
        command = ["-m", "choral", "token", "create", "me", "--role", "operator"]
        command += ["--folder", str(federation.coordinator_folder)]
        code, output = finished(command, tmp_path / "token.log")
        assert code == 0, output
        secret = output.splitlines()[-1]
        federation.rest.close()
        federation.rest = Rest(f"http://{federation.http_address}", token=secret)
        run_id = federation.submit(SPEC)
        federation.wait_for_end(run_id)
        unwilling.kill()
        wait_until(lambda: '"message": "client ' in coordinator.output and ": left, " in coordinator.output, "a leave")
        wait_until(lambda: willing.output.count(": delivered, ") == 2, "both deliveries to be told")
        ids = {name: federation.client_id(name) for name in ("ana", "ben")}
        assert willing.end() == 0
        assert coordinator.end() == 0
    of_coordinator, of_ana, of_ben = (lines_of(process.output) for process in (coordinator, willing, unwilling))
    assert secret not in coordinator.output
    for name in ("ana", "ben"):
        line = one(of_coordinator, f"({name}): joined with")
        assert (line["level"], line["logger"], line["client_id"]) == ("INFO", "server.clients.sessions", ids[name])
        assert "run_id" not in line
    started = one(of_coordinator, "started after round 0")
    assert (started["run_id"], "round" in started, "client_id" in started) == (run_id, False, False)
    committed = [line for line in of_coordinator if f"run {run_id} (logged): round " in line["message"]]
    assert [(line["run_id"], line["round"], line["level"]) for line in committed] == [
        (run_id, number, "INFO") for number in (1, 2)
    ]
    assert " committed with 1 of 2 contributions in " in committed[0]["message"]
    assert one(of_coordinator, f"run {run_id} (logged): finished")["message"].endswith("finished.")
    declined = [line for line in of_coordinator if ": did not deliver: " in line["message"]]
    assert {(line["run_id"], line["client_id"], line["level"]) for line in declined} == {
        (run_id, ids["ben"], "WARNING")
    }
    assert declined[0]["round"] == 1
    delivered = [line for line in of_ana if ": delivered, " in line["message"]]
    assert [(line["run_id"], line["round"], line["client_id"]) for line in delivered] == [
        (run_id, number, ids["ana"]) for number in (1, 2)
    ]
    refused = [line for line in of_ben if ": refused. " in line["message"]]
    assert {(line["run_id"], line["client_id"], line["level"]) for line in refused} == {(run_id, ids["ben"], "WARNING")}


def test_error_that_ends_a_command_is_a_line_too(tmp_path: Path) -> None:
    command = ["-m", "choral", "serve", "--listen", "nonsense", "--folder", str(tmp_path / "c"), *JSON]
    code, output = finished(command, tmp_path / "log")
    assert code == 1
    line = lines_of(output)[-1]
    assert line["level"] == "ERROR"
    assert line["message"].startswith("gRPC address: must be ")


async def test_handshake_that_fails_is_no_line_but_ours(tmp_path: Path) -> None:
    right, wrong = Authority(tmp_path / "right", "right"), Authority(tmp_path / "wrong", "wrong")
    async with serving(tmp_path / "c", tls=TLS(*right.sign_server())) as coordinator:
        command = [sys.executable, "-m", "choral", "join", coordinator.address, "--data", "digits,blocks=0", *JSON]
        command += ["--folder", str(tmp_path / "s"), "--tls-ca", str(wrong.path)]
        client = Process(command, tmp_path / "client.log")
        try:
            await asyncio.to_thread(wait_until, lambda: client.output.count("cannot reach") > 1, "two tries")
        finally:
            client.end()
    assert "CERTIFICATE_VERIFY_FAILED" in lines_of(client.output)[-1]["message"]


@pytest.fixture
def written() -> Iterator[StringIO]:
    """What the logger `tests` has written as JSON."""
    handler, log = json_handler(), logging.getLogger("tests")
    handler.setStream(stream := StringIO())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield stream
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


def test_exception_is_a_field_and_text_of_others_stays_in_its_line(written: StringIO) -> None:
    try:
        raise ValueError('two\nlines and "quotes"')
    except ValueError as error:
        logging.getLogger("tests").exception("client %s: failed, %s", "Zoë", error)
    [line] = lines_of(written.getvalue())
    assert line["message"] == 'client Zoë: failed, two\nlines and "quotes"'
    assert line["exception"].startswith("Traceback (most recent call last):")


def test_inner_subject_adds_to_the_outer_and_ends_with_it(written: StringIO) -> None:
    log = logging.getLogger("tests")
    with about(run_id="r", client_id="a"):
        with about(round_number=7, client_id="b"):
            log.info("inner")
        log.info("outer")
    log.info("none")
    inner, outer, none = lines_of(written.getvalue())
    assert (inner["run_id"], inner["round"], inner["client_id"]) == ("r", 7, "b")
    assert (outer["run_id"], outer["client_id"], "round" in outer) == ("r", "a", False)
    assert not {"run_id", "round", "client_id"} & none.keys()


def test_what_python_warns_of_is_a_line() -> None:
    program = "import warnings; from choral.logs import *; log_as(LogFormat.JSON); warnings.warn('this is old')"
    ended = subprocess.run([sys.executable, "-c", program], cwd=HERE.parent, check=True, capture_output=True, text=True)
    [line] = lines_of(ended.stderr)
    assert line["logger"] == "py.warnings"
    assert "this is old" in line["message"]
