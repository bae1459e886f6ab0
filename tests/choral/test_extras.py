"""Each side of a federation works with its own extra alone, and a package that is missing is one sentence."""

import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from choral.cli import EXTRAS
from models.examples import FOLDER
from tests.federation import HERE, Process, wait_until

Start = Callable[..., Process]

SERVE = ("serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
JOIN = ("join", "127.0.0.1:1", "--data", "digits,blocks=0", "--threads", "1")


def others(extra: str) -> str:
    """Return all packages of the other extras; a client's brings torch."""
    own = EXTRAS[extra] | (EXTRAS["torch"] if extra == "client" else set())
    return ",".join(sorted(set().union(*EXTRAS.values()) - own))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the command line without some packages."""
    started: list[Process] = []

    def run(missing: str, *arguments: str) -> Process:
        program = str(HERE / "choral" / "narrow_install.py")
        process = Process([sys.executable, program, missing, *arguments], tmp_path / f"{len(started)}.log")
        started.append(process)
        return process

    yield run
    for process in started:
        process.close()


@pytest.mark.parametrize(("extra", "command"), [("client", "join"), ("server", "serve")])
def test_help_needs_only_the_extra_of_its_side(start: Start, extra: str, command: str) -> None:
    process = start(others(extra), command, "--help")
    assert process.wait() == 0, process.output
    assert "Example: choral" in process.output


@pytest.mark.parametrize(
    ("extra", "arguments", "sign"),
    [("client", JOIN, "cannot reach the coordinator"), ("server", SERVE, "clients join at")],
    ids=["join", "serve"],
)
def test_command_starts_with_only_the_extra_of_its_side(
    start: Start, tmp_path: Path, extra: str, arguments: Sequence[str], sign: str
) -> None:
    process = start(others(extra), *arguments, "--folder", str(tmp_path / "state"))
    wait_until(lambda: sign in process.output or not process.is_alive, f"{sign!r} in the log")
    assert process.is_alive, process.output
    assert sign in process.output
    assert process.end() == 0


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        pytest.param("tenacity", JOIN, "client", id="join"),
        pytest.param("uvicorn", SERVE, "server", id="serve"),
        pytest.param(
            "transformers",
            ("simulate", str(FOLDER / "hf_causal_lm.yaml"), "--data", "shakespeare"),
            "llm",
            id="simulate",
        ),
        pytest.param("redis", (*SERVE, "--store", "redis://127.0.0.1:1/0"), "server", id="redis"),
    ],
)
def test_missing_package_is_one_sentence_that_names_its_extra(
    start: Start, tmp_path: Path, missing: str, arguments: Sequence[str], extra: str
) -> None:
    absent = missing if extra == "llm" else f"{missing},{others(extra)}"
    process = start(absent, *arguments, "--folder", str(tmp_path / "state"))
    assert process.wait() == 1
    sentence = f"Error: Package {missing}: must be installed, got none. Run pip install 'choral[{extra}]'.\n"
    assert process.output == sentence


def test_extras_are_those_of_pyproject() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = packages_distributions()
    for extra, packages in EXTRAS.items():
        wanted = {re.split(r"[^\w-]", item)[0].lower() for item in project["optional-dependencies"][extra]}
        wanted.discard("choral")
        assert {name.lower().replace("_", "-") for package in packages for name in names[package]} == wanted
