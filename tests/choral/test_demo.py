import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from choral.cli import app
from choral.demo.errors import DemoError
from choral.demo.history import Round, write_history
from choral.demo.outcome import FILES, Outcome, next_steps, show_outcome, write_summary
from choral.demo.plan import CLIENT_LIMIT, HELD_OUT, RECIPES, UNSEEN_BLOCKS, Plan
from choral.demo.plot import write_plot
from choral.demo.processes import Federation
from choral.demo.screen import Screen
from choral.demo.yardstick import Yardstick, client_digits
from client.data import load_local
from client.training import Trainer
from models import build_learner, check_spec
from privacy.secagg.combinations import check_masking
from server.model import ModelShop, read_checkpoint, write_checkpoint

DEMO_SECONDS = 240.0


def make_round(number: int, accuracy: float | None = 0.5) -> Round:
    return Round(number, 3, accuracy, 0.25, 0.125, 1000 * number, 0.5)


def make_outcome(federated: float = 0.9) -> Outcome:
    return Outcome(Plan(3, 2, "cnn"), (0.5, 0.7, 0.75), federated, 0.92, 2, 12.34)


def start_demo(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "choral", "demo", "--folder", str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A proxy and a token of the user's have nothing to do with a federation on loopback.
        env={**os.environ, "HTTP_PROXY": "http://127.0.0.1:9", "CHORAL_TOKEN": "mine", "COLUMNS": "160"},
    )


@pytest.mark.parametrize("learner", RECIPES)
def test_plan_spec_text_is_sound_spec_of_what_was_asked(learner: str) -> None:
    plan = Plan(5, 9, learner)
    check_spec(plan.spec)
    assert (plan.spec.learner.name, plan.spec.rounds, plan.spec.seed) == (learner, 9, 7)
    build_learner(plan.spec.learner).check(client_digits(0).training)


@pytest.mark.parametrize("clients", range(3, CLIENT_LIMIT + 1))
def test_plan_that_is_secure_masks_updates_of_any_number_of_clients(clients: int) -> None:
    plan = Plan(clients, 9, "cnn", is_secure=True)
    check_masking(plan.spec)
    assert plan.spec.secure is not None
    assert Plan(clients, 9, "cnn").spec.secure is None


def test_next_steps_of_a_secure_demo_need_no_roster_that_is_not_there() -> None:
    said = "\n".join(next_steps(Path("demo"), is_secure=True))
    assert "enroll --help" in said
    assert "submit" not in said
    assert "submit" in "\n".join(next_steps(Path("demo")))


def test_plan_that_is_secure_with_two_clients_is_refused() -> None:
    with pytest.raises(DemoError, match=r"must be at least 3 with --secure, .*, got 2"):
        Plan(2, 9, "cnn", is_secure=True)


def test_plan_learner_that_reads_no_images_is_refused() -> None:
    with pytest.raises(DemoError, match=r"must be cnn or mlp, which classify images of digits, got 'lstm'"):
        Plan(11, 25, "lstm")


def test_plan_clients_and_unseen_blocks_share_no_block() -> None:
    assert not set(range(CLIENT_LIMIT)) & set(UNSEEN_BLOCKS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--clients", "12"], "12 is not in the range 2<=x<=11", id="more-clients-than-blocks"),
        pytest.param(["--clients", "1"], "1 is not in the range 2<=x<=11", id="one-client"),
        pytest.param(["--rounds", "0"], "0 is not in the range x>=1", id="no-round"),
    ],
)
def test_demo_option_out_of_range_is_refused_before_anything_starts(
    options: list[str], message: str, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, ["demo", *options, "--folder", str(tmp_path / "demo")], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


def test_round_of_record_sums_bytes_and_keeps_missing_metrics_apart() -> None:
    record = {
        "number": 4,
        "contributions": [{"byte_count": 24}, {"byte_count": 26}],
        "metrics": {"accuracy": 0.75, "train_loss": 0.5},
        "started_time": 100.0,
        "ended_time": 101.25,
    }
    assert Round.of(record) == Round(4, 2, 0.75, None, 0.5, 50, 1.25)


def test_write_history_has_a_line_for_each_round(tmp_path: Path) -> None:
    write_history(tmp_path / "history.csv", [make_round(1), make_round(2, None)])
    assert (tmp_path / "history.csv").read_text().splitlines() == [
        "round,clients,accuracy,loss,train_loss,bytes,seconds",
        "1,3,0.500000,0.250000,0.125000,1000,0.500",
        "2,3,,0.250000,0.125000,2000,0.500",
    ]


def test_write_summary_gives_fractions(tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", make_outcome())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["alone"] == pytest.approx(0.65)
    assert (summary["federated"], summary["pooled"]) == (0.9, 0.92)
    assert (summary["rounds"], summary["clients"], summary["seconds"]) == (2, 3, 12.3)


@pytest.mark.parametrize(
    "accuracies", [(0.5,), (None,), (0.1, 0.9, 0.95)], ids=["one-round", "unknown", "three-rounds"]
)
def test_write_plot_draws_any_history(accuracies: Sequence[float | None], tmp_path: Path) -> None:
    rounds = [make_round(number, accuracy) for number, accuracy in enumerate(accuracies, 1)]
    write_plot(tmp_path / "history.png", rounds, make_outcome())
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("federated", "sentence"),
    [
        (0.9, "Federated is 25.0 points above a client alone and 2.0 points below pooled. It took 12 s."),
        (0.6, "Federated is 5.0 points below a client alone and 32.0 points below pooled."),
        (0.93, "Federated is 28.0 points above a client alone and 1.0 points above pooled."),
    ],
)
def test_show_outcome_compares_the_three_numbers(federated: float, sentence: str) -> None:
    text = io.StringIO()
    show_outcome(Console(file=text, width=200), make_outcome(federated), Path("demo"))
    assert sentence in text.getvalue()
    assert re.search(r"mean; 50\.0% to 75\.0%\).*65\.0%", text.getvalue())


def test_next_steps_name_commands_that_exist() -> None:
    known = {command.name or "" for command in app.registered_commands}
    lines = [line.strip() for line in next_steps(Path("my demo")) if "choral " in line]
    assert {re.sub(r"^\S*choral (\S+) .*", r"\1", line) for line in lines} == {
        "demo",
        "serve",
        "join",
        "submit",
    } & known
    assert any("'my demo'/run.yaml" in line for line in lines)


def test_screen_without_terminal_prints_each_round_once() -> None:
    text = io.StringIO()
    with Screen(Console(file=text), 12) as screen:
        screen.say("starting")
        screen.say("not long after")
        screen.add(make_round(1))
        screen.add(make_round(2, None))
    assert text.getvalue().splitlines() == [
        "starting",
        "round  1/12: 3 clients, accuracy 50.0%, loss 0.2500, 0.00 MB, 0.50 s",
        "round  2/12: 3 clients, accuracy none, loss 0.2500, 0.00 MB, 0.50 s",
    ]


def test_screen_on_terminal_leaves_a_table_of_all_rounds() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, height=20)
    with Screen(console, 30) as screen:
        for number in range(1, 31):
            screen.say(f"round {number}")
            screen.add(make_round(number))
    left = text.getvalue().rpartition("received")[2]
    assert [f"{number:>2}/30" in left for number in range(1, 31)] == [True] * 30
    assert "on digits that the clients hold out" in left


@pytest.mark.parametrize("learner", RECIPES)
def test_yardstick_trains_on_what_clients_train_on(learner: str) -> None:
    yardstick = Yardstick(Plan(3, 1, learner))
    whole = [len(load_local(f"digits,blocks={block}", 0.0, 0).training) for block in range(3)]
    assert yardstick.example_counts == [count - round(count * HELD_OUT) for count in whole]
    assert yardstick.unseen_count == len(load_local("digits,blocks=11|12|13", 0.0, 0).training)


def test_yardstick_measures_a_model_file_as_torch_does(tmp_path: Path) -> None:
    plan = Plan(2, 1, "cnn")
    shop = ModelShop(plan.spec)
    model = shop.initial()
    write_checkpoint(tmp_path / "model.safetensors", model, {})
    unseen = load_local("digits,blocks=11|12|13", 0.0, 0).training
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding="same"),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 3, padding="same"),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 10),
    )
    module.load_state_dict(model.layout.views(model.vector))
    expected = (module(unseen.inputs).argmax(1) == unseen.targets).double().mean().item()
    assert Yardstick(plan).measure(tmp_path / "model.safetensors") == pytest.approx(expected, abs=1e-12)


def test_yardstick_pooled_beats_alone_and_repeats_itself() -> None:
    first, second = Yardstick(Plan(2, 1, "mlp")), Yardstick(Plan(2, 1, "mlp"))
    alone = [first.alone(client, lambda _: None) for client in range(2)]
    assert first.pooled(lambda _: None) > sum(alone) / 2 > 0.5
    assert [second.alone(client, lambda _: None) for client in range(2)] == alone


def test_federation_client_that_dies_is_named_with_its_last_words(tmp_path: Path) -> None:
    with Federation(tmp_path / "state", tmp_path / "logs") as federation:
        federation.start_client(99, HELD_OUT)
        federation.clients[0].wait(DEMO_SECONDS)
        with pytest.raises(
            DemoError, match=r"(?s)Client 99: process must run .* exit code 1.*client-99\.log:\n.*blocks"
        ):
            federation.joined_count()
        assert [client.name for client in federation.newly_lost()] == ["Client 99"]
        assert federation.newly_lost() == []


def test_federation_ends_its_processes_when_an_error_leaves_it(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "state", tmp_path / "logs")

    def fail_after_start() -> None:
        with federation:
            federation.start_coordinator()
            federation.start_client(0, HELD_OUT)
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        fail_after_start()
    assert federation.clients[0].has_ended
    with pytest.raises(DemoError, match="Coordinator: process must run"):
        federation.check_coordinator()


@pytest.mark.slow
def test_demo_files_agree_with_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    process = start_demo(folder, "--clients", "3", "--rounds", "2")
    output, _ = process.communicate(timeout=DEMO_SECONDS)
    assert process.returncode == 0, output
    assert {path.name for path in folder.iterdir()} == {*FILES, "logs"}
    assert {path.name for path in (folder / "logs").iterdir()} == {f"client-{k}.log" for k in range(3)} | {
        "coordinator.log"
    }

    with (folder / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert [row["round"] for row in history] == ["1", "2"]
    assert {row["clients"] for row in history} == {"3"}

    plan, summary = Plan(3, 2, "cnn"), json.loads((folder / "summary.json").read_text())
    assert (folder / "run.yaml").read_text() == plan.spec_text
    assert summary["federated"] == Yardstick(plan).measure(folder / "model.safetensors")
    assert summary["rounds"] == 2
    assert f"{summary['federated']:.1%}" in output
    assert "round 2/2: 3 clients" in output

    # The last line of the history is what the clients say of that very model.
    trainer = Trainer(plan.spec.learner, torch.device("cpu"))
    model = read_checkpoint(folder / "model.safetensors", trainer.layout)
    held_out = [trainer.evaluate(model.vector, client_digits(block)) for block in range(3)]
    count = sum(part.example_count for part in held_out)
    accuracy = sum(part.example_count * part.metrics["accuracy"] for part in held_out) / count
    assert float(history[-1]["accuracy"]) == pytest.approx(accuracy, abs=1e-6)
    byte_counts = [int(row["bytes"]) for row in history]
    assert byte_counts == [3 * model.layout.byte_count] * 2


def test_interrupt_while_a_process_begins_ends_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, begun = subprocess.Popen.__init__, []

    def begin_and_interrupt(process: subprocess.Popen[bytes], *arguments: Any, **setting: Any) -> None:
        begin(process, *arguments, **setting)
        begun.append(process.pid)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess.Popen, "__init__", begin_and_interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), Federation(tmp_path / "state", tmp_path / "logs") as federation:
            federation.start_client(0, HELD_OUT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(begun) == 1
    assert not psutil.pid_exists(begun[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "child_count"),
    [
        pytest.param(signal.SIGINT, 3, id="ctrl-c-with-clients"),
        pytest.param(signal.SIGTERM, 1, id="sigterm-with-coordinator"),
    ],
)
def test_demo_interrupted_leaves_no_process(number: signal.Signals, child_count: int, tmp_path: Path) -> None:
    process = start_demo(tmp_path / "demo", "--clients", "2")
    deadline = time.monotonic() + DEMO_SECONDS
    children: list[psutil.Process] = []
    while len(children) < child_count:
        assert time.monotonic() < deadline
        assert process.poll() is None
        children = psutil.Process(process.pid).children()
        time.sleep(0.1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=DEMO_SECONDS)
    assert process.returncode != 0, output
    assert [child for child in children if child.is_running()] == []
    assert not (tmp_path / "demo" / "summary.json").exists()
