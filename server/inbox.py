"""What a round receives: contributions, admitted one by one into the exact sum (law L5), and results of evaluations.

An update enters the sum only if it is bound to this run, round and base model, has the layout, is finite and within range, and comes from a
client that was asked, once. A refused one is recorded with its reason; the round goes on.
"""

import asyncio
import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from server.aggregation import WeightedMean
from server.errors import NO_ANSWER, ContributionRefused, reason_name
from server.first_model import FirstModel
from server.masking.masked import MaskedSum
from server.records import ContributionRecord, RefusalRecord
from server.signal import Signal
from wire.evaluation import Evaluation
from wire.federation_pb2 import RefusalReason, VectorEncoding
from wire.memory import VectorPool
from wire.tensors import vector_bytes

METRIC_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
METRIC_COUNT = 64
DETAIL_LENGTH = 1000
REFUSAL_COUNT = 1_000
"""Refusals of clients that were not asked that one round's record keeps: strangers do not fill the store."""

CLIENT_REFUSAL_COUNT = 20
"""Refusals of one client that one round's record keeps."""

AT_ONCE = 1 << 16
"""Coordinates of a contribution that is added on the event loop: it takes a tenth of a millisecond."""

OF_ANOTHER_ROUND = (RefusalReason.REFUSAL_REASON_WRONG_RUN, RefusalReason.REFUSAL_REASON_WRONG_ROUND)
"""Refusals that settle nobody: a client that was away brings what another round asked of it before it hears of this one."""


@dataclass(frozen=True, slots=True)
class Binding:
    """What a contribution must be bound to, or is."""

    run_id: str
    round_number: int
    base_sha256: bytes
    layout_sha256: bytes


@dataclass(frozen=True, slots=True)
class Arrival:
    """One contribution as it came in, not yet admitted.

    Attributes:
        sha256: That of the vector's bytes, which tells what is brought again from what is new; empty where no verdict can be lost.
        signature: The client's, over a masked vector; empty without audit.
    """

    client_id: str
    binding: Binding
    weight: int
    example_count: int
    metrics: Mapping[str, float]
    train_seconds: float
    vector: npt.NDArray[Any] = field(repr=False)
    sha256: bytes = b""
    signature: bytes = b""


class Inbox:
    """Takes the contributions of one attempt at a round.

    Attributes:
        vet: Looks at a contribution before it is added. Raises `ContributionRefused`.
    """

    def __init__(
        self,
        binding: Binding,
        invited: Sequence[str],
        total: WeightedMean | MaskedSum | FirstModel,
        changed: Signal,
        vectors: VectorPool,
    ) -> None:
        """Open the inbox.

        Args:
            binding: What every contribution must be bound to.
            invited: Clients that are asked.
            total: The sum, empty.
            changed: Notified whenever a client settles.
            vectors: Memory for the contributions that arrive in slices.
        """
        self.binding = binding
        self.changed = changed
        self.vet: Callable[[Arrival], None] | None = None
        self.contributions: dict[str, ContributionRecord] = {}
        self.refusals: list[RefusalRecord] = []
        self._invited = frozenset(invited)
        self._refused: set[str] = set()
        self._refusal_counts: Counter[str] = Counter()
        self._sha256s: dict[str, bytes] = {}
        self._total = total
        self._vectors = vectors
        self._adding = asyncio.Lock()
        self._admissions: set[asyncio.Task[ContributionRefused | None]] = set()
        self._is_closed = False

    @property
    def invited(self) -> frozenset[str]:
        """Clients that were asked."""
        return self._invited

    @property
    def vector_bytes(self) -> int:
        """Length that a contribution's vector must have on the wire, or may have at most."""
        return self._total.byte_count

    @property
    def encoding(self) -> VectorEncoding:
        """How a contribution's vector must be written on the wire."""
        return self._total.encoding

    @property
    def is_exact(self) -> bool:
        """Whether a contribution must be `vector_bytes` long; else no longer."""
        return self._total.is_exact

    def buffer(self, byte_count: int) -> memoryview:
        """Return memory for one contribution of that length."""
        return vector_bytes(self._vectors.take(-(-byte_count // 4)))[:byte_count]

    def vector_in(self, buffer: memoryview) -> npt.NDArray[Any]:
        """Return the contribution that lies in a buffer."""
        return self._total.vector_in(buffer)

    @property
    def count(self) -> int:
        """Contributions in the sum."""
        return len(self.contributions)

    @property
    def unsettled(self) -> frozenset[str]:
        """Clients that were asked and have neither contributed nor been refused."""
        return self._invited - self.contributions.keys() - self._refused

    def holds(self, client_id: str, found: Binding, sha256: bytes) -> bool:
        """Tell whether a client's contribution is in the sum and is this one: who brings it again has not heard the verdict."""
        return found == self.binding and self._sha256s.get(client_id) == sha256

    def check(self, client_id: str, found: Binding) -> None:
        """Check what can be known before the first byte of a vector.

        Raises:
            ContributionRefused: The contribution is not for this round or not from a client that may still contribute.
        """
        reason = RefusalReason
        expected = self.binding
        if found.run_id != expected.run_id:
            raise ContributionRefused(
                reason.REFUSAL_REASON_WRONG_RUN, f"run must be {expected.run_id}, got {found.run_id}"
            )
        if client_id not in self._invited:
            raise ContributionRefused(reason.REFUSAL_REASON_NOT_INVITED, "the client must have been asked, it was not")
        if client_id in self.contributions:
            raise ContributionRefused(
                reason.REFUSAL_REASON_DUPLICATE, "a client must contribute once per round, got a second one"
            )
        if client_id in self._refused:
            raise ContributionRefused(
                reason.REFUSAL_REASON_DUPLICATE, "a client that was refused must wait for the next round"
            )
        if self._is_closed:
            raise ContributionRefused(reason.REFUSAL_REASON_TOO_LATE, f"round {expected.round_number} has closed")
        if found.round_number != expected.round_number:
            raise ContributionRefused(
                reason.REFUSAL_REASON_WRONG_ROUND, f"round must be {expected.round_number}, got {found.round_number}"
            )
        if found.base_sha256 != expected.base_sha256:
            raise ContributionRefused(
                reason.REFUSAL_REASON_WRONG_BASE,
                f"base model must be {expected.base_sha256.hex()[:16]}, got {found.base_sha256.hex()[:16] or 'none'}",
            )
        if found.layout_sha256 != expected.layout_sha256:
            raise ContributionRefused(
                reason.REFUSAL_REASON_WRONG_LAYOUT,
                f"layout must be {expected.layout_sha256.hex()[:16]}, got {found.layout_sha256.hex()[:16] or 'none'}",
            )

    async def admit(self, arrival: Arrival) -> ContributionRefused | None:
        """Add a contribution to the sum, or record why not.

        The work goes on to its end even if the caller is cancelled, and the caller waits for it: a sum is never left half-added, and the
        vector's buffer is not lent to another while it is read.

        Returns:
            None when it entered the sum; else the refusal, which is recorded already. The sum is then unchanged.
        """
        if self._total.size <= AT_ONCE and not self._adding.locked():
            return self._admit_at_once(arrival)
        admission = asyncio.create_task(self._admit(arrival))
        self._admissions.add(admission)
        admission.add_done_callback(self._admissions.discard)
        try:
            return await asyncio.shield(admission)
        finally:
            if not admission.done():
                await asyncio.wait([admission])

    def refuse(self, client_id: str, reason: RefusalReason, detail: str) -> None:
        """Record that a contribution did not enter the sum.

        A client that was asked and has not contributed is then settled, unless what it brought was for another round.
        """
        self._refusal_counts[client_id] += 1
        has_room = client_id in self._invited or len(self.refusals) < REFUSAL_COUNT
        if has_room and self._refusal_counts[client_id] <= CLIENT_REFUSAL_COUNT:
            self.refusals.append(
                RefusalRecord(client_id=client_id, reason=reason_name(reason), detail=detail[:DETAIL_LENGTH])
            )
        if client_id in self.unsettled and reason not in OF_ANOTHER_ROUND:
            self._refused.add(client_id)
        self.changed.notify()

    def drop(self, client_id: str) -> None:
        """Wait no longer for a client, which is not refused: it may contribute to another attempt at the round."""
        if client_id in self.unsettled:
            self._refused.add(client_id)
            self.changed.notify()

    async def close(self) -> None:
        """Admit nothing more, and wait for what is being added."""
        self._is_closed = True
        if self._admissions:
            await asyncio.wait(self._admissions)

    def take_total(self) -> WeightedMean | MaskedSum:
        """Hand over the sum; the inbox, which must be closed, keeps no memory for vectors."""
        assert not isinstance(self._total, FirstModel), "it is no sum"
        total, self._total = self._total, WeightedMean(self._total.grid, 0)
        self._vectors = VectorPool()
        return total

    async def _admit(self, arrival: Arrival) -> ContributionRefused | None:
        try:
            async with self._adding:
                self._check(arrival)
                # The pool keeps what it was called with for a moment longer, in which the next buffer is made already.
                lent, weight = [arrival.vector], arrival.weight
                await asyncio.to_thread(lambda: self._total.add(lent.pop(), weight))
                self._note(arrival)
        except ContributionRefused as refusal:
            return self._turned_away(arrival, refusal)
        return None

    def _admit_at_once(self, arrival: Arrival) -> ContributionRefused | None:
        """Admit a small contribution in less time than a thread would take to begin."""
        try:
            self._check(arrival)
            self._total.add(arrival.vector, arrival.weight)
            self._note(arrival)
        except ContributionRefused as refusal:
            return self._turned_away(arrival, refusal)
        return None

    def _check(self, arrival: Arrival) -> None:
        self.check(arrival.client_id, arrival.binding)
        if self.vet is not None:
            self.vet(arrival)

    def _note(self, arrival: Arrival) -> None:
        """Note a contribution that has entered the sum."""
        self._sha256s[arrival.client_id] = arrival.sha256
        self.contributions[arrival.client_id] = ContributionRecord(
            client_id=arrival.client_id,
            weight=arrival.weight,
            example_count=arrival.example_count,
            byte_count=arrival.vector.nbytes,
            train_seconds=arrival.train_seconds,
            metrics=accepted_metrics(arrival.metrics),
        )
        self.changed.notify()

    def _turned_away(self, arrival: Arrival, refusal: ContributionRefused) -> ContributionRefused:
        self.refuse(arrival.client_id, refusal.reason, str(refusal))
        return refusal


class Ballot:
    """Takes the results of one evaluation."""

    def __init__(self, invited: Sequence[str], changed: Signal) -> None:
        """Open the ballot for clients that are asked. `changed` is notified whenever one settles."""
        self.changed = changed
        self.evaluations: dict[str, Evaluation] = {}
        self._failures: dict[str, RefusalRecord] = {}
        self._invited = frozenset(invited)

    @property
    def count(self) -> int:
        """Results that are in."""
        return len(self.evaluations)

    @property
    def unsettled(self) -> frozenset[str]:
        """Clients that have not answered."""
        return self._invited - self.evaluations.keys() - self._failures.keys()

    def record(self, client_id: str, evaluation: Evaluation) -> None:
        """Take a result. One from a client that was not asked, or that has answered, is ignored."""
        if client_id in self.unsettled:
            metrics = accepted_metrics(evaluation.metrics)
            self.evaluations[client_id] = Evaluation(max(0, evaluation.example_count), metrics)
            self.changed.notify()

    def fail(self, client_id: str, reason: RefusalReason, detail: str) -> None:
        """Take the word of a client that it cannot evaluate."""
        if client_id in self.unsettled:
            self._failures[client_id] = RefusalRecord(
                client_id=client_id, reason=reason_name(reason), detail=detail[:DETAIL_LENGTH]
            )
            self.changed.notify()

    def failures(self) -> list[RefusalRecord]:
        """Return who of those that were asked has brought no result, and why."""
        return failures_of(self._failures.values(), self.unsettled)

    def means(self) -> dict[str, float]:
        """Return the means over the clients, weighted by examples."""
        return weighted_means([(result.example_count, result.metrics) for result in self.evaluations.values()])


def failures_of(told: Iterable[RefusalRecord], silent: Iterable[str]) -> list[RefusalRecord]:
    """Return who has not evaluated, by identity: those that said why, and those that said nothing."""
    unheard = [RefusalRecord(client_id=one, reason=NO_ANSWER, detail="nothing came of it in time") for one in silent]
    return sorted([*told, *unheard], key=lambda failure: failure.client_id)


def accepted_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the entries that keep the contract's rules, at most 64: an odd name or value never costs a round."""
    kept = {
        name: float(value) for name, value in metrics.items() if METRIC_NAME.fullmatch(name) and math.isfinite(value)
    }
    return dict(sorted(kept.items())[:METRIC_COUNT])


def weighted_means(parts: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Return each metric's mean over the parts that have it, weighted by examples; the same whatever the order of the parts.

    A metric whose sum is beyond float64, because some client made up its value or its examples, is left out.
    """
    names = sorted({name for count, metrics in parts if count for name in metrics})
    means = {}
    for name in names:
        having = [(count, metrics[name]) for count, metrics in parts if count and name in metrics]
        with contextlib.suppress(OverflowError, ValueError):
            # Sorted, because only the order of the terms decides whether a sum that ends small goes beyond float64 on its way.
            mean = math.fsum(sorted(count * value for count, value in having)) / sum(count for count, _ in having)
            if math.isfinite(mean):
                means[name] = mean
    return means
