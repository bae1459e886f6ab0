"""The systemd unit of an edge client, by systemd itself."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT

UNIT = ROOT / "deploy" / "choral-client.service"
EXPOSED_AT_MOST = 20
"""Of 100, as `systemd-analyze security` counts; a service without settings has 96."""


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    program = tmp_path / "choral"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    assert "ExecStart=/opt/choral/bin/choral join" in text
    unit.write_text(text.replace("ExecStart=/opt/choral/bin/choral", f"ExecStart={program}"))
    done = analyze("verify", str(unit))
    assert [line for line in done.stdout.splitlines() if UNIT.name in line] == []
    assert done.returncode == 0, done.stdout


def test_unit_is_confined() -> None:
    done = analyze("security", "--offline=true", f"--threshold={EXPOSED_AT_MOST}", str(UNIT))
    assert done.returncode == 0, done.stdout
    assert "DynamicUser=yes" in UNIT.read_text(encoding="utf-8").splitlines()
