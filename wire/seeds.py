"""Seeds for every random draw: a function of the run's seed, the round, the client and the purpose (law L8).

A draw that depends on nothing else can be made again after a crash, and gives the same numbers in a simulation and in a deployment.
Secrets never come from here.
"""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(run_seed: int, purpose: str, round_number: int = 0, client_id: str = "") -> int:
    """Return the seed of one purpose: the first 63 bits of a SHA-256 over the length-prefixed parts.

    Args:
        run_seed: The spec's seed, 0 to 2**63 - 1.
        purpose: What is drawn, such as "init", "select" or "fit".
        round_number: 1 or more; 0 for draws that belong to no round.
        client_id: The client's identity; empty for draws of the coordinator.
    """
    return client_seeds(run_seed, purpose, round_number)(client_id)


def client_seeds(run_seed: int, purpose: str, round_number: int = 0) -> Callable[[str], int]:
    """Return what gives the `derive_seed` of each client: it hashes the parts that all of them share only once."""
    shared = hashlib.sha256(b"".join(map(_prefixed, ("choral/seed/1", str(run_seed), purpose, str(round_number)))))

    def seed_of(client_id: str) -> int:
        digest = shared.copy()
        digest.update(_prefixed(client_id))
        return int.from_bytes(digest.digest()[:8], "little") >> 1

    return seed_of


def _prefixed(part: str) -> bytes:
    encoded = part.encode()
    return len(encoded).to_bytes(8, "little") + encoded


def derive_generator(run_seed: int, purpose: str, round_number: int = 0, client_id: str = "") -> "torch.Generator":
    """Return a CPU generator seeded by `derive_seed` of the same arguments."""
    import torch

    return torch.Generator().manual_seed(derive_seed(run_seed, purpose, round_number, client_id))
