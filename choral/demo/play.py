"""The demo from first to last: start processes, train, download the model, measure it, write the folder."""

import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from choral.demo.errors import DemoError
from choral.demo.history import Round, write_history
from choral.demo.outcome import FILES, Outcome, write_summary
from choral.demo.plan import HELD_OUT, Plan
from choral.demo.plot import write_plot
from choral.demo.processes import Federation
from choral.demo.screen import Screen
from choral.demo.yardstick import Yardstick

START_SECONDS = 300.0
"""Longest wait for processes to start. Each takes some seconds of a core."""

POLL_SECONDS = 0.2


def play(plan: Plan, folder: Path, screen: Screen) -> Outcome:
    """Play the demo and write its files into `folder`, over those of an earlier demo.

    Raises:
        DemoError: A process ended or did not start in time, the run stopped short, or the folder cannot be written.
        RestError: The coordinator does not answer.
    """
    start = time.monotonic()
    _prepare(folder, plan)
    with (
        tempfile.TemporaryDirectory(prefix="choral-demo-") as state,
        Federation(Path(state), folder / "logs") as federation,
    ):
        yardstick, pooled, alone = _start(plan, federation, screen)
        rounds = _train_together(plan, folder / "model.safetensors", federation, screen)
        screen.say("ending the processes")
    screen.say("measuring the model, drawing the plot")
    federated = yardstick.measure(folder / "model.safetensors")
    outcome = Outcome(plan, alone, federated, pooled, len(rounds), time.monotonic() - start)
    write_history(folder / "history.csv", rounds)
    write_plot(folder / "history.png", rounds, outcome)
    write_summary(folder / "summary.json", outcome)
    return outcome


def _start(plan: Plan, federation: Federation, screen: Screen) -> tuple[Yardstick, float, tuple[float, ...]]:
    """Start all processes, and train meanwhile what needs no federation: a model on all data, and one on each client's."""
    if plan.is_secure:
        screen.say("enrolling the clients")
        federation.enrol(plan.client_count)
    screen.say("starting the coordinator")
    federation.start_coordinator()
    yardstick = Yardstick(plan)
    pooled = yardstick.pooled(lambda part: screen.say(f"meanwhile: training on all data pooled, {part:.0%}"))
    _wait_for(screen, "the coordinator", lambda: 0 if federation.is_healthy() else 1, 1)
    count = plan.client_count
    for block in range(count):
        federation.start_client(block, HELD_OUT)
    alone = []
    for client in range(count):
        joined = f"{federation.joined_count()} of {count} clients have joined"
        screen.say(f"{joined}; meanwhile: training client {client}'s model alone")
        alone.append(yardstick.alone(client, lambda _: None))
    _wait_for(screen, "clients", lambda: count - federation.joined_count(), count)
    return yardstick, pooled, tuple(alone)


def _prepare(folder: Path, plan: Plan) -> None:
    """Check what the end of the demo needs before its beginning, and write the spec."""
    if importlib.util.find_spec("matplotlib") is None:
        raise DemoError(
            "Package matplotlib: must be installed for the demo's plot, got none. Run pip install 'choral[all]'."
        )
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        (folder / "run.yaml").write_text(plan.spec_text, encoding="utf-8")
    except OSError as error:
        raise DemoError(f"Folder {folder}: must be writable, got: {error}. Choose another with --folder.") from error


def _train_together(plan: Plan, model: Path, federation: Federation, screen: Screen) -> list[Round]:
    """Submit the run, show its rounds, download its model to `model`, and return the rounds."""
    run_id = federation.rest.post("/runs", json.loads(plan.spec.canonical_json()))["run_id"]
    rounds: list[Round] = []
    while True:
        for client in federation.newly_lost():
            screen.note(f"{client.name} has ended: the run goes on without it after a while. See {client.log}.")
        federation.check_coordinator()
        run = federation.rest.get(f"/runs/{run_id}")
        for record in federation.rest.get(f"/runs/{run_id}/rounds", after=len(rounds), limit=1000):
            if record["state"] == "committed":
                rounds.append(Round.of(record))
                screen.add(rounds[-1])
        screen.say(run["status"])
        if run["state"] not in ("queued", "running"):
            break
        time.sleep(POLL_SECONDS)
    if run["state"] != "finished":
        raise DemoError(f"Run {run['spec']['name']}: must finish, got {run['state']}. {run['reason']}")
    for _ in federation.rest.download(f"/runs/{run_id}/model", model):
        screen.say("downloading the model")
    return rounds


def _wait_for(screen: Screen, what: str, count_missing: Callable[[], int], total: int) -> None:
    """Wait until nothing is missing; raise `DemoError` after `START_SECONDS`."""
    deadline = time.monotonic() + START_SECONDS
    while missing := count_missing():
        seconds = deadline - time.monotonic()
        subject = f"{missing} of {total} {what}" if total > 1 else what
        if seconds <= 0:
            raise DemoError(
                f"Demo: {what} must start within {START_SECONDS:g} s, got no answer from {subject}. See the logs."
            )
        screen.say(f"waiting for {subject}, {seconds:.0f} s left")
        time.sleep(POLL_SECONDS)
