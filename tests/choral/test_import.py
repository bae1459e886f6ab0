"""What importing `choral` settles before torch is imported."""

import os
import subprocess
import sys

import pytest

PRINT = "import os, sys, choral; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "30000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["default", "own count", "own policy"],
)
def test_torchs_threads_wait_a_tenth_of_a_millisecond_unless_the_user_has_said_how(
    own: dict[str, str], expected: str
) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    found = subprocess.run(
        [sys.executable, "-c", PRINT], env=environment | own, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == [expected, "False"]
