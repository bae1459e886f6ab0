"""Which simulation a folder holds, and of which data: nobody goes on with another one in it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from client.data.fields import reason
from server.folder import kept
from simulation.errors import SimulationError
from wire.spec import RunSpec

Claim = Mapping[str, Mapping[str, Any]]
"""What makes a simulation the one that it is, by part and key."""

NOTE = "simulation.json"


def begun(spec: RunSpec, setting: Mapping[str, Any]) -> Claim:
    """Return what is known of a simulation before its data is read."""
    return {"spec": json.loads(spec.canonical_json()), "setting": {**setting, **_traced(spec)}}


def note(folder: Path, claim: Claim) -> None:
    """Write down whose folder it is."""
    (folder / NOTE).unlink(missing_ok=True)
    kept(folder / NOTE, json.dumps(claim, indent=2) + "\n")


def check(folder: Path, claim: Claim) -> None:
    """Compare with what a folder holds. Raises `SimulationError`; the folder was left as it was."""
    found = _noted(folder / NOTE)
    for part, values in claim.items():
        for key, value in values.items():
            if (held := found.get(part, {}).get(key)) != value:
                raise SimulationError(
                    f"Folder {folder}: {key} must be that of the simulation that it holds, {_shown(held)}, got {_shown(value)}. "
                    f"{_ADVICE.get(key, 'Give the same')}, choose another folder, or delete this one."
                )


_ADVICE = {
    "data_sha256": "Put the data back as it was",
    "own_data_sha256": "Put the coordinator's data back as it was",
    "trace_sha256": "Put the trace back as it was",
}


def sha256_of(*tensors: Tensor) -> str:
    """Return the SHA-256 of tensors with their types and shapes, hexadecimal."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _noted(path: Path) -> Claim:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not all(isinstance(part, dict) for part in found.values()):
            raise ValueError("other JSON")
    except (OSError, ValueError) as error:
        raise SimulationError(
            f"File {path}: must say which simulation the folder holds, got {reason(error)}. Choose another folder, or delete this one."
        ) from error
    return found


def _shown(value: object) -> str:
    return "none" if value is None else repr(value)


def _traced(spec: RunSpec) -> dict[str, str]:
    """Return the SHA-256 of the spec's trace of clients, if it has one that can be read; who reads it says why it cannot."""
    path = spec.simulation.trace if spec.simulation else None
    if path is None or not Path(path).is_file():
        return {}
    return {"trace_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
