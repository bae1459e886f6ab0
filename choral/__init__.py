"""Choral: federated learning. This package is the front door: the command line and the public Python interface."""

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wire import RELEASE

if TYPE_CHECKING:
    from simulation.simulate import simulate

__all__ = ["__version__", "simulate"]
__version__ = RELEASE


def __getattr__(name: str) -> Any:
    """Import what is asked for by then: an edge client has no simulation."""
    if name == "simulate":
        from simulation.simulate import simulate

        return simulate
    raise AttributeError(f"module 'choral' has no attribute {name!r}")


def _check_names() -> None:
    """Check that the common names of Choral's packages mean Choral's folders, and not a file of the user's."""
    home = Path(__file__).resolve().parent.parent
    for name in ("wire", "models", "privacy", "client", "server", "simulation"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if found is None or found.parent.parent != home:
            raise ImportError(
                f"Package {name!r}: must be Choral's own at {home / name}, got {found}. "
                "Rename or move the file or folder of that name, or start Python elsewhere."
            )


def _share_cores() -> None:
    """Let torch's threads wait for one another for a tenth of a millisecond before they sleep.

    Left alone, GNU's OpenMP lets them hold a core for milliseconds each time, which on a busy machine is what the others wait for: a round
    of small models with two threads then takes ten times as long as with one. Read when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")


_check_names()
_share_cores()
