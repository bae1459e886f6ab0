"""Who shares masks and secrets with whom: everybody with everybody, or a random ring of degree k that every client computes for itself.

Source: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020, section 3 and appendix.
https://eprint.iacr.org/2020/704
"""

from collections.abc import Iterator
from functools import lru_cache

from privacy.secagg.labels import hashed
from privacy.secagg.masks import keystream

_BATCH = 1 << 10


@lru_cache(maxsize=8)
def neighbourhoods(client_count: int, degree: int, roster_hash: bytes) -> tuple[tuple[int, ...], ...]:
    """Return each client's neighbours by index, ascending, without itself.

    Args:
        client_count: n.
        degree: k; n - 1 for the complete graph, else even: the k / 2 on either side in a random order of the clients.
        roster_hash: What the order is drawn from, 32 bytes.
    """
    everyone = range(client_count)
    if degree == client_count - 1:
        return tuple(tuple(other for other in everyone if other != own) for own in everyone)
    ring = _shuffled(client_count, hashed("graph", roster_hash))
    steps = [*range(-degree // 2, 0), *range(1, degree // 2 + 1)]
    found: list[tuple[int, ...]] = [()] * client_count
    for place, own in enumerate(ring):
        found[own] = tuple(sorted(ring[(place + step) % client_count] for step in steps))
    return tuple(found)


def _shuffled(count: int, seed: bytes) -> list[int]:
    """Return 0 to count - 1 in an order drawn from a seed of 32 bytes, by Fisher and Yates."""
    words, order = _words(seed), list(range(count))
    for last in range(count - 1, 0, -1):
        drawn = _below(last + 1, words)
        order[last], order[drawn] = order[drawn], order[last]
    return order


def _below(bound: int, words: Iterator[int]) -> int:
    """Return a uniform number below `bound`: words beyond its largest multiple are drawn again."""
    limit = (1 << 32) // bound * bound
    return next(word for word in words if word < limit) % bound


def _words(seed: bytes) -> Iterator[int]:
    stream = keystream(seed)
    while True:
        block = stream.update(bytes(4 * _BATCH))
        for start in range(0, len(block), 4):
            yield int.from_bytes(block[start : start + 4], "little")
