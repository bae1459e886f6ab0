"""Degree and threshold of a session of secure aggregation, from public numbers alone.

Every party derives them anew from the size of the roster and two fractions, so nobody has to believe anybody: a coordinator cannot choose a
smaller graph or a lower threshold. Fractions are integers in parts per million, so that all parties compute the same floors.

Below, n clients are in the roster, a = floor(n * corrupt) of them conspire with the coordinator, and at most D = floor(n * dropout) may be
missing in the end. Each client shares its secrets with its k neighbours and itself; t shares give a secret back. Four conditions hold:

1. Exclusivity. An honest holder hands out its share of one of a client's two secrets, a corrupt one both. Of k + 1 holders, a' of them
   corrupt, both secrets come out only with (k + 1) + a' >= 2t shares. So 2t > k + 1 + a'.
2. Liveness. At least t of the k neighbours of each client are there in the end, where those that are missing fail by chance.
3. Connectivity. The graph without the corrupt and the missing clients is connected, so that masks hide all but the sum.
4. Chosen dropouts. The same where the coordinator, which sees the graph, chooses who is called missing. Own analysis.

Up to 128 clients, and where no ring of a modest degree will do, the graph is complete: a' = a, and 3 and 4 hold by themselves. Otherwise it
is a ring in a random order, each client joined to the k / 2 next on both sides. There, 1, 3 and 4 each fail with a chance of at most
2^-(40 + 1 + 40): 40 bits of security, 1 because events share it, and 40 for a coordinator that tries many rosters until one suits it.
In a round, 2 fails with a chance of at most 2^-20.

Own analysis, which nobody outside has reviewed: condition 4, the 40 bits for many rosters, and that a client's own share counts in 1.

Probabilities are computed in log space in double precision, with errors of about 1e-9 bits; a condition holds only if it does by 2^-20
bits more, so that it never holds by rounding alone. Parties whose logarithms differ in the last digit find the same, but for a chance of
about 1e-9; if not, they compute different graphs, and the session ends without a sum.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, for the complete graph.
https://eprint.iacr.org/2017/281
Source: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020, for the ring.
https://eprint.iacr.org/2020/704
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from privacy.errors import SecureAggregationError

LARGEST_COMPLETE = 128
"""Up to so many clients the graph is complete, whatever the fractions."""

LARGEST_CLIENT_COUNT = 100_000
"""Larger rosters are refused: a party must not be made to search for ever."""

SECURITY_BITS = 40
GRINDING_BITS = 40
LIVENESS_BITS = 20

_GUARD_BITS = 2.0**-20
_NEGLIGIBLE_BITS = 64


@dataclass(frozen=True, slots=True)
class Parameters:
    """Who may fail in a session, and the graph and threshold that bear it."""

    client_count: int
    """Clients in the roster, n."""
    corrupt_count: int
    """Clients that may conspire with the coordinator, a."""
    missing_count: int
    """Clients that may be missing in the end, D."""
    degree: int
    """Neighbours of each client, k."""
    threshold: int
    """Shares that give a secret back, t."""

    @property
    def is_complete(self) -> bool:
        """Whether each client is every other's neighbour."""
        return self.degree == self.client_count - 1

    def fewest_survivors(self, minimum_honest: int) -> int:
        """Return the fewest clients whose sum may be opened: t, n - D, and `minimum_honest` beside the corrupt ones."""
        return max(self.threshold, self.client_count - self.missing_count, minimum_honest + self.corrupt_count)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a ring must hold against. The defaults are ours; without our additions they are those of Google's published finder."""

    is_server_malicious: bool = True
    """Whether the coordinator may tell clients different stories; else t > a' takes the place of condition 1."""
    grinding_bits: int = GRINDING_BITS
    """Bits for a coordinator that tries many rosters."""
    own_share_count: int = 1
    """Whether a client's share of its own secret counts as one more in condition 1."""
    has_chosen_dropouts: bool = True
    """Whether condition 4 must hold."""
    most_degree_percent: int = 75
    """The largest degree, in percent of the clients. Beyond it a ring saves little, and a complete graph needs no chances."""

    @property
    def bits(self) -> int:
        """Bits of each event that would break secrecy."""
        return SECURITY_BITS + 1 + self.grinding_bits


OWN_RULES = Rules()


@lru_cache(maxsize=256)
def parameters_for(client_count: int, corrupt_ppm: int, dropout_ppm: int) -> Parameters:
    """Derive the parameters of a session. They depend on nothing else, so every party finds the same.

    Args:
        client_count: Clients in the roster, 2 to 100000.
        corrupt_ppm: Clients that may conspire with the coordinator, in parts per million of the roster, 0 to 1000000.
        dropout_ppm: Clients that may be missing in the end, likewise, 0 to 999999.

    Returns:
        A complete graph up to 128 clients; beyond that the ring of least degree, or a complete graph where there is none.

    Raises:
        SecureAggregationError: An argument is out of range, or no threshold suits both fractions.
    """
    _check_range("client_count", client_count, 2, LARGEST_CLIENT_COUNT)
    _check_range("corrupt_ppm", corrupt_ppm, 0, 1_000_000)
    _check_range("dropout_ppm", dropout_ppm, 0, 999_999)
    corrupt = client_count * corrupt_ppm // 1_000_000
    missing = client_count * dropout_ppm // 1_000_000
    degree, threshold = client_count - 1, complete_threshold(client_count, corrupt, missing)
    if threshold is None:
        lowest, highest = (client_count + corrupt) // 2 + 1, client_count - missing
        raise SecureAggregationError(
            f"Secure aggregation of {client_count} clients: threshold must be at least {lowest}, so that 2t > n + a "
            f"with {corrupt} corrupt, and at most {highest}, so that t <= n - D with {missing} missing, got none. "
            "Lower the corrupt or the dropout fraction, so that corrupt + 2 * dropout stays below 1."
        )
    # Where little is left between the two conditions the published finder of rings gives up too.
    has_ring = client_count > LARGEST_COMPLETE and 10 * (corrupt + 2 * missing) <= 9 * client_count
    if has_ring and (ring := ring_for(client_count, corrupt, missing)):
        degree, threshold = ring
    return Parameters(client_count, corrupt, missing, degree, threshold)


def _check_range(field: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        rule = f"{field} must be {lowest} to {highest}, got {value}"
        raise SecureAggregationError(f"Secure aggregation: {rule}. Change it for all parties.")


def complete_threshold(client_count: int, corrupt_count: int, missing_count: int) -> int | None:
    """Return the threshold of a complete graph: two thirds of the clients, more or fewer where the counts need it.

    Conditions 1 and 2: 2t > n + a and t <= n - D. Two thirds leave room for a third of the clients on both sides, however few are declared.

    Returns:
        The threshold, or None where none suits.

    Source: Bonawitz et al. 2017, privacy against active adversaries.
    """
    lowest, highest = (client_count + corrupt_count) // 2 + 1, client_count - missing_count
    if lowest > highest:
        return None
    return max(lowest, min(2 * client_count // 3 + 1, highest))


def ring_for(
    client_count: int, corrupt_count: int, missing_count: int, rules: Rules = OWN_RULES
) -> tuple[int, int] | None:
    """Find the ring of least degree that holds all conditions.

    Returns:
        The even degree, below n - 1, and the least threshold that will do with it; or None where no ring will do.
    """
    ring = Ring(client_count, corrupt_count, missing_count, rules)
    most = min(client_count - 2, client_count * rules.most_degree_percent // 100)
    for degree in range(2, most + 1, 2):
        if threshold := ring.threshold(degree):
            return degree, threshold
    return None


class Ring:
    """The conditions on a ring of given counts, for one degree after the other."""

    def __init__(self, client_count: int, corrupt_count: int, missing_count: int, rules: Rules = OWN_RULES) -> None:
        self._n, self._a, self._d, self._rules = client_count, corrupt_count, missing_count, rules
        # lgamma is Python's own and does not depend on numpy's vector instructions.
        self._log_factorials = np.array([math.lgamma(i + 1) for i in range(client_count + 1)])

    def threshold(self, degree: int) -> int | None:
        """Return the least threshold with which an even degree holds all conditions, or None.

        A larger threshold makes 1 and 4 easier and 2 harder; 3 does not depend on it.
        """
        rules, each = self._rules, math.log2(self._n)
        if not _is_enough(self.connectivity_bits(degree), rules.bits):
            return None
        corrupt = self._upper_quantile(self._a, degree, rules.bits + each)
        lowest = (degree + rules.own_share_count + corrupt) // 2 + 1 if rules.is_server_malicious else corrupt + 1
        highest = degree - self._upper_quantile(self._d, degree, LIVENESS_BITS + each)
        choices = range(max(lowest, 2), highest + 1)
        if not rules.has_chosen_dropouts:
            return next(iter(choices), None)
        first = bisect_left(choices, True, key=lambda choice: _is_enough(self.cut_bits(degree, choice), rules.bits))
        return choices[first] if first < len(choices) else None

    def connectivity_bits(self, degree: int) -> float:
        """Return how unlikely the end of condition 3 is: 2^-bits bounds the chance that the removed cut the ring.

        Two gaps of k / 2 clients in a row cut it, and there are n(n - k - 1) / 2 pairs of gaps.

        Source: Bell et al. 2020, as a union bound over the pairs, which their published finder of parameters takes too.
        """
        n, removed, log = self._n, self._a + self._d, self._log_factorials
        if degree > removed:
            return math.inf
        pairs = math.log(n * (n - degree - 1) / 2)
        chance = pairs + log[removed] + log[n - degree] - log[n] - log[removed - degree]
        return float(-chance / math.log(2))

    def cut_bits(self, degree: int, threshold: int) -> float:
        """Return how unlikely the end of condition 4 is: 2^-bits bounds the chance that chosen dropouts can cut the ring.

        It takes two runs of k / 2 clients, each corrupt or called missing. An honest client at a cut still wants t of its k + 1 holders
        alive, so each run has c >= t - k / 2 - 1 corrupt clients; and as only D may be missing, both together have at least k - D. The
        bound is the sum of p(c_1) p(c_2) over such pairs, for n^2 / 2 places, with p hypergeometric. Own analysis, without outside review.
        """
        run = degree // 2
        start, chances = self._chances(self._a, run, threshold - run - 1)
        counts = start + np.arange(len(chances))
        others = np.clip(degree - self._d - counts - start, 0, len(chances))
        cut = float(chances @ np.append(_tails(chances), 0)[others])
        return _bits(cut) + 1 - 2 * math.log2(self._n)

    def _upper_quantile(self, marked: int, drawn: int, bits: float) -> int:
        """Return the least x with Pr[X > x] <= 2^-bits, X being the number of marked among `drawn` clients of n."""
        start, chances = self._chances(marked, drawn, marked * drawn // self._n - 1)
        return start - 1 + sum(1 for tail in _tails(chances) if not _is_enough(_bits(tail), bits))

    def _chances(self, marked: int, drawn: int, first: int) -> tuple[int, npt.NDArray[np.float64]]:
        """Return the hypergeometric chances of `first` or more marked clients among `drawn`, up to what can never matter.

        Pr[X >= mean + s] <= exp(-2 s^2 / drawn), so what is left out is 2^-64 of the rarest event that is asked for.

        Source: Hoeffding, "Probability inequalities for sums of bounded random variables", JASA 1963, section 6.

        Returns:
            The least count, and the chances from there on, float64 (count,); empty where so many cannot be.
        """
        n, log = self._n, self._log_factorials
        bits = self._rules.bits + 2 * math.log2(n) + _NEGLIGIBLE_BITS
        most = math.ceil(marked * drawn / n + math.sqrt(bits * math.log(2) * drawn / 2))
        low, high = max(first, marked + drawn - n, 0), min(marked, drawn, most)
        x = np.arange(low, high + 1)
        ways = log[marked] - log[x] - log[marked - x]
        others = log[n - marked] - log[drawn - x] - log[n - marked - drawn + x]
        return low, np.exp(ways + others - (log[n] - log[drawn] - log[n - drawn]))


def _tails(chances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the sum from each chance on, float64 (count,), the smallest added first so that none is lost."""
    return np.cumsum(chances[::-1])[::-1]


def _bits(chance: float) -> float:
    return -math.log2(chance) if chance > 0 else math.inf


def _is_enough(bits: float, wanted: float) -> bool:
    return bits >= wanted + _GUARD_BITS
