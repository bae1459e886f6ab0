"""`choral models`: every learner with what it takes, a spec to copy, and the checks for one's own."""

import json
import multiprocessing.forkserver
import re
import shlex
from pathlib import Path

import pytest

from models import MODELS, build_learner
from models.examples import example_of
from tests.choral.command_line import WIDTH, Choral, sentence
from tests.federation import tensor_bytes
from wire.spec import parse_spec
from wire.tensors import Layout

OWN = '''
"""Softmax regression on digits."""

from torch import nn

from models import Examples, tasks
from models.classifier import Classifier, ClassifierParameters


class MineParameters(ClassifierParameters):
    """Parameters of mine."""

    classes: int = 10
    """Number of classes."""


class MyOwn(Classifier):
    """Softmax regression on pixels."""

    task, data = "classify", "digits"
    parameters: MineParameters

    def build(self) -> nn.Module:
        """Return one dense layer."""
        return nn.Sequential(nn.Flatten(), nn.Linear(64, self.parameters.classes))

    def check(self, data: Examples) -> None:
        """Check that examples are digits."""
        tasks.check_features("my_own", data, (1, 8, 8))
        tasks.check_classes("my_own", data, self.parameters.classes)
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CHORAL_LEARNERS", "")
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return f"{path}:MyOwn"


@pytest.mark.usefixtures("bases")
def test_models_as_json_lists_every_learner_with_its_parameters(choral: Choral) -> None:
    listed = json.loads(choral("models", "--json").out)
    assert listed.keys() == MODELS.keys()
    for name, model in MODELS.items():
        assert listed[name]["summary"] == model.summary
        assert "" not in (listed[name]["task"], listed[name]["data"])
        assert {key.partition(".")[0] for key in listed[name]["parameters"]} == model.parameters.model_fields.keys()
        for parameter in listed[name]["parameters"].values():
            assert parameter.keys() == {"type", "default", "meaning"}
            assert parameter["meaning"]
        assert {"serial", "processes", "ray"} <= set(listed[name]["engines"])
        size = Layout.of(build_learner(example_of(name).spec.learner).init(0)).size
        assert listed[name]["parameter_count"] == size
        assert listed[name]["step_bytes"] > 1000
    assert "vectorized" in listed["mlp"]["engines"]
    assert "vectorized" not in listed["lstm"]["engines"]
    assert listed["mlp"]["parameters"]["hidden"] == {
        "type": "list of 0 to 64, each integer, at least 1",
        "default": [64],
        "meaning": MODELS["mlp"].parameters.model_fields["hidden"].description,
    }


def test_models_lists_every_learner_within_the_width_of_a_terminal(choral: Choral) -> None:
    outcome = choral("models")
    assert outcome.code == 0
    assert max(len(line) for line in outcome.lines) <= WIDTH
    listed = dict(zip(outcome.lines[2::2], outcome.lines[3::2], strict=False))
    heads = {line.split()[0]: line for line in list(listed)[: len(MODELS)]}
    assert list(heads) == list(MODELS)
    for name, model in MODELS.items():
        assert heads[name] == f"  {name}  {model.summary}"
        assert listed[heads[name]].endswith(f"  {model.task} · {model.data}")
    assert listed[heads["mlp"]].split()[:2] == ["4,810", "sprv"]
    assert listed[heads["lstm"]].split()[:2] == ["148,736", "spr"]


@pytest.mark.usefixtures("bases")
@pytest.mark.parametrize("name", MODELS)
def test_models_show_prints_what_it_is_its_parameters_and_a_spec(choral: Choral, name: str) -> None:
    outcome = choral("models", "show", name)
    assert outcome.code == 0
    assert set(MODELS[name].parameters.model_fields) <= set(outcome.out.replace("│", " ").split())
    assert MODELS[name].explanation.splitlines()[0] in outcome.out
    assert "Memory: a step of the spec below takes about" in outcome.out
    spec = choral("models", "spec", name).out
    assert spec in outcome.out
    assert spec.partition("\n")[2] == example_of(name).text.partition("\n")[2]


@pytest.mark.parametrize("command", ["show", "spec"])
def test_models_of_an_unknown_learner_names_those_that_there_are(choral: Choral, command: str) -> None:
    outcome = choral("models", command, "mpl")
    assert re.fullmatch(r"Learner: name must be one of .*, got 'mpl'\.", sentence(outcome))


def runs_by_its_first_line(choral: Choral, spec: str, folder: Path) -> Path:
    """Save a spec in a folder, of one round where it needs no more, run its first line there, and return the model."""
    first, rest = spec.split("\n", 1)
    rounds = getattr(build_learner(parse_spec(spec).learner, "meta"), "fewest_rounds", 1)
    (folder / "run.yaml").write_text(re.sub(r"(?m)^rounds: .*$", f"rounds: {rounds}", rest))
    words = shlex.split(first.removeprefix("# "))
    assert words[:3] == ["choral", "simulate", "run.yaml"]
    outcome = choral(*words[1:])
    assert outcome.code == 0, outcome.err
    return folder / "simulated" / "model.safetensors"


@pytest.mark.usefixtures("bases")
@pytest.mark.parametrize(
    "name",
    [name if name in ("mlp", "bayesian_network") else pytest.param(name, marks=pytest.mark.slow) for name in MODELS],
)
def test_spec_to_copy_runs_by_its_first_line_in_any_folder(
    choral: Choral, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert runs_by_its_first_line(choral, choral("models", "spec", name).out, tmp_path).is_file()


def test_spec_of_a_learner_of_ones_own_runs_by_its_first_line(
    choral: Choral, own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = choral("models", "spec", "my_own", "--learner", own).out
    assert spec in choral("models", "show", "my_own", "--learner", own).out
    assert runs_by_its_first_line(choral, spec, tmp_path).is_file()


def test_models_lists_a_learner_of_ones_own_with_the_engines_that_train_it(choral: Choral, own: str) -> None:
    listed = json.loads(choral("models", "--json", "--learner", own).out)["my_own"]
    assert listed["summary"] == "Softmax regression on pixels."
    assert listed["parameter_count"] == 650
    assert listed["engines"] == ["serial", "processes", "ray", "vectorized"]


def test_models_check_of_a_learner_of_ones_own_passes(choral: Choral, own: str) -> None:
    outcome = choral("models", "check", own)
    assert outcome.code == 0, outcome.err
    assert outcome.lines[-1].startswith("my_own: 12 of 12 checks passed")


def test_models_check_of_a_learner_of_an_installed_package_passes(
    choral: Choral, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHORAL_LEARNERS", "")
    (tmp_path / "installed_own.py").write_text(OWN)
    about = tmp_path / "installed_own-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-own\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[choral.learners]\ninstalled_own = installed_own:MyOwn\n")
    monkeypatch.syspath_prepend(tmp_path)
    outcome = choral("models", "check", "installed_own")
    assert outcome.code == 0, outcome.out + outcome.err
    assert outcome.lines[-1].startswith("installed_own: 12 of 12 checks passed")
    assert "installed_own" in choral("models").out


def test_models_check_that_fails_says_which_rule_and_ends_with_an_error(choral: Choral, own: str) -> None:
    path = Path(own.partition(":")[0])
    path.write_text(OWN.replace('tasks.check_features("my_own", data, (1, 8, 8))', ""))
    outcome = choral("models", "check", own)
    assert outcome.code == 1
    assert "FAILED  bad data is refused: inputs with one axis more must be refused" in outcome.out
    assert outcome.lines[-1].startswith("my_own: 11 of 12 checks passed")


def test_simulate_trains_a_learner_of_ones_own_in_worker_processes_too(
    choral: Choral, own: str, tmp_path: Path
) -> None:
    spec = tmp_path / "run.yaml"
    spec.write_text("{name: a, learner: {name: my_own}, rounds: 1, cohort: {size: 2}}")
    # What forks workers may run since before this process knew the learner.
    multiprocessing.forkserver.ensure_running()
    models = []
    for engine in ("serial", "processes"):
        folder = tmp_path / engine
        command = ("simulate", str(spec), "--clients", "2", "--engine", engine, "--folder", str(folder))
        outcome = choral(*command, "--learner", own)
        assert outcome.code == 0, outcome.err
        models.append(tensor_bytes(folder / "model.safetensors"))
    assert models[0] == models[1]
    unknown = choral("spec", "check", str(spec))
    assert unknown.code == 0  # known by now to this process and those that it starts


def test_example_of_each_learner_is_a_command_and_a_spec() -> None:
    for name in MODELS:
        example = example_of(name)
        assert example.command.startswith(f"choral simulate models/specs/{name}.yaml --data {example.data}")
        assert example.spec == parse_spec(example.text)
        assert example.spec.learner.name == name
