"""Failed attempts by address: whoever tries tokens has to wait."""

import ipaddress
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import TTLCache

MOST_FAILURES = 10
"""Failures after which an address has to wait."""
WINDOW_SECONDS = 60.0
"""Time after its last failure in which an address is remembered."""
ADDRESS_COUNT = 10_000
"""Addresses that are remembered; beyond it, those that failed longest ago are forgotten."""


@dataclass(frozen=True, slots=True)
class _Failures:
    count: int
    until: float


class Attempts:
    """Counts failures of addresses, in a bounded memory. Used from the event loop alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: TTLCache[str, _Failures] = TTLCache(ADDRESS_COUNT, WINDOW_SECONDS, timer=clock)

    def seconds_to_wait(self, address: str) -> int:
        """Return how long an address has to wait before its next attempt; 0 if not at all."""
        found = self._failures.get(_source(address))
        if found is None or found.count < MOST_FAILURES:
            return 0
        return max(1, math.ceil(found.until - self._clock()))

    def note_failure(self, address: str) -> None:
        """Count a failed attempt."""
        source = _source(address)
        earlier = self._failures.get(source)
        count = 1 if earlier is None else earlier.count + 1
        self._failures[source] = _Failures(count, self._clock() + WINDOW_SECONDS)


def _source(address: str) -> str:
    """Return whom an address stands for: of IPv6, a subscriber has all of a /64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
