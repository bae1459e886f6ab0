"""The Dockerfile's rules, what goes into the images, and the check of what is in them."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.manifests import ROOT
from wire import RELEASE

CONTENTS = ROOT / "deploy" / "contents.py"
SLIM = ROOT / "deploy" / "slim.sh"
GROUPS = ("client", "server", "torch")
RELEASED = {
    "docker-compose.yml": r"CHORAL_VERSION:-([^}]+)\}",
    "docker-compose.gpu.yml": r"CHORAL_VERSION:-([^}]+)\}",
    "README.md": r"choral-([\d.]+)-py3",
    "deploy/README.md": r"choral-(?:client|coordinator):([\d.]+)",
    "deploy/helm/choral/Chart.yaml": r"^(?:appVersion|version): (.+)$",
}
"""Files that name the release, and how."""


def stages() -> dict[str, list[str]]:
    """Return the instructions of each stage of the Dockerfile, one a line."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("FROM "):
            found[line.rpartition(" AS ")[2]] = [line]
        elif found and line and not line.startswith("#"):
            list(found.values())[-1].append(line)
    return found


def test_images_are_built_from_one_base_without_build_tools() -> None:
    found = stages()
    assert list(found) == ["packages", "runtime", "runtime-0", "runtime-1", "coordinator", "client"]
    assert found["runtime-0"] == ["FROM runtime AS runtime-0"]
    assert found["runtime-1"][0] == "FROM runtime AS runtime-1"
    assert found["coordinator"][0] == "FROM runtime-${COORDINATOR_TORCH} AS coordinator"
    assert found["client"][0] == "FROM runtime-1 AS client"
    for stage in ("runtime", "runtime-1", "coordinator", "client"):
        text = "\n".join(found[stage])
        assert not re.search(r"\b(apt-get|apt|curl|wget|pip install|ensurepip)\b", text)
        assert not re.search(r"\bARG PIP_", text)


def test_images_run_without_root_and_say_how_they_are() -> None:
    found = stages()
    assert [line for line in found["runtime"] if line.startswith("USER")] == ["USER 10001:10001"]
    for stage in ("coordinator", "client"):
        assert not any(line.startswith("USER") for line in found[stage])
        (check,) = [line for line in found[stage] if line.startswith("HEALTHCHECK")]
        command = json.loads(check.partition("CMD ")[2])
        assert command[:4] == ["python", "-m", "choral.health", stage]


def test_release_is_the_same_wherever_it_is_written() -> None:
    release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"ARG VERSION={release}" in stages()["runtime"]
    assert release == RELEASE
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in RELEASED}
    found = {name: set(re.findall(RELEASED[name], text, re.M)) for name, text in texts.items()}
    assert found == {name: {release} for name in RELEASED}


def test_build_context_is_what_an_image_installs() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {name.partition(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    files = {"pyproject.toml", "deploy/pins.txt", "deploy/slim.sh", project["project"]["readme"]}
    assert allowed == packages | files | set(project["project"]["license-files"])


def needed(name: str, extras: frozenset[str], found: set[str]) -> None:
    """Add the packages that a package needs, by the names of their releases here."""
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            continue
        if (other := canonicalize_name(requirement.name)) not in found:
            found.add(other)
            needed(other, frozenset(requirement.extras), found)


def test_every_package_of_the_images_is_pinned_within_what_is_tested() -> None:
    lines = (ROOT / "deploy/pins.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = project["dependencies"] + [text for group in GROUPS for text in project["optional-dependencies"][group]]
    found = {str(canonicalize_name(Requirement(text).name)) for text in texts} - {"choral"}
    for name in list(found):
        needed(name, frozenset(), found)
    # What torch brings for a GPU is pinned by torch.
    found = {name for name in found if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert found <= set(pins)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") and (tested := Requirement(line)).name in pins:
            assert pins[tested.name] in tested.specifier


@pytest.mark.parametrize(
    ("index", "no_index", "status"),
    [
        pytest.param("https://download.pytorch.org/whl/cpu", "", 0, id="the-one-that-was-asked-for"),
        pytest.param("https://download.pytorch.org/whl/cu130", "", 1, id="another-one"),
        pytest.param("https://download.pytorch.org/whl/cu130", "1", 0, id="of-a-folder"),
        pytest.param("", "", 0, id="any"),
    ],
)
def test_build_ends_when_torch_is_of_another_index(tmp_path: Path, index: str, no_index: str, status: int) -> None:
    (found,) = re.findall(r"case .* esac", "\n".join(stages()["packages"]))
    (tmp_path / "lib/python3.11/site-packages/torch-2.13.0+cpu.dist-info").mkdir(parents=True)
    command = ["sh", "-euc", found.replace("/opt/learning", str(tmp_path))]
    settings = {"TORCH_INDEX": index, "PIP_NO_INDEX": no_index}
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert (f"{index} must have the torch of deploy/pins.txt" in done.stderr) is bool(status)


def contents(root: Path) -> list[str]:
    done = subprocess.run([sys.executable, str(CONTENTS), str(root)], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.returncode == (1 if done.stdout else 0)
    return done.stdout.splitlines()


def test_check_of_contents_finds_nothing_in_a_clean_tree(tmp_path: Path) -> None:
    (tmp_path / "opt/choral/lib").mkdir(parents=True)
    (tmp_path / "opt/choral/lib/model.py").write_text("PEM = '-----BEGIN PRIVATE KEY-----'\n")
    (tmp_path / "opt/choral/lib/torch.dist-info/licenses/test").mkdir(parents=True)
    assert contents(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("opt/choral/lib/tests/data.csv", "1", "folder {}/opt/choral/lib/tests"),
        ("opt/choral/lib/test_model.py", "", "file {}/opt/choral/lib/test_model.py"),
        ("opt/choral/lib/conftest.py", "", "file {}/opt/choral/lib/conftest.py"),
        ("srv/.env", "TOKEN=1", "file {}/srv/.env"),
        ("root/.cache/pip/x", "", "cache {}/root/.cache"),
        ("var/lib/choral/k", "-----BEGIN PRIVATE KEY-----\n" + "A" * 64, "a private key in {}/var/lib/choral/k"),
    ],
)
def test_check_of_contents_names_what_is_there(tmp_path: Path, name: str, text: str, line: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert line.format(tmp_path) in contents(tmp_path)


def test_check_of_contents_names_a_program(tmp_path: Path) -> None:
    path = tmp_path / "usr/bin/gcc"
    path.parent.mkdir(parents=True)
    path.write_text("")
    path.chmod(0o755)
    assert contents(tmp_path) == [f"program {path}"]


def test_slimming_leaves_what_the_check_takes(tmp_path: Path) -> None:
    folder = tmp_path / "opt/choral"
    for name in (
        "lib/a/tests/test_a.py",
        "lib/a/conftest.py",
        "lib/a/b_test.py",
        "lib/torch/include/x.h",
        "lib/torch/bin/protoc",
        "lib/torch/bin/torch_shm_manager",
        "lib/a.dist-info/licenses/test/LICENSE",
        "lib/a/model.py",
        "lib/site-packages/torch/_inductor/test_operators.py",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    subprocess.run(["sh", str(SLIM), str(folder)], check=True, timeout=60)
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {
        "lib/torch/bin/torch_shm_manager",
        "lib/a.dist-info/licenses/test/LICENSE",
        "lib/a/model.py",
        "lib/site-packages/torch/_inductor/test_operators.py",
    }
    assert contents(tmp_path) == []
