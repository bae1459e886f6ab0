"""The house keeps its order: who may import whom, what an edge client loads, and what is installed."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MAY_IMPORT = {
    "wire": set(),
    "models": {"wire"},
    "privacy": {"wire"},
    "server": {"privacy", "models", "wire"},
    "client": {"privacy", "models", "wire"},
    "simulation": {"server", "client", "privacy", "models", "wire"},
    "choral": {"simulation", "server", "client", "privacy", "models", "wire"},
}

EDGE = ["client", "client.agent"]
HEAVY = {"fastapi", "flwr", "ray", "redis", "server", "simulation", "starlette", "uvicorn"}


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def imported_names(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_package_imports_only_what_lies_below_it(package: str) -> None:
    forbidden = set(MAY_IMPORT) - MAY_IMPORT[package] - {package}
    wrong = [
        f"{source.relative_to(ROOT)} imports {name}"
        for source in sorted((ROOT / package).rglob("*.py"))
        for name in imported_names(source)
        if name.partition(".")[0] in forbidden or name.startswith(".")
    ]
    assert wrong == []


@pytest.mark.parametrize("module", [module for module in EDGE if is_module(module)])
def test_edge_import_loads_neither_server_nor_frameworks(module: str) -> None:
    code = f"import sys, {module}; print(*({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == []


def test_proto_holds_no_python_so_that_proto_plus_keeps_its_name() -> None:
    assert [path.name for path in (ROOT / "proto").rglob("*.py")] == []


def test_pyproject_names_every_package_of_the_tree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = project["tool"]["setuptools"]["packages"]
    found = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for package in MAY_IMPORT
        for init in (ROOT / package).rglob("__init__.py")
    }
    assert sorted(named) == sorted(found)


def test_constraints_pin_every_dependency_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [item for extra in project["optional-dependencies"].values() for item in extra]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = {pin.split("<")[0].split("~")[0].split("=")[0] for pin in pins if not pin.startswith("#")}
    missing = [item for item in wanted if item.split("[")[0].split(">")[0].split("=")[0] not in names | {"choral"}]
    assert missing == []
