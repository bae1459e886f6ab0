"""What a round's record says in numbers of those who took part."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from server.errors import NO_ANSWER, reason_name, reason_words
from server.inbox import weighted_means
from server.records import Participation, RefusalRecord, RoundRecord, RoundSummary
from wire.federation_pb2 import RefusalReason

NOT_INVITED = reason_name(RefusalReason.REFUSAL_REASON_NOT_INVITED)

REFUSED = "refused_"
"""Beginning of the names of counts among a round's metrics."""


def training_means(record: RoundRecord) -> dict[str, float]:
    """Return the means of what training measured."""
    return as_training(weighted_means([(part.example_count, part.metrics) for part in record.contributions]))


def as_training(metrics: dict[str, float]) -> dict[str, float]:
    """Return metrics of training, each named "train_...": a client's word is never taken for an evaluation."""
    return {f"train_{name.removeprefix('train_')}": mean for name, mean in metrics.items()}


def refusal_counts(record: RoundRecord) -> dict[str, float]:
    """Return how many contributions were refused for each reason, such as "refused_not_finite"."""
    counts = Counter(f"{REFUSED}{refusal.reason}" for refusal in record.refusals)
    return {name: float(count) for name, count in sorted(counts.items())}


def summarized(record: RoundRecord) -> RoundSummary:
    """Return what a committed round says in numbers."""
    return RoundSummary(
        number=record.number,
        attempt=record.attempt,
        started_time=record.started_time,
        ended_time=record.ended_time,
        selected=len(record.selected),
        contributed=len(record.contributions),
        refused=dict(Counter(refusal.reason for refusal in record.refusals)),
        bytes=sum(part.byte_count for part in record.contributions),
        phase_seconds=record.phase_seconds,
        metrics={name: mean for name, mean in record.metrics.items() if not name.startswith(REFUSED)},
        spread=spread(as_training(part.metrics) for part in record.contributions) | record.spread,
    )


def spread(parts: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return minimum, lower quartile, median, upper quartile and maximum of each metric over the parts that have it."""
    values = defaultdict(list)
    for part in parts:
        for name, value in part.items():
            values[name].append(value)
    return {name: _quartiles(sorted(found)) for name, found in sorted(values.items())}


def takers(record: RoundRecord) -> Sequence[str]:
    """Return who was asked or refused in a round, or is in its sum."""
    contributed = {part.client_id for part in record.contributions}
    return sorted(contributed.union(record.selected, (refusal.client_id for refusal in record.refusals)))


def tallied(record: RoundRecord, known: Mapping[str, Participation]) -> dict[str, Participation]:
    """Return what the clients of a committed round have done by its end.

    Args:
        record: The round.
        known: What each had done before it; who is missing had done nothing.

    Returns:
        By client, those that had part in the round.
    """
    contributions = {part.client_id: part for part in record.contributions}
    refusals: dict[str, Counter[str]] = defaultdict(Counter)
    for refusal in record.refusals:
        refusals[refusal.client_id][refusal.reason] += 1
    # Of an attempt before the last, only refusals tell who was asked.
    invited = {refusal.client_id for refusal in record.refusals if refusal.reason != NOT_INVITED}
    asked, tallies = invited.union(record.selected), {}
    for client_id in takers(record):
        before = known.get(client_id) or Participation(run_id=record.run_id, client_id=client_id)
        part = contributions.get(client_id)
        tallies[client_id] = before.with_(
            asked=before.asked + (client_id in asked),
            contributed=before.contributed + (part is not None),
            refused=dict(Counter(before.refused) + refusals[client_id]),
            bytes=before.bytes + (part.byte_count if part else 0),
            train_seconds=before.train_seconds + (part.train_seconds if part else 0.0),
            last_round=max(before.last_round, record.number) if client_id in asked else before.last_round,
        )
    return tallies


def _quartiles(values: Sequence[float]) -> list[float]:
    """Return five numbers that cut sorted values into four parts, interpolated where one falls between two of them."""
    cuts = []
    for quarter in range(5):
        below, rest = divmod(quarter * (len(values) - 1), 4)
        above = min(below + 1, len(values) - 1)
        # Not the difference of two, which may be beyond float64.
        cuts.append(values[below] * (1 - rest / 4) + values[above] * (rest / 4) if rest else values[below])
    return cuts


def shortfall(fewest: int, count: int, asked_count: int, refusals: Sequence[RefusalRecord], silent_count: int) -> str:
    """Return why a round cannot close: whom it lacks, by the reason, and what the first who was refused was told.

    Args:
        fewest: Contributions that it needs.
        count: Contributions that are in.
        asked_count: Clients that were asked.
        refusals: Of those clients.
        silent_count: Clients that have not answered; nobody has waited for them if they could not have been enough.
    """
    counts = Counter(refusal.reason for refusal in refusals)
    counts["not_awaited" if count + silent_count < fewest else NO_ANSWER] = silent_count
    reasons = (
        ", ".join(f"{many} {reason_words(reason)}" for reason, many in sorted(counts.items()) if many) or "none refused"
    )
    first = f" The first refusal: {refusals[0].detail.removesuffix('.')}." if refusals else ""
    contributions = "1 contribution" if fewest == 1 else f"{fewest} contributions"
    return f"quorum must be {contributions}, got {count} of {asked_count} asked, {reasons}.{first}"
