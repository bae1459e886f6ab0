"""Every command of `choral` that deploy/ and the compose files use, against the real command line."""

import json
import re
from collections.abc import Iterator

import click
import pytest
import typer

from choral import cli
from tests.deploy.manifests import ROOT, commands_in, helm, read_yaml, services

TEXTS = [
    "docker-compose.yml",
    "deploy/Dockerfile",
    "deploy/README.md",
    "deploy/choral-client.service",
    "deploy/helm/choral/templates/NOTES.txt",
    "deploy/test-containers.sh",
]


def problem_with(words: list[str]) -> str:
    """Return what is wrong with the words of a call, "" if nothing is."""
    command: click.Command = typer.main.get_command(cli.app)
    rest = list(words)
    while isinstance(command, click.Group):
        if not rest or rest[0].startswith("-"):
            return ""
        found = command.commands.get(rest.pop(0))
        if found is None:
            return f"choral {' '.join(words)}: no such command"
        command = found
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
    used = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    return "" if used <= known else f"choral {' '.join(words)}: no option {', '.join(sorted(used - known))}"


def calls_of_lists() -> Iterator[list[str]]:
    """Yield the calls that are written as lists: of services, of pods and of the Dockerfile."""
    for service in services().values():
        if "entrypoint" not in service and "build" in service:
            yield service["command"]
    done = helm(json.dumps({"coordinator": {"extraArgs": ["--concurrent-runs=2"]}, "api": {"replicas": 1}}))
    for document in read_yaml(done.stdout):
        if document["kind"] in ("StatefulSet", "Deployment"):
            yield from (part["args"] for part in document["spec"]["template"]["spec"]["containers"] if "args" in part)
    for found in re.findall(r"^CMD (\[.*\])$", (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8"), re.M):
        yield json.loads(found)


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_of_a_text_exists(name: str) -> None:
    calls = list(commands_in((ROOT / name).read_text(encoding="utf-8")))
    if name not in ("deploy/Dockerfile",):
        assert calls
    assert [problem for words in calls if (problem := problem_with(words))] == []


def test_every_command_of_a_list_exists() -> None:
    calls = list(calls_of_lists())
    assert sorted(words[0] for words in calls) == ["api"] * 2 + ["join"] * 4 + ["serve"] * 3
    assert [problem for words in calls if (problem := problem_with(words))] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("RUN choral serve --lissten 0.0.0.0:1", "no option --lissten"),
        ("`choral tokens create me`", "no such command"),
        ("docker run -d choral-client:0.1.0 join a:1 --tls-caa x", "no option --tls-caa"),
        ("x=$(choral token create me \\\n    --rolle viewer)", "no option --rolle"),
    ],
)
def test_a_wrong_command_is_found(text: str, problem: str) -> None:
    (words,) = commands_in(text)
    assert problem in problem_with(words)
