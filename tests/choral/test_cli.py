"""The command line: help with an example everywhere, errors of one sentence, and output that fits into 80 columns."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import typer.main

from choral import cli
from models import MODELS
from tests.choral.command_line import WIDTH, Choral, sentence
from tests.federation import finished
from wire.errors import SpecError
from wire.spec import RunSpec

ROOT = Path(__file__).parents[2]
GOOD = """\
name: digits-mlp
seed: 7
learner: {name: mlp, inputs: [1, 8, 8]}
rounds: 12
cohort: {size: 2, wait_seconds: 60}
evaluate: {every: 1}
"""


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every command and group."""
    yield path
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))


COMMANDS = list(commands(typer.main.get_command(cli.app)))


@pytest.fixture
def spoilt() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Add a command `spoilt` with the given body."""
    commands = cli.app.registered_commands[:]

    def add(body: Callable[[], None]) -> None:
        cli.app.command("spoilt")(body)

    yield add
    cli.app.registered_commands[:] = commands


# Help.


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(("choral", *path)))
def test_help_shows_an_example_that_calls_this_command(choral: Choral, path: tuple[str, ...]) -> None:
    outcome = choral(*path, "--help")
    assert outcome.code == 0
    text = " ".join(outcome.out.replace("│", " ").split())
    assert f"Example: {' '.join(('choral', *path))}" in text
    assert max(len(line) for line in outcome.lines) <= WIDTH


def test_commands_are_those_that_are_documented() -> None:
    names = {" ".join(path) for path in COMMANDS if path}
    assert names >= {"demo", "serve", "join", "submit", "clients", "models", "partition", "spec check", "spec schema"}
    assert names >= {f"runs {name}" for name in ("list", "show", "rounds", "watch", "pause", "resume", "stop", "model")}


def test_version_is_printed(choral: Choral) -> None:
    outcome = choral("--version")
    assert (outcome.code, outcome.out) == (0, "choral 0.1.0\n")


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ("runs", "list", "--url", "http://127.0.0.1:1"),
            "Coordinator http://127.0.0.1:1: must be reachable, got: [Errno 111] Connection refused. "
            "Is `choral serve` running there?",
            id="nobody-there",
        ),
        pytest.param(
            ("runs", "list", "--url", "http://[nonsense"),
            "Coordinator http://[nonsense: must be reachable, got: ",
            id="url",
        ),
        pytest.param(
            ("runs", "list", "--url", "127.0.0.1:1"),
            "Coordinator: address must begin with http:// or https://, got '127.0.0.1:1'.",
            id="scheme",
        ),
        pytest.param(
            ("runs", "list", "--url", "localhost:8080"),
            "Coordinator: address must begin with http:// or https://, got 'localhost:8080'.",
            id="host-for-scheme",
        ),
        pytest.param(
            ("runs", "list", "--token", "geheim\nü"),
            "Token: must be printable ASCII characters in one line, got others.",
            id="token",
        ),
        pytest.param(
            ("serve", "--listen", "0.0.0.0:7070"),
            "gRPC address: must be on loopback without TLS, got 0.0.0.0:7070.",
            id="serve",
        ),
        pytest.param(
            ("serve", "--tls-cert", "x.pem"), "TLS: --tls-cert and --tls-key must be given together", id="half-tls"
        ),
        pytest.param(
            ("api", "--store", "choral.sqlite"),
            "Store 'choral.sqlite': must be redis://, rediss:// or unix:// for choral api, got another.",
            id="api-beside-sqlite",
        ),
        pytest.param(
            ("join", "127.0.0.1:1", "--data", "shapes"),
            "Data source 'shapes': kind must be one of digits, ",
            id="join-data",
        ),
        pytest.param(
            ("join", "10.0.0.1:1", "--data", "digits"),
            "Coordinator address: must be on loopback without TLS",
            id="join",
        ),
        pytest.param(
            ("spec", "check", "none.yaml"),
            "none.yaml: must be a readable UTF-8 file: [Errno 2] No such file",
            id="no-file",
        ),
        pytest.param(("submit", "none.yaml"), "none.yaml: must be a readable UTF-8 file: ", id="submit-no-file"),
    ],
)
def test_error_is_one_sentence(
    choral: Choral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sentence(choral(*arguments)).startswith(message)


def test_error_with_debug_shows_the_traceback(tmp_path: Path) -> None:
    code, output = finished(["-m", "choral", "--debug", "spec", "check", "none.yaml"], tmp_path / "log")
    assert code == 1
    assert "Traceback" in output
    assert "SpecError: none.yaml: must be a readable UTF-8 file" in output


def test_error_keeps_brackets_that_look_like_markup(choral: Choral) -> None:
    assert "kind must be one of" in sentence(choral("join", "127.0.0.1:1", "--data", "[red]x[/red]"))
    assert "[red]x[/red]" in sentence(choral("join", "127.0.0.1:1", "--data", "[red]x[/red]"))


def fill_disk() -> None:
    Path("/dev/full").write_text("x")


def ask_for_too_much_memory() -> None:
    torch.empty(1 << 60)


def fail_without_a_word() -> None:
    raise MemoryError


def fail_in_a_group() -> None:
    raise ExceptionGroup(
        "unhandled errors in a TaskGroup", [ExceptionGroup("again", [SpecError("Spec: must be sound.")])]
    )


def import_nothing() -> None:
    importlib.import_module("no_such_package.part")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(fill_disk, "Unexpected OSError: [Errno 28] No space left on device. Run again", id="full-disk"),
        pytest.param(ask_for_too_much_memory, "Unexpected RuntimeError: ", id="torch-memory"),
        pytest.param(fail_without_a_word, "Unexpected MemoryError. Run again", id="no-message"),
        pytest.param(
            import_nothing, "Unexpected ModuleNotFoundError: No module named 'no_such_package'. Run again", id="module"
        ),
    ],
)
def test_unexpected_error_is_one_sentence_and_a_traceback_with_debug(
    choral: Choral, spoilt: Callable[[Callable[[], None]], None], body: Callable[[], None], message: str
) -> None:
    spoilt(body)
    found = sentence(choral("spoilt"))
    assert found.startswith(message)
    assert found.endswith(". Run again with choral --debug for the traceback.")
    with pytest.raises((OSError, RuntimeError, MemoryError, ModuleNotFoundError)):
        choral("--debug", "spoilt")


def test_error_within_a_group_is_explained_by_itself(
    choral: Choral, spoilt: Callable[[Callable[[], None]], None]
) -> None:
    spoilt(fail_in_a_group)
    assert sentence(choral("spoilt")) == "Spec: must be sound."


def test_usage_error_is_told_apart(choral: Choral) -> None:
    outcome = choral("runs", "show")
    assert outcome.code == 2
    assert "Missing argument" in outcome.err


# Specs.


def test_spec_check_good_spec_says_what_it_is(choral: Choral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(GOOD)
    outcome = choral("spec", "check", "run.yaml")
    assert (outcome.code, outcome.err) == (0, "")
    assert " ".join(outcome.out.split()) == (
        "run.yaml: sound. digits-mlp: learner mlp, up to 12 rounds, cohort 2, quorum 2."
    )


def test_spec_check_reads_how_simulated_clients_behave(choral: Choral, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"{GOOD}simulation: {{bytes_per_second: {{name: exponential, mean: 1e6}}, trace: none.csv}}\n")
    outcome = choral("spec", "check", str(path))
    assert (outcome.code, outcome.err) == (0, "")


def test_spec_check_names_each_problem_on_a_line(choral: Choral, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD.replace("rounds: 12", "rounds: none") + "colour: red\nseeds: 3\n")
    outcome = choral("spec", "check", str(path))
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.splitlines() == [
        f"Error: {path}: rounds must be a valid integer, got 'none'.",
        f"{path}: colour is not a key that exists here.",
        f"{path}: seeds is not a key that exists here.",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("mlp", "mpl"), f"Learner: name must be one of {', '.join(sorted(MODELS))}, got 'mpl'."),
        (("[1, 8, 8]", "[0]"), "Learner mlp: inputs.0 must be greater than or equal to 1, got 0."),
        (
            ("evaluate:", "server: {optimizer: {name: lbfgs, max_iter: 5}}\nevaluate:"),
            "Run spec: server.optimizer: Optimizer lbfgs: ",
        ),
        (
            ("rounds: 12", "rounds: 12\nsimulation: {dropout: 2}"),
            "run.yaml: simulation.dropout must be less than or equal to 1, got 2.",
        ),
        (("rounds: 12", "rounds: 12\nrounds: 13"), "run.yaml: "),
        (("rounds: 12", "rounds: [12"), "run.yaml: "),
    ],
)
def test_spec_check_bad_spec_is_refused(
    choral: Choral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(GOOD.replace(*change))
    assert sentence(choral("spec", "check", "run.yaml")).startswith(message)


def test_spec_schema_is_a_json_schema_that_knows_every_key(choral: Choral) -> None:
    schema = json.loads(choral("spec", "schema").out)
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert schema["properties"].keys() == RunSpec.model_fields.keys()
    assert set(schema["required"]) == {"name", "learner", "rounds", "cohort"}
    for reference in _references(schema):
        assert reference.startswith("#/$defs/")
        assert reference.removeprefix("#/$defs/") in schema["$defs"]
    for definition in schema["$defs"].values():
        assert definition["description"]


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"]
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from _references(part)


INTERRUPTED_IMPORT = """
import runpy, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "torch":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
runpy.run_module("choral", run_name="__main__")
"""


def test_ctrl_c_while_the_command_line_is_imported_ends_without_a_traceback() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")
