"""How many times as long the digits demo takes with secure aggregation: real processes over gRPC, one after the other."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT_SECONDS = 600.0


def measure(repeats: int) -> float:
    """Play the demo without and with secure aggregation in turn, so often each, and return the ratio of their seconds.

    Raises:
        RuntimeError: A demo failed.
    """
    plain = secure = 0.0
    for _ in range(repeats):
        plain += _seconds()
        secure += _seconds("--secure")
    return secure / plain


def _seconds(*options: str) -> float:
    """Return how long one demo took, by its own word: from its start to its three numbers."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "choral", "demo", "--folder", folder, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[2:])} failed: {done.stderr[-1000:] or done.stdout[-1000:]}")
        return float(json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))["seconds"])
