"""Learners of a user's own: loaded from a file, named after their class, and refused with a reason."""

import os
from pathlib import Path

import pytest

from models import LearnerError, add_own, build_learner, learners
from models.own import name_of, own_learners
from wire.spec import Named

MINE = '''
from models.mlp import MLP, MLPParameters


class {name}(MLP):
    """A perceptron of mine."""

    parameters: MLPParameters
'''


@pytest.fixture(autouse=True)
def no_own_learners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHORAL_LEARNERS", "")


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text)
    return path


def test_add_own_is_known_by_the_name_of_its_class(tmp_path: Path) -> None:
    path = written(tmp_path, MINE.format(name="MyMLP"))
    assert add_own(f"{path}:MyMLP") == "my_mlp"
    assert learners()["my_mlp"].summary == "A perceptron of mine."
    assert build_learner(Named(name="my_mlp", hidden=[3])).init(0)["1.weight"].shape == (3, 64)
    assert os.environ["CHORAL_LEARNERS"] == f"{path}:MyMLP"
    add_own(f"{path}:MyMLP")
    assert os.environ["CHORAL_LEARNERS"] == f"{path}:MyMLP"
    assert own_learners()["my_mlp"] is learners()["my_mlp"].learner


def test_own_learner_is_named_in_errors_as_in_a_spec(tmp_path: Path) -> None:
    add_own(f"{written(tmp_path, MINE.format(name='MyMLP'))}:MyMLP")
    with pytest.raises(LearnerError, match=r"^Learner my_mlp: statistics must be averaged in a model without batch"):
        build_learner(Named(name="my_mlp", statistics="local"))


@pytest.mark.parametrize(
    ("class_name", "name"),
    [("MyLearner", "my_learner"), ("GRU", "gru"), ("MyRNN2", "my_rnn2"), ("RNNModel", "rnn_model")],
)
def test_name_of_is_the_class_in_small_letters(class_name: str, name: str) -> None:
    assert name_of(class_name) == name


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        pytest.param("", "Mine", r"must be a class of that file, got None\.", id="no-class"),
        pytest.param("1 / 0", "Mine", r"the file must run, got ZeroDivisionError: division by zero\.", id="error"),
        pytest.param("Mine = 3", "Mine", r"must be a class of that file, got 3\.", id="no-type"),
        pytest.param("class Mine:\n    '''Mine.'''", "Mine", r"got none of init, check, fit", id="no-learner"),
        pytest.param(
            MINE.format(name="Mine").replace('"""A perceptron of mine."""', ""), "Mine", "docstring", id="doc"
        ),
        pytest.param("", "Mi ne", r"must be PATH:CLASS of a file that exists", id="no-name"),
    ],
)
def test_add_own_what_is_no_learner_is_refused(tmp_path: Path, text: str, name: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(LearnerError, match=message):
        add_own(f"{path}:{name}")
    assert os.environ["CHORAL_LEARNERS"] == ""


def test_add_own_without_parameters_is_refused(tmp_path: Path) -> None:
    methods = "\n".join(
        f"    {name} = None"
        for name in ("init", "check", "fit", "step_bytes", "apply", "evaluate", "contribution_layout")
    )
    path = written(tmp_path, f"class Mine:\n    '''Mine.'''\n{methods}")
    with pytest.raises(LearnerError, match="attribute `parameters` must be annotated with a subclass of"):
        add_own(f"{path}:Mine")


def test_add_own_of_a_missing_file_or_a_path_with_a_comma_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LearnerError, match="must be PATH:CLASS of a file that exists"):
        add_own(f"{tmp_path}/absent.py:Mine")
    with pytest.raises(LearnerError, match="the path must have no comma"):
        add_own(f"{tmp_path}/a,b.py:Mine")


def install(folder: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package that has a learner, named `installed`, at `value`."""
    (folder / "installed_learner.py").write_text(MINE.format(name="Installed"))
    about = folder / "installed_learner-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-learner\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[choral.learners]\ninstalled = {value}\n")
    monkeypatch.syspath_prepend(folder)


def test_learner_of_an_installed_package_is_known_without_being_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "installed_learner:Installed", monkeypatch)
    assert learners()["installed"].summary == "A perceptron of mine."
    assert build_learner(Named(name="installed", hidden=[3])).init(0)["1.weight"].shape == (3, 64)
    assert own_learners()["installed"].__module__ == "installed_learner"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_package:Mine", r"must be importable, got ModuleNotFoundError: No module named 'no_such_package'\.$"),
        ("installed_learner:Mine", r"must be importable, got AttributeError: .*Mine"),
        ("installed_learner:MLPParameters", r"must have init, check, fit"),
    ],
)
def test_learner_of_an_installed_package_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    install(tmp_path, value, monkeypatch)
    with pytest.raises(LearnerError, match=f"^Learner installed, which an installed package has at {value}: {message}"):
        learners()
    build_learner(Named(name="mlp"))


def test_own_learner_with_a_name_of_the_zoo_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, MINE.format(name="Cnn"))
    add_own(f"{path}:Cnn")
    with pytest.raises(LearnerError, match=r"^Learner cnn: name must not be that of a learner of the zoo"):
        learners()
    # Nor is the zoo's taken for it.
    with pytest.raises(LearnerError, match=r"^Learner cnn: name must not be that of a learner of the zoo"):
        build_learner(Named(name="cnn"))
